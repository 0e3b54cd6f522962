"""Latencies of a whole run in bounded memory, with percentiles that never understate.

Buckets grow by a fixed ratio, as in Gil Tene's HdrHistogram. A percentile covers all latencies, none sampled
or dropped, and is reported as its bucket's upper end.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Final

PRECISION: Final = 0.01  # relative error: a percentile is at most this much above the true one
LEAST: Final = 1e-6  # seconds: shorter latencies count as this
MOST: Final = 1000.0  # seconds: longer latencies share the last bucket, whose upper end is the maximum

_RATIO = math.log1p(PRECISION)
BUCKETS: Final = math.ceil(math.log(MOST / LEAST) / _RATIO) + 2  # about two thousand


class Latencies:
    """Durations in seconds: count, mean, maximum, and percentiles within `PRECISION`."""

    __slots__ = ("_counts", "count", "max", "total")

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self.count = 0
        self.total = 0.0
        self.max = 0.0  # exact

    def add(self, seconds: float) -> None:
        """Add one duration; a negative one counts as zero."""
        at = math.ceil(math.log(seconds / LEAST) / _RATIO) if seconds > LEAST else 0
        self._counts[at if at < BUCKETS else BUCKETS - 1] += 1
        self.count += 1
        if seconds > 0:
            self.total += seconds
            if seconds > self.max:
                self.max = seconds

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """The smallest duration that `percent` of all do not exceed, or up to `PRECISION` more; 0 if none.

        Never more than `max`, and never less than the true value.
        """
        wanted = max(1, math.ceil(self.count * percent / 100))
        for at, seen in enumerate(accumulate(self._counts)):
            if seen >= wanted:
                return min(_upper(at), self.max)
        return 0.0

    def share(self, seconds: float) -> float:
        """Share of durations up to `seconds`, to within a bucket; 1 if there are none."""
        if not self.count or seconds >= self.max:
            return 1.0
        return sum(n for at, n in enumerate(self._counts) if _upper(at) <= seconds) / self.count

    def spread(self, rows: int = 16) -> list[tuple[float, int]]:
        """A histogram to print: (upper end in seconds, count), in powers of 2, trimmed at both ends.

        At most `rows` rows: the lowest ones are merged.
        """
        joined: dict[int, int] = {}
        for at, n in enumerate(self._counts):
            if n:
                power = math.ceil(math.log2(_upper(at) / LEAST) - 1e-9)
                joined[power] = joined.get(power, 0) + n
        if not joined:
            return []
        low, high = min(joined), max(joined)
        first = max(low, high - rows + 1)
        below = sum(n for power, n in joined.items() if power < first)
        return [
            (LEAST * 2**power, joined.get(power, 0) + (below if power == first else 0))
            for power in range(first, high + 1)
        ]


def _upper(at: int) -> float:
    """Upper end of a bucket; infinite for the last, which only the maximum bounds."""
    return LEAST * math.exp(at * _RATIO) if at < BUCKETS - 1 else math.inf
