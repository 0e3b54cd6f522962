"""Gain: y[t] = factor * x[t], where a gain of d decibels is the factor 10 ** (d / 20).

Latency 0.
"""

from __future__ import annotations

import numpy as np

import runnel
from runnel.batch import RowStage
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal
from runnel.stage import Chunk

from . import _given

MAX_DB = 300.0  # in both directions: samples still fit in float32's range


class Gain(RowStage):
    """Multiply every sample by a factor, or by a gain in decibels.

    Every float array is multiplied, in its dtype; other arrays pass unchanged, and so does a NaN. Give
    `factor`, which may be negative, or `db`. Latency 0.

    Raises PipelineError for both or neither of the two, for a value out of range, and if no float array
    arrives.
    """

    name = "gain"

    def __init__(self, inputs: Signal, factor: float | None = None, db: float | None = None) -> None:
        if (factor is None) == (db is None):
            raise PipelineError(f"gain takes either factor or db, not {'neither' if db is None else 'both'}")
        if db is not None and not abs(db) <= MAX_DB:
            raise PipelineError(f"gain: db must be in -{MAX_DB:g}..{MAX_DB:g}, not {db:g}")
        most = 10 ** (MAX_DB / 20)
        if factor is not None and not abs(factor) <= most:
            raise PipelineError(f"gain: factor must be in -{most:g}..{most:g}, not {factor:g}")
        self._factor = 10 ** (db / 20) if db is not None else (factor or 0.0)
        self._floats = {t.name for t in _given.floats(self.name, inputs, None)}
        self.inputs = self.outputs = inputs

    def rows(self, arrays: Chunk) -> Chunk:
        return {name: self._times(array) if name in self._floats else array for name, array in arrays.items()}

    def _times(self, array: Array) -> Array:
        return np.multiply(array, self._factor, dtype=array.dtype)


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"gain": Gain}
