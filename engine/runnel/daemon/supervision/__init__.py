"""Supervision of daemons: several workers, systemd, reload."""
