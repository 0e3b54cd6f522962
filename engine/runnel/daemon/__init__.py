"""The daemon: its loop, and all around it."""
