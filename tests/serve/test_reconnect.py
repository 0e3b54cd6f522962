"""Cut connections, restarted daemons, streams taken over: with real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from runnel import AsyncClient, errors
from runnel.client import connection
from runnel.client.client import Client
from runnel.daemon.loop import Daemon
from runnel.spec import Array

from .peers import served, until
from .proxy import Proxy
from .support import plain_engine, rows, tally_engine

CHUNKS = [rows(*range(k, k + 1 + k % 3)) for k in range(200)]
EVERY = 8_000  # bytes between two cuts, about: some tens of messages


def running(address: str) -> AbstractContextManager[Daemon]:
    return served(Daemon(tally_engine(max_streams=64), address))


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with running(f"ipc://{tmp_path}/d.sock") as daemon:
        proxy = Proxy(tmp_path, daemon.address)
        yield proxy
        proxy.close()


@pytest.fixture(params=range(3))
def cutting(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """A proxy that cuts the connection again and again, at any point."""
    with running(f"ipc://{tmp_path}/d.sock") as daemon:
        proxy = Proxy(tmp_path, daemon.address, EVERY, seed=request.param)
        yield proxy
        proxy.close()
        assert proxy.cuts > 2


def uninterrupted() -> list[Array]:
    stream = plain_engine().open()
    return [*(stream.feed(chunk) for chunk in CHUNKS), stream.flush()]


def same(got: list[Array], want: list[Array]) -> None:
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_chunk_at_a_time_over_a_cut_connection(cutting: Proxy) -> None:
    with Client(cutting.address, timeout=30) as client, client.open() as stream:
        same([*(stream.feed(chunk) for chunk in CHUNKS), stream.flush()], uninterrupted())
        assert stream.seq == len(CHUNKS) + 1


def test_many_chunks_in_flight_over_a_cut_connection(cutting: Proxy) -> None:
    with Client(cutting.address, timeout=30) as client, client.open() as stream:
        same([*stream.feed_all(CHUNKS), stream.flush()], uninterrupted())
        assert stream.seq == len(CHUNKS) + 1


def test_many_streams_over_a_cut_connection(cutting: Proxy) -> None:
    cutting.every = 5 * EVERY
    with Client(cutting.address, timeout=30) as client:
        streams = [client.open(f"s{i}") for i in range(8)]
        results = client.feed_many([(stream, chunk) for chunk in CHUNKS for stream in streams])
        for k, stream in enumerate(streams):
            same([*results[k :: len(streams)], stream.flush()], uninterrupted())


def test_many_streams_of_asyncio_over_a_cut_connection(cutting: Proxy) -> None:
    """Most cuts are in the middle of a bundle, since bundles are nearly all that is sent."""
    cutting.every = 5 * EVERY

    async def main() -> None:
        async with AsyncClient(cutting.address, timeout=30) as client:
            streams = [await client.open(f"s{i}") for i in range(8)]
            results = await client.feed_many([(stream, chunk) for chunk in CHUNKS for stream in streams])
            for k, stream in enumerate(streams):
                same([*results[k :: len(streams)], await stream.flush()], uninterrupted())

    asyncio.run(main())


def test_many_tasks_over_a_cut_connection(cutting: Proxy) -> None:
    cutting.every = 5 * EVERY

    async def one(client: AsyncClient) -> list[Array]:
        async with await client.open() as stream:
            return [*[out async for out in stream.feed_all(CHUNKS)], await stream.flush()]

    async def main() -> list[list[Array]]:
        async with AsyncClient(cutting.address, timeout=30) as client:
            return await asyncio.gather(*(one(client) for _ in range(6)))

    for got in asyncio.run(main()):
        same(got, uninterrupted())


def test_a_failed_chunk_is_the_only_loss_over_a_cut_connection(cutting: Proxy) -> None:
    """An error is an answer too: a repeat does not turn it into success, and its neighbours are not lost."""
    bad = rows(1).astype("float64")
    with Client(cutting.address, timeout=30) as client, client.open() as stream:
        got = []
        for k, chunk in enumerate(CHUNKS):
            if k % 10 == 0:
                with pytest.raises(errors.ChunkError):
                    stream.feed(bad)
            got.append(stream.feed(chunk))
        same([*got, stream.flush()], uninterrupted())


def test_a_cut_while_nothing_is_in_flight(proxy: Proxy) -> None:
    with Client(proxy.address, timeout=30) as client, client.open() as stream:
        first = stream.feed(rows(1, 2))
        proxy.cut()
        assert np.concatenate([first, stream.feed(rows(3)), stream.flush()])[:, 0].tolist() == [1, 3, 6]


def test_a_snapshot_and_a_restore_over_a_cut_connection(cutting: Proxy) -> None:
    with Client(cutting.address, timeout=30) as client:
        got: list[Array] = []
        stream = client.open()
        for k, chunk in enumerate(CHUNKS):
            got.append(stream.feed(chunk))
            if k % 20 == 19:
                blob = stream.snapshot()
                stream.close()
                stream = client.restore(blob)
                assert stream.seq == k + 1
        same([*got, stream.flush()], uninterrupted())


def test_a_restarted_daemon_reports_the_stream_as_lost(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/d.sock"
    with Client(address, timeout=30) as client:
        with running(address) as daemon:
            first = client.describe().boot_id
            fed, idle = client.open("fed"), client.open("idle")
            fed.feed(rows(1))
            fed.send(rows(2))
            until(lambda: daemon.stats.chunks == 2)
        with running(address):
            fed.receive()  # it was answered before the daemon stopped
            for stream in (fed, idle):
                with pytest.raises(errors.UnknownStreamError, match="lost with a restart"):
                    stream.feed(rows(3))
                stream.close()
            assert client.open("fed").feed(rows(5)).shape == (0, 2)
            assert client.describe().boot_id != first


def test_chunks_in_flight_to_a_daemon_that_died_fail(tmp_path: Path) -> None:
    """They are never applied from zeros: all of them fail, and so does the next."""
    with running(f"ipc://{tmp_path}/one.sock") as one, running(f"ipc://{tmp_path}/two.sock") as two:
        proxy = Proxy(tmp_path, one.address)
        with Client(proxy.address, timeout=30) as client:
            stream = client.open("a")
            stream.feed(rows(1))
            proxy.target = two.address.removeprefix("ipc://")
            proxy.cut()
            for value in (2, 3):
                stream.send(rows(value))
            for _ in range(2):
                with pytest.raises(errors.UnknownStreamError):
                    stream.receive()
            with pytest.raises(errors.UnknownStreamError):
                stream.send(rows(4))
            assert client.stats()[0]["chunks"] == 0
        proxy.close()


def test_a_silently_vanished_peer_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEARTBEAT_MS", 50)
    monkeypatch.setattr(connection, "HEARTBEAT_TIMEOUT_MS", 200)
    with running(f"ipc://{tmp_path}/d.sock") as daemon:
        proxy = Proxy(tmp_path, daemon.address, tcp=True)
        with Client(proxy.address, timeout=30) as client, client.open() as stream:
            out = [stream.feed(rows(1))]
            proxy.freeze()
            out += [stream.feed(rows(2)), stream.flush()]
            assert np.concatenate(out)[:, 0].tolist() == [1, 3]
        proxy.close()


def test_resuming_a_stream_fences_its_holder(proxy: Proxy) -> None:
    with Client(proxy.address, timeout=30) as one, Client(proxy.address, timeout=30) as two:
        first = one.open("a")
        out = [first.feed(rows(1)), first.feed(rows(2))]
        second = two.resume("a")
        assert second.seq == 2
        with pytest.raises(errors.FencedError, match="'a' is in another epoch"):
            first.feed(rows(100))
        proxy.cut()  # nor does a new connection win it back
        with pytest.raises(errors.FencedError):
            first.feed(rows(100))
        first.close()  # no longer its own: nothing to close
        out += [second.feed(rows(3)), second.flush()]
        assert np.concatenate(out)[:, 0].tolist() == [1, 3, 6]
        with pytest.raises(errors.UnknownStreamError):
            two.resume("nobody")


def test_a_client_that_comes_back_after_a_take_over_loses(proxy: Proxy) -> None:
    """Its requests in flight at the cut are not applied after the other client's."""
    with Client(proxy.address, timeout=30) as one, Client(proxy.address, timeout=30) as two:
        first = one.open("a")
        out = [first.feed(rows(1))]
        second = two.resume("a")
        proxy.cut()
        first.send(rows(100))
        out += [second.feed(rows(2)), second.flush()]
        with pytest.raises(errors.FencedError):
            first.receive()
        assert np.concatenate(out)[:, 0].tolist() == [1, 3]


