"""How many streams are held within a deadline: doubling until a trial fails, then bisecting. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .trial import Result

CLOSE: Final = 0.02  # the answer is found when it is known to within this part of itself
ATTEMPTS: Final = 2  # a miss counts when it is repeated: what disturbs a machine only ever slows it


@dataclass(frozen=True, slots=True)
class Capacity:
    """The answer of a ramp: streams held, and the trials on either side of it."""

    streams: int  # 0 where not even the first trial's were held
    held: Result | None  # the trial with the most streams that met the deadline
    missed: Result | None  # the one with the fewest that did not; None where `most` were held
    trials: int


def ramp(trial: Callable[[int], Result], passes: Callable[[Result], bool], first: int, most: int) -> Capacity:
    """Find how many streams pass: `trial` runs so many, `first` to begin with and `most` at most.

    Takes it that fewer streams pass where more do. A trial that misses is run once more, for one stall of
    the machine would otherwise be the answer; the later result is the one that is told.
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
