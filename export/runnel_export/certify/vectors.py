"""A few ticks of data with the original's own outputs, kept in the file.

With them `verify` compares with the module's numbers on a machine that has neither the module nor torch.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from runnel.errors import ModelError
from runnel.spec import DTYPES, Array

from .checks import Trial

MAX_BYTES = 24 * 1024  # of numbers: small beside any model that is worth exporting
_MAX_TICKS = 24


def to_json(trial: Trial, unit: int, whole: bool = False) -> dict[str, Any]:
    """The trial's first ticks (`unit` time steps of the input each), at least two; or all of it."""
    kept = 2**62 if whole else room(trial)
    return {
        "inputs": {name: _packed(a[: kept * unit]) for name, a in trial.chunk.items()},
        "outputs": {name: _packed(a[:kept]) for name, a in trial.expected.items()},
        "start": None if trial.start is None else {n: _packed(a) for n, a in trial.start.items()},
    }


def room(trial: Trial) -> int:
    """How many of the trial's ticks are kept."""
    arrays = [*trial.chunk.values(), *trial.expected.values()]
    ticks = len(next(iter(trial.expected.values())))
    tick_bytes = sum(a.nbytes for a in arrays) / ticks
    return min(ticks, _MAX_TICKS, max(2, int(MAX_BYTES / tick_bytes)))


def from_json(document: Mapping[str, Any], where: str) -> Trial:
    """The inverse of `to_json`; raises ModelError, naming `where`."""
    try:
        start = document["start"]
        return Trial(
            {n: _unpacked(a) for n, a in document["inputs"].items()},
            {n: _unpacked(a) for n, a in document["outputs"].items()},
            None if start is None else {n: _unpacked(a) for n, a in start.items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{where}: the reference numbers in its certificate make no sense: {error}"
        ) from None


def _packed(array: Array) -> dict[str, Any]:
    if array.dtype == np.float64:
        array = array.astype(np.float32)  # its rounding is far below any tolerance
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "data": base64.b64encode(data).decode(),
    }


def _unpacked(document: Mapping[str, Any]) -> Array:
    if document["dtype"] not in DTYPES:
        raise ValueError(f"dtype {document['dtype']!r}")
    dtype = np.dtype(document["dtype"])
    data = np.frombuffer(base64.b64decode(document["data"]), dtype.newbyteorder("<"))
    return data.reshape(document["shape"]).astype(dtype, copy=False)
