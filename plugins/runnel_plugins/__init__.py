"""The plugins that come with Runnel, found by entry points like any other."""
