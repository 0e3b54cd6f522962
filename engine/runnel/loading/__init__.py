"""Load files into a pipeline."""
