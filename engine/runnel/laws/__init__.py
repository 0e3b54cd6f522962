"""The laws that `runnel.checks` tests."""
