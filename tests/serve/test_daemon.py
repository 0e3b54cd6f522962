"""The daemon with real sockets: batches, and bounds of what it reads and writes."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from runnel.client.client import Client
from runnel.daemon import loop as daemon_module
from runnel.daemon.loop import Daemon
from runnel.daemon.protocol import intake
from runnel.daemon.protocol import server as protocol
from runnel.wire import messages

from .peers import Gate, as_arrived, ask, dealer, feed, reply_of, run
from .support import UNLUCKY, SpyEngine, code, rows


def test_requests_during_a_batch_form_the_next_batch(
    daemon: Daemon, engine: SpyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dealer(daemon.address) as sock:
        names = [f"s{i}" for i in range(20)]
        for name in ["first", *names]:
            assert code(ask(sock, "open", name)) == "ok"
        gate = Gate(engine)
        sock.send_multipart(feed("first", 1))
        assert gate.entered.wait(10)
        as_arrived(monkeypatch, len(names))
        for name in names:
            sock.send_multipart(feed(name, 1))
        gate.go.set()
        assert [code(reply_of(sock)) for _ in range(21)] == ["ok"] * 21
    assert engine.batches == [1, 20]


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"", b"\x81\xa1v\x01"],
        [b"GET / HTTP/1.1"],
        [b"x" * (messages.MAX_HEADER + 1)],
        [b"x"] * 500,
        [bytes(messages.MAX_TENSOR_BYTES)] * 5,
    ],
)
def test_any_message_gets_a_typed_error_and_the_daemon_lives(daemon: Daemon, frames: list[bytes]) -> None:
    with dealer(daemon.address) as sock:
        sock.send_multipart(frames)
        assert code(reply_of(sock)) in ("BAD_MESSAGE", "TOO_LARGE")
        assert code(ask(sock, "hello")) == "ok"


def test_frames_beyond_a_messages_bound_are_discarded(daemon: Daemon) -> None:
    with dealer(daemon.address) as sock, pytest.MonkeyPatch.context() as patch:
        seen: list[int] = []
        receive = protocol.ServerProtocol.receive

        def spy(self: Any, peer: bytes, frames: list[bytes], now: float, user: str) -> Any:
            seen.append(len(frames))
            return receive(self, peer, frames, now, user)

        patch.setattr(protocol.ServerProtocol, "receive", spy)
        sock.send_multipart([b"x"] * 3000)
        assert code(reply_of(sock)) == "BAD_MESSAGE"
        assert seen == [messages.MAX_TENSORS + 2]


def test_a_frame_beyond_the_bound_ends_only_its_connection(daemon: Daemon) -> None:
    with dealer(daemon.address) as good, dealer(daemon.address) as bad:
        assert code(ask(bad, "hello")) == "ok"
        bad.send_multipart([b"x", bytes(messages.MAX_TENSOR_BYTES + 1)])
        assert not bad.poll(300)
        assert code(ask(good, "hello")) == "ok"


def test_bytes_that_are_no_zmtp_do_no_harm(daemon: Daemon) -> None:
    if daemon.address.startswith("tcp"):
        raw = socket.create_connection(("127.0.0.1", int(daemon.address.rsplit(":", 1)[1])))
    else:
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(daemon.address.removeprefix("ipc://"))
    with raw, Client(daemon.address) as client:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        client.open("a")


def test_a_disconnected_peer_loses_only_its_replies(daemon: Daemon, engine: SpyEngine) -> None:
    with Client(daemon.address) as client:
        stream = client.open("a")
        for applied, patience in enumerate((0.2, 1.0, 5.0)):  # until the daemon's side has seen it go
            gate = Gate(engine)
            with dealer(daemon.address) as sock:
                sock.send_multipart(feed(f"gone after {patience}", 1, sequence_start=True))
                assert gate.entered.wait(10)
            time.sleep(patience)
            gate.go.set()
            assert len(stream.feed(rows(1))) == min(1, applied)
            assert engine.streams[f"gone after {patience}"].seq == 1
            if daemon.stats.dropped_replies:
                break
    assert daemon.stats.dropped_replies == 1


def test_a_full_server_is_not_handed_more(
    daemon: Daemon, engine: SpyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MAX_PENDING", 10)
    monkeypatch.setattr(intake, "SPARE_REQUESTS", 0)
    with dealer(daemon.address) as sock:
        assert code(ask(sock, "open", "a")) == "ok"
        for i in range(200):
            sock.send_multipart(feed("a", i))
        assert [code(reply_of(sock)) for _ in range(200)] == ["ok"] * 200


def test_a_silent_new_connection_is_closed(
    engine: SpyEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "HANDSHAKE_MS", 100)
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread, _ = run(daemon)
    assert daemon.started.wait(10)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(tmp_path / "d.sock"))
        silent.settimeout(30)
        while silent.recv(100):  # the daemon's greeting, then the end
            pass
    daemon.stop()
    thread.join(10)


def test_a_failing_stage_fails_only_its_request(daemon: Daemon) -> None:
    with dealer(daemon.address) as sock:
        for name in ("a", "b"):
            assert code(ask(sock, "open", name)) == "ok"
        sock.send_multipart(feed("a", UNLUCKY, seq=1))
        sock.send_multipart(feed("b", 1, seq=1))
        sock.send_multipart(feed("a", 2, seq=1))  # the one that failed used no number
        found = {
            (reply.sequence_id, code(reply), reply.applied_seq) for reply in (reply_of(sock) for _ in "123")
        }
        assert found == {("a", "STAGE_FAILED", 0), ("b", "ok", 1), ("a", "ok", 1)}


def test_a_batch_longer_than_the_idle_time_closes_no_fed_stream(
    engine: SpyEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(engine, address, idle_seconds=60.0)
    thread, _ = run(daemon)
    assert daemon.started.wait(10)
    with dealer(daemon.address) as sock:
        for name in ("a", "b"):
            assert code(ask(sock, "open", name)) == "ok"
        gate = Gate(engine)
        sock.send_multipart(feed("a", 1))
        assert gate.entered.wait(10)
        as_arrived(monkeypatch, 1)
        sock.send_multipart(feed("b", 1))
        time.sleep(0.5)
        daemon._server.idle_seconds = 0.4  # from here on both are idle, except for their queued requests
        gate.go.set()
        assert [(r.op, r.sequence_id, code(r)) for r in (reply_of(sock), reply_of(sock))] == [
            ("feed", "a", "ok"),
            ("feed", "b", "ok"),
        ]
    daemon.stop()
    thread.join(10)


def test_a_full_server_closes_no_stream_with_a_request_in_the_socket(
    daemon: Daemon, engine: SpyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "MAX_PENDING", 4)
    monkeypatch.setattr(intake, "SPARE_REQUESTS", 0)
    inner = engine.feed_many

    def feed_many(pairs: Any) -> Any:
        if len(engine.batches) == 1:
            assert sent.wait(10)
            time.sleep(0.5)
            daemon._server.idle_seconds = 0.3  # from here on "b" is idle, but for its request
        return inner(pairs)

    sent = threading.Event()
    with dealer(daemon.address) as sock:
        for name in ("a", "b"):
            assert code(ask(sock, "open", name)) == "ok"
        engine.feed_many = feed_many  # type: ignore[method-assign]
        as_arrived(monkeypatch, 101)
        for i in range(100):
            sock.send_multipart(feed("a", i))
        sock.send_multipart(feed("b", 1))
        sent.set()
        while (reply := reply_of(sock)).sequence_id != "b":
            assert code(reply) == "ok"
        assert (reply.op, code(reply)) == ("feed", "ok")


def test_one_clients_bundled_questions_do_not_delay_others(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = 40
    answered: list[str] = []
    receive = protocol.ServerProtocol.receive

    def spy(self: Any, peer: bytes, frames: list[bytes], now: float, user: str) -> Any:
        answered.append("bundle" if messages.bundled(frames) else "other")
        if answered == ["bundle"]:
            begun.set()
            assert sent.wait(10)  # then all the others are there
            time.sleep(0.2)
        return receive(self, peer, frames, now, user)

    begun, sent = threading.Event(), threading.Event()
    with dealer(daemon.address) as other, dealer(daemon.address) as flood:
        assert code(ask(other, "open", "s")) == "ok"
        monkeypatch.setattr(protocol.ServerProtocol, "receive", spy)
        question = messages.encode_request(messages.Request(v=1, op="stats", id="q"))
        flood.send_multipart(messages.bundle([question] * messages.MAX_BUNDLE))
        assert begun.wait(10)
        other.send_multipart(feed("s", 1))  # before the rest: it arrives early on a slow machine, too
        for _ in range(bundles - 1):
            flood.send_multipart(messages.bundle([question] * messages.MAX_BUNDLE))
        sent.set()
        assert code(reply_of(other)) == "ok"
        assert answered.count("bundle") < bundles / 2


def test_an_idle_stream_is_closed_and_its_client_notified(engine: SpyEngine, address: str) -> None:
    daemon = Daemon(engine, address, idle_seconds=0.3)
    thread, _ = run(daemon)
    assert daemon.started.wait(10)
    with dealer(daemon.address) as sock:
        opened = ask(sock, "open", "a")
        notice = reply_of(sock)
        assert (notice.id, notice.op, notice.sequence_id, notice.epoch) == ("", "close", "a", opened.epoch)
        assert code(notice) == "UNKNOWN_STREAM"
        assert "a" not in engine.streams
        assert "no request for 0.3 s" in ask(sock, "flush", "a").error.message  # type: ignore[union-attr]
    daemon.stop()
    thread.join(10)
