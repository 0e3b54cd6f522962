"""Messages and their bytes, addresses and keys, shared by client and daemon."""
