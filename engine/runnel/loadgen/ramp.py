"""Find how many streams meet a deadline: double until a trial fails, then bisect. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .trial import Result

CLOSE: Final = 0.02  # relative precision of the answer
ATTEMPTS: Final = 2  # trials before a miss counts: a disturbance of the machine only ever slows it


@dataclass(frozen=True, slots=True)
class Capacity:
    """The result of a ramp: the streams that were sustained, and the trials on either side."""

    streams: int  # 0 if even the first trial failed
    held: Result | None  # the trial with the most streams that met the deadline
    missed: Result | None  # the one with the fewest that did not; None if `most` streams were sustained
    trials: int


def ramp(trial: Callable[[int], Result], passes: Callable[[Result], bool], first: int, most: int) -> Capacity:
    """Find how many streams pass: `trial` runs a given number, from `first` up to `most`.

    Assumes that fewer streams pass if more do. A failed trial is repeated once, since a single stall of the
    machine may have caused it; the result of the repetition counts.
    """
    held: Result | None = None
    missed: Result | None = None
    streams, trials = min(first, most), 0
    while True:
        for _ in range(ATTEMPTS):
            result = trial(streams)
            trials += 1
            if passed := passes(result):
                break
        if passed:
            held = result
        else:
            missed = result
        low = held.plan.streams if held else 0
        if missed is None:
            if low == most:
                break
            streams = min(2 * low, most)
            continue
        high = missed.plan.streams
        if high - low <= max(1, int(low * CLOSE)):
            break
        streams = (low + high) // 2
    return Capacity(held.plan.streams if held else 0, held, missed, trials)
