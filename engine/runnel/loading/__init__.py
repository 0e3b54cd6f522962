"""Files become a pipeline."""
