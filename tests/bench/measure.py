"""How two loops are compared: side by side in one run, in short alternating blocks.

A ratio of two figures taken minutes apart says more of the machine's other work than of the loops. So
the contenders take turns, A B A B, in blocks of a few milliseconds. A round is a few turns; of each
contender the round keeps the fastest block, since whatever disturbs a block only ever slows it. The
round's ratio is of blocks that ran milliseconds apart; the result is the median over many rounds.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

Loop = Callable[[int], object]  # runs so many calls of what is measured
Clock = Callable[[], float]  # seconds
LEAST_CALLS = 4  # in a block: the first call after the other contender's turn finds cold caches


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    rounds: int
    turns: int = 8  # blocks of each contender in a round
    block_seconds: float = 0.002  # long beside the clock's 50 ns, short beside a scheduler's slice
    children: int = 15  # fresh processes of each kind, where it is processes that are compared
    messages: int = 5000  # round trips to the daemon


FULL = Effort(rounds=24)
QUICK = Effort(rounds=5, turns=3, block_seconds=0.001, children=3, messages=300)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several figures and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, median, high = np.percentile(values, (25, 50, 75)).tolist()
        return cls(median, low, high)


@dataclass(frozen=True, slots=True)
class Paired:
    """`a` and `b` in seconds a step, and the ratio a ÷ b of the rounds."""

    ratio: Spread
    a: Spread
    b: Spread


def paired(
    a: Loop, b: Loop, effort: Effort, *, a_steps: int = 1, b_steps: int = 1, clock: Clock = time.perf_counter
) -> Paired:
    """Compare two loops; `a_steps`, `b_steps`: steps in one call of each."""
    with undisturbed():
        a_calls, b_calls = (calls_in(loop, effort.block_seconds, clock) for loop in (a, b))
        rounds_a, rounds_b = [], []
        for _ in range(effort.rounds):
            blocks_a, blocks_b = [], []
            for _ in range(effort.turns):
                blocks_a.append(_block(a, a_calls, clock))
                blocks_b.append(_block(b, b_calls, clock))
            rounds_a.append(min(blocks_a) / a_steps)
            rounds_b.append(min(blocks_b) / b_steps)
    ratios = [x / y for x, y in zip(rounds_a, rounds_b, strict=True)]
    return Paired(Spread.of(ratios), Spread.of(rounds_a), Spread.of(rounds_b))


def alone(loop: Loop, effort: Effort, *, steps: int = 1, clock: Clock = time.perf_counter) -> Spread:
    """One loop's seconds a step, where there is nothing to compare it with."""
    with undisturbed():
        calls = calls_in(loop, effort.block_seconds, clock)
        return Spread.of(
            [
                min(_block(loop, calls, clock) for _ in range(effort.turns)) / steps
                for _ in range(effort.rounds)
            ]
        )


def calls_in(loop: Loop, seconds: float, clock: Clock) -> int:
    """How many calls fill a block, `LEAST_CALLS` at least; finding out is the warm-up."""
    calls = LEAST_CALLS
    while True:
        loop(calls)  # so that what is timed next is warm
        took = clock()
        loop(calls)
        took = clock() - took
        if took >= seconds:
            return calls
        calls = max(calls + 1, min(calls * 8, int(calls * 1.1 * seconds / max(took, 1e-9))))


def _block(loop: Loop, calls: int, clock: Clock) -> float:
    """Seconds a call."""
    start = clock()
    loop(calls)
    return (clock() - start) / calls


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection within."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
