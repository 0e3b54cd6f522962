"""What a server counts: plain numbers that one thread writes and `document` lays open.

Rules of this file: pure; observing a value costs a bisection and an addition; every mapping's keys come
from a closed set (ops, codes, reasons), so that nothing that a client sends can make it grow.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from ...insight.histogram import Histogram

# Bucket bounds. Seconds: from 50 µs by √2 to 9.3 s, so that a
# percentile read from them is at most 41 % off; batch sizes by 2.
SECONDS: Final = tuple(50e-6 * 2 ** (k / 2) for k in range(36))
SIZES: Final = tuple(float(2**k) for k in range(15))


class Stats:
    """Everything since the start."""

    __slots__ = (
        "batch_seconds", "batch_sizes", "batches", "chunks", "closed", "dropped_peers", "dropped_replies",
        "errors", "latency", "opened", "repeats", "requests", "resumed",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()  # by op; "" where it could not be read
        self.errors: Counter[str] = Counter()  # answered, by code
        self.chunks = 0  # applied: each once
        self.repeats = 0  # answered with a kept reply
        self.batches = 0
        self.opened = 0
        self.resumed = 0
        self.closed: Counter[str] = Counter()  # streams, by reason: closed, ended, failed, idle
        self.batch_sizes = Histogram(SIZES)  # streams
        self.batch_seconds = Histogram(SECONDS)
        self.latency = Histogram(SECONDS)  # of a request, from its arrival until its reply is on its way
        self.dropped_replies = 0  # to peers that are gone, or that do not read; written by the daemon
        self.dropped_peers = 0  # that did not read; written by the daemon

    def document(self) -> dict[str, Any]:
        """All of it as plain numbers, lists and maps."""
        laid: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, Histogram):
                laid[name] = value.document()
            else:
                laid[name] = dict(value) if isinstance(value, Counter) else value
        return laid

    def summary(self) -> dict[str, int]:
        """The few numbers that say at the end what was done."""
        return {
            "requests": self.requests.total(),
            "errors": self.errors.total(),
            "chunks": self.chunks,
            "batches": self.batches,
            "dropped_replies": self.dropped_replies,
        }
