"""One loaded model: onnxruntime, and the rows that hold its states."""
