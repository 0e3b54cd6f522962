"""The daemon: a loop around the sans-IO server, its metrics and its supervision."""
