"""The daemon over ipc, in a process of its own: to inform, since no bar is set for it yet."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, cycle, islice

import numpy as np

from runnel import Client
from runnel.errors import TimeoutError

from .kit import LARGE, Kit
from .measure import Spread, alone, undisturbed
from .report import Measured, Row, micros

STREAMS = 64
START_SECONDS = 20.0
_numbers = count(1)


@contextmanager
def _daemon(kit: Kit) -> Iterator[Client]:
    """A client of a fresh `runnel serve`, once it answers; it is stopped on the way out."""
    address = f"ipc://{kit.folder}/{next(_numbers)}.sock"
    command = [sys.executable, "-m", "runnel.cli.main", "serve", str(kit.large.path), "--bind", address]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        _await(process, address)
        with Client(address) as client:
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _await(process: subprocess.Popen[str], address: str) -> None:
    """Until the daemon answers; RuntimeError if it ends, or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"runnel serve ended with {process.returncode}")
        try:
            with Client(address, timeout=0.2) as client:
                client.describe()
                return
        except TimeoutError:
            continue
    raise RuntimeError(f"runnel serve does not answer after {START_SECONDS:g} s")


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
