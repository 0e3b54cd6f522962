"""Several processes, systemd, reload."""
