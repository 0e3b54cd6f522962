"""Pre-emphasis: raise the high frequencies, y[t] = x[t] - a * x[t-1], with x[-1] = 0.

The usual first step of a speech front end (J. Markel and A. Gray, Linear Prediction of Speech, 1976). Here it
runs over the whole signal. Kaldi's, which begins anew with each frame, is an option of `log_mel` and `mfcc`.
Units are the input's. Latency 0.
"""

from __future__ import annotations

import numpy as np

import runnel
from runnel.batch import StackedStage
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal
from runnel.stage import Arrays, Chunk

from . import _given


class PreEmphasis(StackedStage):
    """Subtract a part of the previous sample from each sample.

    Every float array (T, ...) is filtered along time, in its dtype; other arrays pass unchanged.
    `coefficient` is the part, in 0..1. Latency 0.

    Raises PipelineError for a coefficient out of range, and if no float array arrives; NonFiniteError for a
    NaN or an infinity in a chunk.
    """

    name = "pre_emphasis"

    def __init__(self, inputs: Signal, coefficient: float = 0.97) -> None:
        if not 0 <= coefficient <= 1:
            raise PipelineError(f"pre_emphasis: coefficient must be in 0..1, not {coefficient:g}")
        self._floats = _given.floats(self.name, inputs, None)
        self._coefficient = coefficient
        self.inputs = self.outputs = inputs

    def initial(self) -> Arrays:
        """The state `last.NAME`: each float array's last sample, in its dtype and shape; 0 at first."""
        return {f"last.{t.name}": np.zeros(t.shape, t.dtype) for t in self._floats}

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        after: dict[str, Array] = {}
        made = {name: array.copy() for name, array in chunk.items()}
        for tensor in self._floats:
            samples, rows, last = chunk[tensor.name], made[tensor.name], state[f"last.{tensor.name}"]
            if samples.shape[1]:
                part = rows.dtype.type(self._coefficient)
                rows[:, 1:] -= part * samples[:, :-1]
                rows[:, 0] -= part * last
                last = samples[:, -1]
            after[f"last.{tensor.name}"] = last.copy()
        return after, made


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"pre_emphasis": PreEmphasis}
