"""From a PyTorch module to a certified ONNX step model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .certificate import Certificate
    from .exporter import export
    from .verifier import verify
    from .weights import load_weights

__all__ = ["Certificate", "export", "load_weights", "verify"]

# Loaded when first named: `verify` runs where torch is not installed (PEP 562).
_HOMES = {"Certificate": "certificate", "export": "exporter", "load_weights": "weights", "verify": "verifier"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'runnel_export' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
