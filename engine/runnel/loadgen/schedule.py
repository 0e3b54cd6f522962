"""When each chunk of each stream is due: pure, endless, fixed before the run.

Arrivals do not depend on replies (an *open loop*). A generator that waits for a reply before it sends the
next chunk slows down together with the system that it measures, and so leaves out the worst latencies. Gil
Tene named this "coordinated omission". As in his wrk2, latency here counts from the time when a request was
due.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count
from typing import Literal, NamedTuple

Pattern = Literal["even", "poisson"]


class Arrival(NamedTuple):
    """A chunk that a stream has ready."""

    due: float  # seconds after the start
    stream: int  # 0 … streams - 1


def arrivals(streams: int, rate: float, pattern: Pattern = "even", seed: int = 0) -> Iterator[Arrival]:
    """Every arrival of `streams` streams at `rate` Hz each, in order of time, without end.

    "even": each stream is regular, and their phases are spread evenly over the period, as those of
    independent sensors are on average. "poisson": each stream's chunks come at random and independently,
    `rate` a second on average; two of one stream may come close together.
    """
    return _even(streams, rate) if pattern == "even" else _poisson(streams, rate, seed)


def _even(streams: int, rate: float) -> Iterator[Arrival]:
    for tick in count():
        for stream in range(streams):
            yield Arrival((tick + stream / streams) / rate, stream)


def _poisson(streams: int, rate: float, seed: int) -> Iterator[Arrival]:
    """Many Poisson processes are one process of the summed rate, whose events fall on any of them."""
    chance = random.Random(seed)
    now = 0.0
    while True:
        now += chance.expovariate(streams * rate)
        yield Arrival(now, chance.randrange(streams))


class Agenda:
    """Hands out arrivals as they fall due, up to `until` seconds after the start."""

    def __init__(self, source: Iterator[Arrival], until: float) -> None:
        self._source = source
        self._until = until
        self._next = next(source)

    @property
    def next_due(self) -> float | None:
        """When the next arrival is due; None at the end."""
        return self._next.due if self._next.due < self._until else None

    def take(self, now: float, most: int) -> list[Arrival]:
        """Arrivals due by `now`, but at most `most` at once, so that replies are read in between."""
        due: list[Arrival] = []
        last = min(now, self._until)
        while len(due) < most and (self._next.due <= last) and self._next.due < self._until:
            due.append(self._next)
            self._next = next(self._source)
        return due
