"""One translation for each ATen operation, registered by name when its module is imported."""

from . import (
    activations,
    cells,
    conv,
    linear,
    marked,
    norm,
    pointwise,
    recurrent,
    reduce,
    refuse,
    scan,
    sequence,
    shape,
    spectra,
    upsample,
    window,
)
from .registry import IGNORED, SHAPE_ONLY, find

__all__ = [
    "IGNORED",
    "SHAPE_ONLY",
    "activations",
    "cells",
    "conv",
    "find",
    "linear",
    "marked",
    "norm",
    "pointwise",
    "recurrent",
    "reduce",
    "refuse",
    "scan",
    "sequence",
    "shape",
    "spectra",
    "upsample",
    "window",
]
