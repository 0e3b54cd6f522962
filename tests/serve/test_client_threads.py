"""Threads that share one client, windows, and results in order."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from runnel import errors
from runnel.client import connection as connection_module
from runnel.client.client import Client, RemoteStream
from runnel.client.common import WINDOW
from runnel.daemon.loop import Daemon
from runnel.spec import Array

from .peers import Gate
from .support import UNLUCKY, SpyEngine, rows, tally_engine


def in_threads(*targets: Callable[[], Any]) -> list[Any]:
    """What each call returned or raised."""
    results: list[Any] = [None] * len(targets)

    def call(k: int) -> None:
        try:
            results[k] = targets[k]()
        except Exception as error:
            results[k] = error

    threads = [threading.Thread(target=call, args=(k,)) for k in range(len(targets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


@pytest.fixture
def often() -> Iterator[None]:
    """Make threads switch as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def column(chunks: list[Array]) -> list[float]:
    return list(np.concatenate(chunks)[:, 0].tolist())


def test_threads_share_a_client_each_with_its_own_stream(client: Client, often: None) -> None:
    def work(k: int) -> list[float]:
        with client.open(f"s{k}") as stream:
            return column([*(stream.feed(rows(k + 1)) for _ in range(60)), stream.flush()])

    for k, got in enumerate(in_threads(*(lambda k=k: work(k) for k in range(12)))):
        assert got == [float(k + 1) * n for n in range(1, 61)]
    assert not any(shared._followers or shared._leader_awaits for shared in client._connections.values())


def test_one_thread_sends_and_another_receives(client: Client, often: None) -> None:
    stream = client.open("a")
    got: list[Array] = []

    def send() -> None:
        for value in range(1, 301):
            stream.send(rows(value))

    def receive() -> None:
        while len(got) < 300:
            if stream.outstanding:
                got.append(stream.receive())

    assert in_threads(send, receive) == [None, None]
    assert column([*got, stream.flush()]) == np.cumsum(range(1, 301)).tolist()


def test_threads_share_a_stream(client: Client, often: None) -> None:
    """Each thread gets its own chunk's output; together they are one sequence."""
    stream = client.open("a")
    results = in_threads(*(lambda: [stream.feed(rows(1)) for _ in range(40)] for _ in range(6)))
    told = sorted(value for chunks in results for value in column(chunks))
    assert [*told, *column([stream.flush()])] == list(range(1, 241))


def test_threads_and_feed_many_share_a_client(client: Client, often: None) -> None:
    def work(k: int) -> list[Any]:
        own = [client.open(f"{k}/{i}") for i in range(4)]
        results = client.feed_many([(stream, rows(k + 1)) for _ in range(30) for stream in own])
        return [column([*results[i::4], stream.flush()]) for i, stream in enumerate(own)]

    for k, got in enumerate(in_threads(*(lambda k=k: work(k) for k in range(5)))):
        assert got == [[float(k + 1) * n for n in range(1, 31)]] * 4


def test_closing_a_client_wakes_waiting_threads(daemon: Daemon, engine: SpyEngine) -> None:
    gate = Gate(engine)
    client = Client(daemon.address, timeout=60)
    streams = [client.open(f"s{i}") for i in range(3)]

    def close() -> None:
        assert gate.entered.wait(10)
        client.close()

    results = in_threads(close, *(lambda s=s: s.feed(rows(1)) for s in streams))
    gate.go.set()
    assert [type(result) for result in results[1:]] == [errors.UsageError] * 3
    assert "closed" in str(results[1])


def test_a_full_window_is_an_error(daemon: Daemon) -> None:
    with Client(daemon.address, timeout=0.2, window=3) as client:
        client.timeout = 10
        stream = client.open("a")
        for value in (1, 2, 3):
            stream.send(rows(value))
        client.timeout = 0.2
        with pytest.raises(errors.LimitError, match="3 results are outstanding") as caught:
            stream.send(rows(4))
        assert caught.value.retry
        client.timeout = 10
        out = [stream.receive()]
        stream.send(rows(4))
        assert stream.outstanding == 3
        assert column([*out, *stream.results(), stream.flush()]) == [1, 3, 6, 10]


def test_a_window_never_exceeds_the_daemons_reply_cache(daemon: Daemon) -> None:
    with Client(daemon.address, timeout=10, window=10_000) as client:
        assert client.open()._window == client.describe().limits["kept_replies"]
    for window in (0, -1, 2.5, None):
        with pytest.raises(errors.UsageError, match="window"):
            Client(daemon.address, window=window)  # type: ignore[arg-type]


