"""Lags: the current time step and earlier ones as features, y[t] = (x[t - l] for l in lags).

For a model without a memory of its own: the inputs of an autoregression (G. Box and G. Jenkins, Time Series
Analysis: Forecasting and Control, 1970, chapter 3). Units: those of x. Latency 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

import runnel
from runnel.batch import StackedStage
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import MAX_RANK, Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk

from . import _given
from ._choose import one
from .difference import MAX_PAST, begin

MAX_LAGS = 4096  # copies of each time step


class Lags(StackedStage):
    """Combine each time step with earlier ones.

    `lags`: a number n, for the last n time steps, oldest first; or a list, in its own order: [0, 1, 24] is
    the current time step, the one before it, and the one 24 steps ago. `layout` "stack" puts them on a new
    axis: the shape (...) of a time step becomes (n, ...); "concatenate" joins them on the last axis: (..., f)
    becomes (..., n*f). This applies to each float array, or to the one named `of`, of any dtype; other arrays
    pass. The time steps before the stream's first are taken to be equal to it (`before` "first"), or to be 0
    ("zero"). A stream's state is as many time steps as the longest lag, and each step copies it.

    Raises PipelineError for lags that are negative, too long or too many; NonFiniteError for a NaN or an
    infinity in a chunk.
    """

    name = "lags"

    def __init__(
        self,
        inputs: Signal,
        lags: int | list[int],
        layout: Literal["stack", "concatenate"] = "stack",
        before: Literal["first", "zero"] = "first",
        of: str | None = None,
    ) -> None:
        count = lags if isinstance(lags, int) else len(lags)
        if not 1 <= count <= MAX_LAGS:
            raise PipelineError(f"lags: give 1..{MAX_LAGS} of them, not {count}")
        self.lags = tuple(range(lags - 1, -1, -1)) if isinstance(lags, int) else tuple(lags)
        if min(self.lags) < 0 or max(self.lags) > MAX_PAST:
            raise PipelineError(f"lags: each must be in 0..{MAX_PAST} rows, not {list(self.lags)}")
        if of is None:
            self.tensors = _given.floats(self.name, inputs, None)
        else:
            self.tensors = (one(self.name, inputs, of, lambda t: True, "an array"),)
        _given.require_small(self.name, max(self.lags), self.tensors)
        self.layout, self.before, self.past = layout, before, max(self.lags)
        made = {t.name: self._laid(t) for t in self.tensors}
        self.inputs = inputs
        self.outputs = Signal(tuple(made.get(t.name, t) for t in inputs.tensors), inputs.rate)

    def _laid(self, t: TensorSpec) -> TensorSpec:
        if self.layout == "stack":
            shape = (len(self.lags), *t.shape)
        else:
            shape = (*t.shape[:-1], len(self.lags) * (t.shape[-1] if t.shape else 1))
        if len(shape) > MAX_RANK - 1:
            raise PipelineError(f"lags: {t} has too many axes for one more: use layout 'concatenate'")
        return TensorSpec(t.name, t.dtype, shape, t.labels)

    def initial(self) -> Arrays:
        """The state.

        - `past.NAME`: as many time steps as the longest lag, oldest first, in the array's dtype; 0 before the
          first.
        - `begun`: bool (), whether there was a time step.
        """
        past = {f"past.{t.name}": np.zeros((self.past, *t.shape), t.dtype) for t in self.tensors}
        return {**past, "begun": np.zeros((), bool)}

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        streams, steps = next(iter(chunk.values())).shape[:2]
        after: dict[str, Array] = {"begun": state["begun"] | bool(steps)}
        made = {name: array.copy() for name, array in chunk.items()}
        shapes = {t.name: t.shape for t in self.outputs.tensors}
        for t in self.tensors:
            past = state[f"past.{t.name}"]
            if self.before == "first" and steps:
                past = begin(past, state["begun"], chunk[t.name])
            seen = np.concatenate([past, chunk[t.name]], axis=1)
            after[f"past.{t.name}"] = seen[:, steps:].copy()
            rows = [seen[:, self.past - lag : self.past - lag + steps] for lag in self.lags]
            if self.layout == "stack" or not t.shape:
                laid = np.stack(rows, axis=2)
            else:
                laid = np.concatenate(rows, axis=-1)
            made[t.name] = laid.reshape(streams, steps, *shapes[t.name])
        return after, made


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"lags": Lags}
