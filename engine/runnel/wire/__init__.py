"""Messages and their bytes, addresses, keys: for client and daemon alike."""
