"""Look at states while streams run: health, recordings, pictures."""
