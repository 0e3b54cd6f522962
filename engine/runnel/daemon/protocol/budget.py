"""Time and byte budget of one turn of the daemon's loop, and the measured cost of work.

Rules of this file: pure; the clock is an argument.

Theory: a turn ends when `TURN_SECONDS` are used up, so that a new request waits no longer than that. Short
work is done whole. Longer work is cut into slices, each of about `SLICE_SECONDS` and at most `SLICE_BYTES`,
and other streams take their turns between two slices. The time of a step is not known before it has run:
`StepCosts` learns it from the steps that have run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Final

import numpy as np

from ...spec import Signal
from ...stage import Stage

TURN_SECONDS: Final = 0.005  # of one turn: a quarter of what a live stream may wait (p99 of 20 ms)
SLICE_SECONDS: Final = 0.002  # of one slice: two fit into a turn, beside other streams' steps
SLICE_BYTES: Final = 4 * 2**20  # of one slice in any stage: the size of a processor's cache
TURN_BYTES: Final = 64 * 2**20  # for the steps of one turn and their replies, before any reply is sent

_LENGTHS: Final = 32  # powers of two: a chunk has fewer than 2**32 time steps
_FIRST: Final = 20e-6  # seconds per time step before the first measurement: an LSTM of 128 takes 10 to 30 µs
_LEAST: Final = 1e-9  # seconds per time step: an estimate is never 0
_GROWTH_BITS: Final = 2  # a slice has at most 2**this times the time steps of any chunk seen before


class StepCosts:
    """Seconds per time step, by the length of the chunk, learnt from what ran.

    There is one estimate for each power of two. A time step of a longer chunk is assumed to cost no more than
    one of a shorter chunk, so a measurement at one length bounds the other lengths.
    """

    def __init__(self) -> None:
        self._seconds = [_FIRST] * _LENGTHS  # never rising
        self._longest = 4  # index: chunks of 16 time steps are tried before any was measured

    def estimate(self, steps: int) -> float:
        """Seconds that a chunk of this many time steps is expected to take."""
        return steps * self._seconds[_index(steps)]

    def learn(self, lengths: Sequence[int], seconds: float) -> None:
        """Learn from a batch: chunks of these lengths (at least one) took `seconds` together."""
        first = lengths[0]
        if lengths.count(first) == len(lengths):  # the usual case
            expected = len(lengths) * self.estimate(first)
            indices = {_index(first)}
        else:
            expected = sum(map(self.estimate, lengths))
            indices = {_index(steps) for steps in lengths}
        if expected <= 0:
            return
        # The geometric mean with the old value: one step that the system interrupted is soon forgotten.
        factor = min(2.0, max(0.5, seconds / expected)) ** 0.5
        estimates = self._seconds
        for i in indices:
            self._longest = max(self._longest, i)
            estimates[i] = estimate = max(_LEAST, estimates[i] * factor)
            for j in range(i + 1, _LENGTHS):
                if estimates[j] <= estimate:
                    break
                estimates[j] = estimate
            for j in range(i - 1, -1, -1):
                if estimates[j] >= estimate:
                    break
                estimates[j] = estimate

    def slice(self, most: int) -> int:
        """Time steps of the next slice: a power of two within `SLICE_SECONDS`, at most `most`."""
        best = 1
        for i in range(min(_LENGTHS, self._longest + _GROWTH_BITS + 1)):
            if (1 << i) * self._seconds[i] <= SLICE_SECONDS:
                best = 1 << i
        return min(best, most)


def _index(steps: int) -> int:
    return max(0, steps.bit_length() - 1)


class Sizes:
    """Bytes that time steps of a pipeline's input become in its stages and in the reply."""

    def __init__(self, inputs: Signal, stages: Sequence[Stage]) -> None:
        scale = Fraction(1)
        row = _row_bytes(inputs)
        widest = Fraction(row)
        for stage in stages:
            # If a stage's ratio is unknown, expect one row for each; the actual size is checked later.
            up, down = stage.ratio or (1, 1)
            scale *= Fraction(up, down)
            row = _row_bytes(stage.outputs)
            widest = max(widest, scale * row)
        self.slice_steps = max(1, math.floor(SLICE_BYTES / widest))  # time steps of a slice, by its bytes
        self._widest = widest.numerator, widest.denominator
        self._ratio = scale.numerator, scale.denominator
        # One row more: what a stage held back comes out with the rows that follow.
        self._more = int(any(stage.ratio != (1, 1) or stage.latency for stage in stages))
        self._row = row
        self.one = self.made(1), self.held(1)  # for one time step, which nearly all requests have

    def made(self, steps: int) -> int:
        """Bytes of output that this many time steps are expected to make."""
        up, down = self._ratio  # integers: a Fraction costs each request microseconds
        return (-(-steps * up // down) + self._more) * self._row

    def held(self, steps: int) -> int:
        """Bytes of this many time steps in the widest stage, or in the reply if that is larger."""
        up, down = self._widest
        held = -(-steps * up // down)
        made = self.made(steps)
        return held if held > made else made

    def steps_within(self, nbytes: int) -> int:
        """Time steps whose output fits into `nbytes`; 0 if not even one does."""
        rows = nbytes // self._row - self._more
        up, down = self._ratio
        return max(0, rows * down // up)


def _row_bytes(signal: Signal) -> int:
    return max(1, sum(np.dtype(t.dtype).itemsize * math.prod(t.shape) for t in signal.tensors))


class TurnBudget:
    """The rest of one turn. `bytes`: what work begun in this turn may still take, with its replies."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until = clock() + TURN_SECONDS
        self.bytes = TURN_BYTES

    @property
    def over(self) -> bool:
        """Whether no more work may begin."""
        return self.bytes <= 0 or self._clock() >= self._until

    def reserve(self, seconds: float) -> None:
        """Reserve this many seconds for work at the end of the turn."""
        self._until -= seconds