def test_a_client_that_starts_before_its_daemon(tmp_path: Path) -> None:
    """Its first open is given up. The second is the same request, in case the first is done after all."""
    address = f"ipc://{tmp_path}/d.sock"
    with Client(address, timeout=0.2) as client:
        with pytest.raises(errors.TimeoutError, match="is the daemon running there"):
            client.open("a")
        with running(address):
            client.timeout = 30
            assert client.open("a").feed(rows(1, 2)).tolist() == rows(1).tolist()


def test_the_same_chunk_after_a_time_out_is_applied_once(proxy: Proxy) -> None:
    """Another chunk in its place gets an error that the first was applied."""
    with Client(proxy.address, timeout=30) as client, client.open("a") as stream:

        def late(chunk: Array) -> None:
            """Feed a chunk whose reply comes after the time-out."""
            client.timeout = 0.1
            proxy.replies.clear()
            with pytest.raises(errors.TimeoutError):
                stream.feed(chunk)
            client.timeout = 30
            proxy.replies.set()

        out = [stream.feed(rows(1))]
        for chunk in (rows(2), rows(3)):
            late(chunk)
            out.append(stream.feed(chunk))
        late(rows(4))  # its output is lost
        with pytest.raises(errors.ConflictError, match="seq 4 was applied with another payload"):
            stream.feed(rows(5))
        assert stream.seq == 4
        out += [stream.feed(rows(6)), stream.flush()]
        assert np.concatenate(out)[:, 0].tolist() == [1, 3, 10, 16]


def test_a_late_result_is_received_later(proxy: Proxy) -> None:
    with Client(proxy.address, timeout=0.1) as client:
        client.timeout = 30
        stream = client.open("a")
        proxy.replies.clear()
        stream.send(rows(1, 2))
        stream.send(rows(3))
        client.timeout = 0.1
        for _ in range(3):
            with pytest.raises(errors.TimeoutError):
                stream.receive()
        client.timeout = 30
        proxy.replies.set()
        assert np.concatenate([*stream.results(), stream.flush()])[:, 0].tolist() == [1, 3, 6]
        assert stream.seq == 3
