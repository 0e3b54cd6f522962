"""What one turn of the daemon's loop may take, and what work was seen to cost.

Rules of this file: pure; the clock is an argument.

Theory: a turn ends when `TURN_SECONDS` are used up, so that a request that arrives meanwhile waits no longer
than that. Work that is short enough is done whole. Longer work is cut into slices, each of about
`SLICE_SECONDS` and at most `SLICE_BYTES`, and other streams take their turns between two slices. How long a
step takes is not known before it ran: `Pace` learns it from the steps that have run.
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
SLICE_BYTES: Final = 4 * 2**20  # that a slice may become in any stage: what a processor's cache holds
TURN_BYTES: Final = 64 * 2**20  # that one turn's steps may take, with their replies, before any is sent

_LENGTHS: Final = 32  # powers of two: a chunk has fewer than 2**32 time steps
_FIRST: Final = 20e-6  # seconds a time step, before anything was seen: an LSTM of 128 takes 10 to 30 µs
_LEAST: Final = 1e-9  # seconds a time step: what a step costs is never taken for nothing
_GROWTH_BITS: Final = 2  # a slice has at most 2**this times the time steps of any chunk seen before


class Pace:
    """Seconds that a time step takes, by the length of the chunk: learnt from what ran.

    There is one figure for each power of two. A time step of a longer chunk is taken to cost no more than one
    of a shorter chunk, so that what was measured of some lengths bounds the others.
    """

    def __init__(self) -> None:
        self._seconds = [_FIRST] * _LENGTHS  # never rising
        self._longest = 4  # index: chunks of 16 time steps are tried without having been seen

    def estimate(self, steps: int) -> float:
        """Seconds that a chunk of this many time steps is expected to take."""
        return steps * self._seconds[_index(steps)]

    def saw(self, lengths: Sequence[int], seconds: float) -> None:
        """Chunks of these lengths, one at least, took `seconds` together, as one batch."""
        first = lengths[0]
        if lengths.count(first) == len(lengths):  # as nearly always
            expected = len(lengths) * self.estimate(first)
            indices = {_index(first)}
        else:
            expected = sum(map(self.estimate, lengths))
            indices = {_index(steps) for steps in lengths}
        if expected <= 0:
            return
        # By halves on a logarithmic scale: one step that the system interrupted is soon forgotten.
        factor = min(2.0, max(0.5, seconds / expected)) ** 0.5
        figures = self._seconds
        for i in indices:
            self._longest = max(self._longest, i)
            figures[i] = figure = max(_LEAST, figures[i] * factor)
            for j in range(i + 1, _LENGTHS):
                if figures[j] <= figure:
                    break
                figures[j] = figure
            for j in range(i - 1, -1, -1):
                if figures[j] >= figure:
                    break
                figures[j] = figure

    def slice(self, most: int) -> int:
        """Time steps of the next slice: a power of two within `SLICE_SECONDS`, `most` at most."""
        best = 1
        for i in range(min(_LENGTHS, self._longest + _GROWTH_BITS + 1)):
            if (1 << i) * self._seconds[i] <= SLICE_SECONDS:
                best = 1 << i
        return min(best, most)


def _index(steps: int) -> int:
    return max(0, steps.bit_length() - 1)


class Sizes:
    """What a time step of a pipeline's input becomes, in bytes."""

    def __init__(self, inputs: Signal, stages: Sequence[Stage]) -> None:
        scale = Fraction(1)
        row = _row_bytes(inputs)
        widest = Fraction(row)
        for stage in stages:
            # Of a stage whose ratio is not known, one row for each is expected; the result is checked.
            up, down = stage.ratio or (1, 1)
            scale *= Fraction(up, down)
            row = _row_bytes(stage.outputs)
            widest = max(widest, scale * row)
        self.slice_steps = max(1, math.floor(SLICE_BYTES / widest))  # time steps of a slice, by its bytes
        self._widest = widest.numerator, widest.denominator
        self._ratio = scale.numerator, scale.denominator
        # What a stage held back comes with what follows it.
        self._more = int(any(stage.ratio != (1, 1) or stage.latency for stage in stages))
        self._row = row
        self.one = self.made(1), self.held(1)  # what nearly all requests ask for

    def made(self, steps: int) -> int:
        """Bytes of output that this many time steps are expected to make."""
        up, down = self._ratio  # whole numbers: a fraction takes microseconds of each request
        return (-(-steps * up // down) + self._more) * self._row

    def held(self, steps: int) -> int:
        """Bytes that this many time steps become in the widest stage, or in the reply."""
        up, down = self._widest
        held = -(-steps * up // down)
        made = self.made(steps)
        return held if held > made else made

    def steps_within(self, nbytes: int) -> int:
        """Time steps whose output fits into so many bytes, 0 where not even one does."""
        rows = nbytes // self._row - self._more
        up, down = self._ratio
        return max(0, rows * down // up)


def _row_bytes(signal: Signal) -> int:
    return max(1, sum(np.dtype(t.dtype).itemsize * math.prod(t.shape) for t in signal.tensors))


class Turn:
    """What is left of one turn. `bytes`: that the work begun in it may still take, its replies among them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until = clock() + TURN_SECONDS
        self.bytes = TURN_BYTES

    @property
    def over(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.bytes <= 0 or self._clock() >= self._until

    def expect(self, seconds: float) -> None:
        """Work of about this many seconds will be done at the end of the turn."""
        self._until -= seconds
