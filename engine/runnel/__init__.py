"""Streaming inference for recurrent models: carry the state, apply every chunk once."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import RowStage, StackedStage
    from .client.aclient import AsyncClient
    from .client.client import Client
    from .connectors import Sink, Source
    from .engine import Engine
    from .errors import RunnelError
    from .grouping import Blocks, Framing
    from .loading.registry import hookimpl
    from .notices import Notice
    from .spec import Signal, TensorSpec
    from .stage import Stage
    from .stream import Stream

__version__ = "0.1.0"

# onnxruntime's wheels (1.31 on Linux) keep a database in the user's home and send usage data to their
# vendor, unless this is set before they are loaded. ORT_DISABLE_TELEMETRY=0 in the environment allows it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "AsyncClient",
    "Blocks",
    "Client",
    "Engine",
    "Framing",
    "Notice",
    "RowStage",
    "RunnelError",
    "Signal",
    "Sink",
    "Source",
    "StackedStage",
    "Stage",
    "Stream",
    "TensorSpec",
    "hookimpl",
]

# Imported when first used, so that `import runnel` stays cheap on a device (PEP 562).
_HOMES = {
    "AsyncClient": "client.aclient",
    "Blocks": "spec",
    "Client": "client.client",
    "Engine": "engine",
    "Framing": "spec",
    "Notice": "notices",
    "RowStage": "batch",
    "RunnelError": "errors",
    "Signal": "spec",
    "Sink": "connectors",
    "Source": "connectors",
    "StackedStage": "batch",
    "Stage": "stage",
    "Stream": "stream",
    "TensorSpec": "spec",
    "hookimpl": "loading.registry",
}
_MODULES = ("checks", "errors")  # public modules


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'runnel' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names only, without the submodules that were imported."""
    return sorted([*(name for name in globals() if name.startswith("__")), *__all__, *_MODULES])
