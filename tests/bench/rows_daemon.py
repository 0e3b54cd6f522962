"""The daemon over ipc as one Python client sees it: to inform; the bars are in rows_serving."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice

import numpy as np

from runnel import Client

from .kit import LARGE, Kit
from .measure import Spread, alone, undisturbed
from .report import Measured, Row, micros
from .serving import serving

STREAMS = 64


@contextmanager
def _daemon(kit: Kit) -> Iterator[Client]:
    """A client of a fresh `runnel serve`."""
    with serving(kit, kit.large.path) as (address, _), Client(address) as client:
        yield client


def _round_trip(kit: Kit) -> Measured:
    chunks = kit.large.ticks()
    with _daemon(kit) as client, client.open() as stream, undisturbed():
        for chunk in islice(cycle(chunks), 200):
            stream.feed(chunk)
        took = []
        for chunk in islice(cycle(chunks), kit.effort.messages):
            start = time.perf_counter()
            stream.feed(chunk)
            took.append((time.perf_counter() - start) * 1e6)
    median, tail = np.percentile(took, (50, 99)).tolist()
    beside = [("p50", f"{median:.0f} µs"), ("p99", f"{tail:.0f} µs"), ("of", f"{len(took)} round trips")]
    return Measured(Spread.of(took), beside)


def _throughput(kit: Kit) -> Measured:
    ticks = kit.large.ticks(STREAMS)
    with _daemon(kit) as client:
        streams = [client.open() for _ in range(STREAMS)]
        given = cycle([list(zip(streams, np.split(tick, STREAMS), strict=True)) for tick in ticks])

        def loop(calls: int) -> None:
            for pairs in islice(given, calls):
                client.feed_many(pairs)

        a_step = alone(loop, kit.effort, steps=STREAMS)
    rate = Spread(1 / a_step.median, 1 / a_step.high, 1 / a_step.low)
    return Measured(rate, [("a step, with the client's own work", micros(a_step))])


ROWS = (
    Row(
        "daemon-round-trip",
        f"one client, one stream, `feed` of one tick over ipc and back, {LARGE}",
        "`runnel serve` in a process of its own; the client's clock around each `feed`, one at a time.",
        _round_trip,
        unit="µs",
        digits=0,
    ),
    Row(
        "daemon-throughput",
        f"one client, {STREAMS} streams by `Client.feed_many` over ipc, {LARGE}",
        f"One tick of each of {STREAMS} streams on its way at once, then the replies; one client process, "
        "whose work is counted. More is better.",
        _throughput,
        unit="steps/s",
        digits=0,
    ),
)
