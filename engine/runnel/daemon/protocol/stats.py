"""Counters of a server: plain numbers, written by one thread.

Rules of this file: pure. Observing a value costs a bisection and an addition. Every mapping's keys come from
a closed set (ops, codes, reasons), so that a client cannot make it grow.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from ...insight.histogram import Histogram

# Bucket bounds. Seconds: from 50 µs to 9.3 s, each √2 times the last, so that a percentile is at most 41 %
# off. Batch sizes: powers of two.
SECONDS: Final = tuple(50e-6 * 2 ** (k / 2) for k in range(36))
SIZES: Final = tuple(float(2**k) for k in range(15))


class Stats:
    """Counters since the start."""

    __slots__ = (
        "batch_seconds", "batch_sizes", "batches", "chunks", "closed", "dropped_peers", "dropped_replies",
        "errors", "latency", "opened", "repeats", "requests", "resumed",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()  # by op; "" if it could not be read
        self.errors: Counter[str] = Counter()  # answered, by code
        self.chunks = 0  # applied, each once
        self.repeats = 0  # answered with a cached reply
        self.batches = 0
        self.opened = 0
        self.resumed = 0
        self.closed: Counter[str] = Counter()  # streams, by reason: closed, ended, failed, idle
        self.batch_sizes = Histogram(SIZES)  # streams
        self.batch_seconds = Histogram(SECONDS)
        self.latency = Histogram(SECONDS)  # seconds of a request, from its arrival until its reply is sent
        self.dropped_replies = 0  # to peers that are gone or do not read; written by the daemon
        self.dropped_peers = 0  # peers that did not read; written by the daemon

    def document(self) -> dict[str, Any]:
        """All counters as plain numbers, lists and maps."""
        laid: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, Histogram):
                laid[name] = value.document()
            else:
                laid[name] = dict(value) if isinstance(value, Counter) else value
        return laid

    def summary(self) -> dict[str, int]:
        """The few numbers to log at the end."""
        return {
            "requests": self.requests.total(),
            "errors": self.errors.total(),
            "chunks": self.chunks,
            "batches": self.batches,
            "dropped_replies": self.dropped_replies,
        }
