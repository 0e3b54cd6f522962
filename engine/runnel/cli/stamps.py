"""Times of output rows, computed from those of the input, for tables with a time column.

Output row j lies at input time step j * down / up (the law of latency). So its time is that of the input row
there, or is interpolated between two rows. This holds for a latency of 0. With a latency, it is not known
whether a stage holds its rows back or delays their content: then no time is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np

from ..connectors import Source
from ..pipeline.pipeline import Pipeline
from ..spec import Array, Signal
from ..stage import Chunk
from .pace import rows_of

GENERATED = "what a pipeline makes of itself has no time"
_MAX_FACTOR = 2**16  # limits the ratio of two rates that a daemon states; a pipeline's own are smaller


class Stamps:
    """The times of output rows. `step`: input rows for one output row."""

    def __init__(self, name: str, step: Fraction) -> None:
        self.name, self._step = name, step
        self._times: Array = np.zeros(0)  # times of the input rows that are still needed
        self._first = 0  # index of the first of these input rows
        self._next = 0  # index of the next output row

    def watch(self, chunks: Iterable[Chunk], source: Source) -> Iterator[Chunk]:
        """Pass the chunks on, and record their times."""
        for chunk in chunks:
            if source.stamps is not None:
                self.note(source.stamps[: rows_of(chunk)])
            yield chunk

    def note(self, times: Array) -> None:
        """Record the times of the next input rows."""
        self._times = np.concatenate([self._times, times])

    def take(self, rows: int) -> Array:
        """The times of the next output rows: float64 (rows,)."""
        up, down = self._step.denominator, self._step.numerator
        at = np.arange(self._next, self._next + rows) * down
        before = at // up - self._first
        # Extrapolate past the last input row, from the last two.
        known = np.clip(before, 0, max(0, len(self._times) - 2))
        times = self._times[known]
        share = (at % up) / up + (before - known)
        if len(self._times) > 1:
            times = times + share * (self._times[known + 1] - times)
            whole = (at % up == 0) & (before < len(self._times))
            times[whole] = self._times[before[whole]]  # exactly as in the input, to the last digit
        self._next += rows
        spent = min(self._next * down // up - self._first, len(self._times) - 2)
        if spent > 0:
            self._times, self._first = self._times[spent:], self._first + spent
        return times


def step_of(pipeline: Pipeline) -> Fraction | str:
    """Input rows for one output row; or why the time of an output row is unknown."""
    if pipeline.latency:
        return _late(pipeline.latency)
    step = Fraction(1)
    for stage in pipeline.stages:
        if stage.ratio is None:
            return f"the rows of its stage {stage.name!r} come when they come"
        step *= Fraction(stage.ratio[1], stage.ratio[0])
    return step


def step_served(inputs: Signal, outputs: Signal, latency: int) -> Fraction | str:
    """The same for a daemon's pipeline, of which only the rates and the latency are known."""
    if latency:
        return _late(latency)
    if not inputs.rate or not outputs.rate:
        return "the daemon states no rate of its input, or of its output"
    return Fraction(inputs.rate / outputs.rate).limit_denominator(_MAX_FACTOR)


def _late(latency: int) -> str:
    return f"the pipeline has a latency of {latency} time steps: which input row a row is of is not known"
