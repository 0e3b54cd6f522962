"""Clients of a daemon, and their half of the protocol."""
