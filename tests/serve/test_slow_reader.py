"""Peers that do not read, over real sockets: bounded, then dropped, without delaying others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from runnel.client.client import Client
from runnel.daemon import sender
from runnel.daemon.loop import Daemon
from runnel.daemon.protocol import outbox, scheduler
from runnel.wire import messages

from .peers import ask, dealer, feed, reply_of, run, until
from .support import SpyEngine, code, rows


@pytest.fixture
def address(tmp_path: Path) -> str:
    """A Unix socket: the kernel holds some 200 KB of it unread; for tcp it may hold many megabytes."""
    return f"ipc://{tmp_path}/d.sock"


@contextmanager
def served(engine: SpyEngine, address: str) -> Iterator[Daemon]:
    """A daemon that is made after the test has changed its bounds."""
    daemon = Daemon(engine, address)
    thread, _ = run(daemon)
    try:
        assert daemon.started.wait(10)
        yield daemon
    finally:
        daemon.stop()
        thread.join(15)
        assert not thread.is_alive()


def hello(id: int) -> list[bytes]:
    return messages.encode_request(messages.Request(v=1, op="hello", id=str(id)))


def all_replies(sock: zmq.Socket[bytes], quiet: int = 2000) -> list[messages.Reply]:
    """Until none has come for so many milliseconds."""
    replies = []
    while sock.poll(quiet):
        replies.append(messages.decode_reply(sock.recv_multipart())[0])
    return replies


def test_a_peer_that_never_reads_is_dropped_and_slows_no_other(
    engine: SpyEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than the loop makes before libzmq has written one: otherwise the peer had no time to read.
    monkeypatch.setattr(sender, "QUEUED_REPLIES", 1000)
    monkeypatch.setattr(outbox, "MAX_BACKLOG", 100)
    values = np.arange(300, dtype="float32")
    with served(engine, address) as daemon, dealer(daemon.address, queued=1) as deaf:
        got: list[float] = []

        def good() -> None:
            with Client(daemon.address, timeout=20) as client, client.open("good") as stream:
                for value in values:
                    got.extend(stream.feed(rows(value))[:, 0])
                got.extend(stream.flush()[:, 0])

        thread = threading.Thread(target=good)
        thread.start()
        for i in range(20_000):
            deaf.send_multipart(hello(i))
        thread.join(60)
        np.testing.assert_array_equal(got, np.cumsum(values))
        until(lambda: daemon.stats.dropped_peers)
        # It finally reads the replies that fitted, in order, without a hole; then it gets the reason, and is
        # served.
        replies = all_replies(deaf)
        assert len(replies) < 10_000
        assert [reply.id for reply in replies] == [str(i) for i in range(len(replies))]
        refused = ask(deaf, "hello")
        assert code(refused) == "LIMIT"
        assert refused.error
        assert "dropped" in refused.error.message
        assert code(ask(deaf, "hello")) == "ok"
        assert daemon.stats.dropped_replies >= 20_000 - len(replies)


def test_a_late_reader_gets_every_reply_in_order(
    engine: SpyEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "QUEUED_REPLIES", 10)
    with served(engine, address) as daemon, dealer(daemon.address, queued=1) as late:
        for i in range(1500):
            late.send_multipart(hello(i))
        until(lambda: daemon.stats.errors["LIMIT"])
        replies = [reply_of(late) for _ in range(1500)]
        assert [reply.id for reply in replies] == [str(i) for i in range(1500)]
        codes = [code(reply) for reply in replies]
        assert codes == sorted(codes, reverse=True), "those after the first refused one are refused"
        assert set(codes) == {"ok", "LIMIT"}
        assert code(ask(late, "hello")) == "ok"
        assert (daemon.stats.dropped_replies, daemon.stats.dropped_peers) == (0, 0)


def test_while_replies_wait_its_requests_do_not_reach_the_engine(
    engine: SpyEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "QUEUED_REPLIES", 10)
    with served(engine, address) as daemon, dealer(daemon.address, queued=1) as late:
        assert code(ask(late, "open", "a")) == "ok"
        for i in range(1500):
            late.send_multipart(hello(i))
        until(lambda: daemon.stats.errors["LIMIT"])
        late.send_multipart(feed("a", 1, id="feed"))
        replies = [reply_of(late) for _ in range(1501)]
        assert code(replies[-1]) == "LIMIT"
        assert engine.batches == []
        # A refused request used no seq: sent again, it is the first.
        late.send_multipart(feed("a", 1, seq=1))
        assert reply_of(late).applied_seq == 1


def test_large_replies_are_made_as_they_are_read(
    engine: SpyEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unread replies hold back later ones, which are neither queued nor dropped."""
    mib = 2**20
    monkeypatch.setattr(scheduler, "MAX_UNREAD_BYTES", 4 * mib)
    with (
        served(engine, address) as daemon,
        dealer(daemon.address, queued=1) as deaf,
        Client(daemon.address, timeout=20) as client,
        client.open("good") as stream,
    ):
        assert code(ask(deaf, "open", "a")) == "ok"
        for seq in range(1, 31):
            deaf.send_multipart(feed("a", *[1.0] * (mib // 8), seq=seq))
        until(lambda: daemon._server.pending and daemon._server.stalled)
        assert stream.feed(rows(1, 2)).tolist() == [[1, 1]]
        assert daemon.stats.chunks < 15, "4 MiB, and what the kernel and the reader's own side hold"
        replies = [reply_of(deaf) for _ in range(30)]
        assert [reply.applied_seq for reply in replies] == list(range(1, 31))
        assert {code(reply) for reply in replies} == {"ok"}
        assert (daemon.stats.dropped_peers, daemon.stats.dropped_replies) == (0, 0)


def test_libzmq_holds_a_bounded_number_of_bytes_of_large_replies(
    engine: SpyEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mib = 2**20
    monkeypatch.setattr(sender, "MAX_HELD", 2 * mib)
    with served(engine, address) as daemon, dealer(daemon.address, queued=1) as deaf:
        assert code(ask(deaf, "open", "a")) == "ok"
        for seq in range(1, 31):
            deaf.send_multipart(feed("a", *[1.0] * (mib // 8), seq=seq))
        # On a busy machine nobody may look while replies wait. Then the refused requests show that they did.
        until(lambda: daemon._outbox.waiting or daemon.stats.errors["LIMIT"])
        replies = [reply_of(deaf) for _ in range(30)]
        good = [reply.applied_seq for reply in replies if code(reply) == "ok"]
        assert good == list(range(1, len(good) + 1))
        assert {code(reply) for reply in replies} <= {"ok", "LIMIT", "GAP"}, "refused while it waits"
        assert daemon.stats.dropped_replies == 0


def test_large_replies_to_a_reading_peer_all_arrive(
    engine: SpyEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mib = 2**20
    monkeypatch.setattr(sender, "MAX_HELD", 2 * mib)
    with served(engine, address) as daemon, dealer(daemon.address) as sock:
        assert code(ask(sock, "open", "a")) == "ok"
        total = 0
        for _ in range(40):
            sock.send_multipart(feed("a", *[1.0] * (mib // 8)))
            total += reply_of(sock).outputs[0].shape[0]
        assert total == 40 * mib // 8 - 1
        assert daemon.stats.dropped_replies == 0


def test_large_replies_of_disconnected_peers_are_forgotten(
    engine: SpyEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_FIRST_SWEEP", 4)
    made: list[sender.Sender] = []
    monkeypatch.setattr(
        "runnel.daemon.loop.Sender", lambda router: made.append(sender.Sender(router)) or made[0]
    )
    with served(engine, address) as daemon:
        for i in range(20):
            with dealer(daemon.address) as sock:
                name = f"s{i}"
                sock.send_multipart(feed(name, *[1.0] * 20_000, sequence_start=True))
                assert code(reply_of(sock)) == "ok"
    assert len(made[0]._held) <= 8


def test_libzmqs_memory_for_a_disconnected_peer_is_freed(
    engine: SpyEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[sender.Sender] = []
    monkeypatch.setattr(
        "runnel.daemon.loop.Sender", lambda router: made.append(sender.Sender(router)) or made[0]
    )
    with served(engine, address) as daemon:
        with dealer(daemon.address, queued=1) as deaf:
            for i in range(10):
                deaf.send_multipart(feed(f"s{i}", *[1.0] * 2**17, sequence_start=True))
            until(lambda: daemon.stats.chunks == 10)
            (held,) = made[0]._held.values()
            assert not held[-1][1].done
        with dealer(daemon.address) as sock:
            assert code(ask(sock, "hello")) == "ok"
        until(lambda: all(tracker.done for _, tracker in held))
