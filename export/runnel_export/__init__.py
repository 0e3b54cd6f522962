"""From a PyTorch module to a certified ONNX step model."""

__all__: list[str] = []
