"""Trainable recurrent layers that torch lacks, with interfaces like torch's. Each can be streamed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention import WindowAttention
    from .coupled import CoupledLSTM
    from .gru import GRU
    from .layernorm_lstm import LayerNormLSTM
    from .mingru import MinGRU
    from .peephole import PeepholeLSTM
    from .recurrent import Recurrent
    from .scan import linear_scan

__all__ = [
    "GRU",
    "CoupledLSTM",
    "LayerNormLSTM",
    "MinGRU",
    "PeepholeLSTM",
    "Recurrent",
    "WindowAttention",
    "linear_scan",
]

# Loaded on first use (PEP 562), because importing torch takes a second.
_HOMES = {
    "CoupledLSTM": "coupled",
    "GRU": "gru",
    "LayerNormLSTM": "layernorm_lstm",
    "MinGRU": "mingru",
    "PeepholeLSTM": "peephole",
    "Recurrent": "recurrent",
    "WindowAttention": "attention",
    "linear_scan": "scan",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'runnel_export.nn' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
