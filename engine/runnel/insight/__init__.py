"""Observe states while streams run: health checks, recordings, pictures."""