def test_no_more_requests_are_in_flight_than_the_daemon_takes(client: Client, often: None) -> None:
    """The daemon refuses none, though the threads together ask for more than its limit for one peer."""
    streams = [client.open() for _ in range(6)]
    connection = client._connections[client.address].connection
    connection.limit = 3
    results = in_threads(*(lambda s=s: [*s.feed_all(rows(1) for _ in range(50)), s.flush()] for s in streams))
    assert all(column(chunks) == list(range(1, 51)) for chunks in results)
    assert "LIMIT" not in client.stats()[0]["errors"]


def test_messages_that_libzmq_does_not_accept_are_sent_later(
    daemon: Daemon, engine: SpyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon is stalled, and every queue between is full."""
    monkeypatch.setattr(connection_module, "QUEUED", 2)
    gate = Gate(engine)
    chunk = rows(*[1.0] * 30_000)
    with Client(daemon.address, timeout=30) as client:
        stream = client.open()
        protocol = client._connections[daemon.address].connection.protocol
        stream.send(rows(0))
        assert gate.entered.wait(10)
        for _ in range(WINDOW - 1):
            stream.send(chunk)
        assert protocol.outbox, "it was all taken: the test shows nothing"
        gate.go.set()
        got = column([*stream.results(), stream.flush()])
        assert got == list(range(30_000 * (WINDOW - 1) + 1))
        assert not protocol.outbox


def test_feed_all_yields_in_order_and_stops_at_a_failed_chunk(client: Client) -> None:
    stream = client.open("a")
    chunks = [rows(v) for v in (1, 2, UNLUCKY, 3, 4)]
    feeding = stream.feed_all(chunks)
    out = [next(feeding), next(feeding)]
    with pytest.raises(errors.StageError, match="unlucky"):
        next(feeding)
    behind = stream.outstanding
    for _ in range(behind):
        with pytest.raises(errors.GapError):
            stream.receive()
    assert stream.seq == 2
    assert column([*out, *stream.feed_all(chunks[3:]), stream.flush()]) == [1, 3, 6, 10]


def test_feed_all_reads_no_more_than_its_window_ahead(daemon: Daemon) -> None:
    taken = 0

    def chunks() -> Iterator[Array]:
        nonlocal taken
        for _ in range(40):
            taken += 1
            yield rows(1)

    with Client(daemon.address, timeout=10, window=4) as client:
        feeding = client.open().feed_all(chunks())
        next(feeding)
        assert taken <= 5
        assert sum(1 for _ in feeding) == 39


def test_a_feed_after_sent_chunks_keeps_the_order(client: Client) -> None:
    stream = client.open("a")
    stream.send(rows(1))
    stream.send(rows(2))
    last = stream.feed(rows(3))
    assert column([*stream.results(), last, stream.flush()]) == [1, 3, 6]
    with pytest.raises(errors.StreamError, match="no result to receive"):
        stream.receive()


def test_a_snapshot_follows_all_sent_chunks(client: Client) -> None:
    stream = client.open("a")
    stream.send(rows(1))
    blob = stream.snapshot()
    assert column([stream.receive(), stream.flush()]) == [1]
    with client.restore(blob, "b") as again:
        assert again.seq == 1
        assert column([again.feed(rows(5)), again.flush()]) == [1, 6]
    local = tally_engine().restore(blob, "c")
    assert local.flush()[:, 0].tolist() == [1]
    with pytest.raises(errors.SnapshotError):
        client.restore(b"nonsense")
    with pytest.raises(errors.StreamExistsError):
        client.restore(blob, "a")


def test_closing_a_stream_drops_its_results(client: Client) -> None:
    with client.open("a") as stream:
        stream.send(rows(UNLUCKY))
        stream.send(rows(1))
    assert stream.outstanding == 0
    again: RemoteStream = client.open("a")
    assert column([again.feed(rows(7)), again.flush()]) == [7]


def test_stats_cover_each_worker(client: Client) -> None:
    client.open("a").feed(rows(1))
    (stats,) = client.stats()
    assert (stats["worker"], stats["streams"], stats["chunks"]) == (0, 1, 1)


def test_a_name_that_cannot_be_sent(client: Client) -> None:
    for name in ("\ud800", 7, "", "a\n", 257 * "x"):
        for call in (client.open, client.resume):
            with pytest.raises(errors.StreamError, match="a stream's id is 1 to 256 printable characters"):
                call(name)  # type: ignore[arg-type]
