"""The daemon's half of the protocol: no socket, no thread, no clock."""
