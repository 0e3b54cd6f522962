"""One translation for each ATen operation, registered by name when its module is imported."""

from . import conv, linear, norm, pointwise, recurrent, reduce, refuse, sequence, shape
from .registry import IGNORED, SHAPE_ONLY, find

__all__ = [
    "IGNORED",
    "SHAPE_ONLY",
    "conv",
    "find",
    "linear",
    "norm",
    "pointwise",
    "recurrent",
    "reduce",
    "refuse",
    "sequence",
    "shape",
]
