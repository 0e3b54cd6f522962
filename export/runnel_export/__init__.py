"""Turn a PyTorch module into a certified ONNX step model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .certify.certificate import Certificate
    from .certify.verify import verify
    from .exporter import export
    from .weights import load_weights

__all__ = ["Certificate", "export", "load_weights", "verify"]

# Loaded on first use (PEP 562), so that `verify` also runs without torch.
_HOMES = {
    "Certificate": "certify.certificate",
    "export": "exporter",
    "load_weights": "weights",
    "verify": "certify.verify",
}
_MODULES = ("nn",)  # public: the layers that torch lacks


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'runnel_export' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names. An imported private module is an attribute too, but is left out."""
    return sorted([*(name for name in globals() if name.startswith("__")), *__all__, *_MODULES])
