"""A daemon of several workers: each stream at its own worker, each worker reached directly."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from runnel import AsyncClient, errors
from runnel.client.client import Client
from runnel.daemon.loop import Daemon
from runnel.daemon.supervision.lifecycle import LifecycleHooks
from runnel.wire.placement import Placement

from .support import SpyEngine, rows, tally_engine


class Fixed(LifecycleHooks):
    """Lifecycle hooks that return a fixed placement, since all addresses are known."""

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self._fixed = placement

    def bound_to(self, address: str) -> Placement:
        return self._fixed


NAMES = [f"mic-{k}" for k in range(24)]


@pytest.fixture
def engines() -> list[SpyEngine]:
    return [tally_engine() for _ in range(3)]


@pytest.fixture
def workers(tmp_path: Path, engines: list[SpyEngine]) -> Iterator[list[str]]:
    """Three daemons that are the workers of one; threads here, processes in real use."""
    addresses = [f"ipc://{tmp_path}/w{k}.sock" for k in range(3)]
    daemons = [
        Daemon(engine, addresses[k], hooks=Fixed(Placement(k, addresses))) for k, engine in enumerate(engines)
    ]
    threads = [threading.Thread(target=daemon.serve) for daemon in daemons]
    for thread in threads:
        thread.start()
    assert all(daemon.started.wait(10) for daemon in daemons)
    yield addresses
    for daemon in daemons:
        daemon.stop()
    for thread in threads:
        thread.join(15)


@pytest.mark.parametrize("asked", range(3))
def test_streams_live_at_the_workers_of_their_names(
    workers: list[str], engines: list[SpyEngine], asked: int
) -> None:
    with Client(workers[asked], timeout=20) as client:
        streams = [client.open(name) for name in NAMES]
        results = client.feed_many([(stream, rows(value)) for value in (1, 2, 3) for stream in streams])
        for k, stream in enumerate(streams):
            got = np.concatenate([*results[k :: len(NAMES)], stream.flush()])
            assert got[:, 0].tolist() == [1, 3, 6]
        for k, engine in enumerate(engines):
            assert set(engine.streams) == {n for n in NAMES if crc32(n.encode()) % 3 == k}
        assert [stats["worker"] for stats in client.stats()] == [0, 1, 2]
        blob = streams[0].snapshot()
        for _ in range(6):  # a made name belongs to any of the workers
            client.open()
            client.restore(blob)
        with pytest.raises(errors.StreamExistsError):
            client.open(NAMES[0])
        assert client.resume(NAMES[1]).seq == 4


def test_the_asyncio_client_finds_them_too(workers: list[str], engines: list[SpyEngine]) -> None:
    async def main() -> None:
        async with AsyncClient(workers[1], timeout=20) as client:
            streams = [await client.open(name) for name in NAMES]
            await asyncio.gather(*(stream.feed(rows(1)) for stream in streams))
            assert [stats["chunks"] for stats in await client.stats()] == [
                sum(crc32(n.encode()) % 3 == k for n in NAMES) for k in range(3)
            ]

    asyncio.run(main())
