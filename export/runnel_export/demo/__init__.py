"""The main job, end to end, on a trained model: what `runnel demo` runs."""
