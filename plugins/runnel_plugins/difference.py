"""The change over `lag` time steps, taken `order` times: y = (1 - B**lag)**order x, with B x[t] = x[t-1].

order 1, lag 1 is the slope from one time step to the next; lag 24 of hourly data removes the daily season (G.
Box and G. Jenkins, Time Series Analysis: Forecasting and Control, 1970, chapters 4 and 9). Units: those of x,
per lag time steps. Latency 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

import runnel
from runnel.batch import StackedStage
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal
from runnel.stage import Arrays, Chunk

from . import _given

MAX_ORDER = 8  # each order at least doubles the power of the noise
MAX_PAST = 100_000  # time steps of past, copied at each step: a day of seconds fits


class Difference(StackedStage):
    """Subtract from each time step the one `lag` before it; `order` times.

    Each float array, or the one named `of`, is changed; other arrays pass. The time steps before the stream's
    first are taken to be equal to it (`before` "first": differences begin with 0), or to be 0 ("zero"). A
    stream's state is order * lag time steps, and each step copies it.

    Raises PipelineError for a lag or an order below 1, and if order * lag is too large; NonFiniteError for a
    NaN or an infinity in a chunk.
    """

    name = "difference"

    def __init__(
        self,
        inputs: Signal,
        order: int = 1,
        lag: int = 1,
        before: Literal["first", "zero"] = "first",
        of: str | None = None,
    ) -> None:
        self.inputs = self.outputs = inputs
        self.tensors = _given.floats(self.name, inputs, of)
        if not 1 <= order <= MAX_ORDER:
            raise PipelineError(f"difference: order must be in 1..{MAX_ORDER}, not {order}")
        if lag < 1 or order * lag > MAX_PAST:
            raise PipelineError(
                f"difference: lag must be at least 1, and order * lag at most {MAX_PAST} rows; "
                f"they are {order} and {lag}"
            )
        _given.require_small(self.name, order * lag, self.tensors)
        self.order, self.lag, self.before = order, lag, before

    def initial(self) -> Arrays:
        """The state.

        - `past.NAME`: the last order * lag time steps of each array, oldest first, in its dtype; 0 before the
          first.
        - `begun`: bool (), whether there was a time step.
        """
        rows = self.order * self.lag
        past = {f"past.{t.name}": np.zeros((rows, *t.shape), t.dtype) for t in self.tensors}
        return {**past, "begun": np.zeros((), bool)}

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        made = {name: array.copy() for name, array in chunk.items()}
        steps = next(iter(chunk.values())).shape[1]
        if not steps:
            return {name: array.copy() for name, array in state.items()}, made
        after: dict[str, Array] = {"begun": np.ones_like(state["begun"])}
        for t in self.tensors:
            past = state[f"past.{t.name}"]
            if self.before == "first":
                past = begin(past, state["begun"], chunk[t.name])
            seen = np.concatenate([past, chunk[t.name]], axis=1)
            after[f"past.{t.name}"] = seen[:, steps:].copy()
            for _ in range(self.order):
                seen = seen[:, self.lag :] - seen[:, : -self.lag]
            made[t.name] = seen
        return after, made


def begin(past: Array, begun: Array, rows: Array) -> Array:
    """Return `past`, filled with the first of `rows` for new streams."""
    if begun.all():
        return past
    return np.where(begun.reshape(-1, *(1 for _ in past.shape[1:])), past, rows[:, :1])


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"difference": Difference}
