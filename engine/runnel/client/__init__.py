"""Clients of a daemon, and the sans-IO client protocol."""
