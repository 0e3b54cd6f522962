"""Simulate live microphones from a recording. Each is a client of the daemon with its own stream.

A microphone's clock does not wait. Chunk k is due at start + (k + 1) * hop / rate, when its last sample
would have been recorded. Latency is counted from then, so a stall shows in every chunk behind it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from runnel import Client
from runnel.errors import RunnelError
from runnel.spec import Array


@dataclass(frozen=True, slots=True)
class Segment:
    """Speech that a microphone heard: seconds since its stream began."""

    microphone: str
    start: float
    end: float


@dataclass
class Heard:
    """Replies to one microphone, chunk by chunk."""

    name: str
    rate: float
    probability: list[Array] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)  # seconds since the chunk was due
    error: RunnelError | None = None

    def take(self, out: dict[str, Array]) -> list[Segment]:
        """Store a reply. Return the segments that it completes."""
        self.probability.append(out["probability"])
        found = [
            Segment(self.name, start / self.rate, end / self.rate)
            for start, end in zip(out["start"].tolist(), out["end"].tolist(), strict=True)
            if end >= 0
        ]
        self.segments += found
        return found


class Microphones:
    """Microphones at `rate` Hz, one thread each. Each plays its own sound; all sounds have one length."""

    def __init__(self, address: str, sounds: Sequence[Array], rate: int, hop: int, model_rate: float) -> None:
        self.address, self.sounds, self.rate, self.hop = address, sounds, rate, hop
        self.heard = [Heard(f"mic-{i + 1}", model_rate) for i in range(len(sounds))]
        self.found: queue.SimpleQueue[Segment | None] = queue.SimpleQueue()  # None: a microphone has ended
        self._stop = threading.Event()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Start all microphones. On leaving, stop them and wait."""
        threads = [
            threading.Thread(target=self._play, args=(heard, samples), name=heard.name)
            for heard, samples in zip(self.heard, self.sounds, strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _play(self, heard: Heard, samples: Array) -> None:
        try:
            with Client(self.address) as client, client.open(heard.name) as stream:
                start = time.monotonic()
                for at in range(0, len(samples), self.hop):
                    chunk = samples[at : at + self.hop]
                    due = start + (at + len(chunk)) / self.rate
                    if self._stop.wait(max(0.0, due - time.monotonic())):
                        return
                    out = stream.feed({"samples": chunk})
                    heard.latency.append(time.monotonic() - due)
                    for segment in heard.take(out):
                        self.found.put(segment)
                out = stream.flush()
                for segment in heard.take(out):
                    self.found.put(segment)
        except RunnelError as error:
            heard.error = error
        finally:
            self.found.put(None)

    @property
    def steps(self) -> int:
        """Number of replies so far, of all microphones."""
        return sum(len(h.latency) for h in self.heard)

    def percentiles(self) -> tuple[float, float]:
        """Return (p50, p99) of the latency so far, in ms; zeros before the first reply."""
        values = [value for h in self.heard for value in list(h.latency)]
        if not values:
            return 0.0, 0.0
        p50, p99 = np.percentile(values, [50, 99])
        return float(p50) * 1e3, float(p99) * 1e3
