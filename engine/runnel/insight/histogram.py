"""Histograms: counts of values by bucket, which can be added and subtracted."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any


class Histogram:
    """Counts by bucket, the last of which is unbounded, and the sum of all values.

    `bounds` are upper and inclusive, as in Prometheus. `observe` costs one bisection and one addition.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def document(self) -> dict[str, Any]:
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}
