"""The daemon with real sockets: batching, bounds of what it reads, its socket file, its end."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from runnel.errors import RunnelError, UsageError
from runnel.serve import daemon as daemon_module
from runnel.serve import protocol, wire
from runnel.serve.client import Client
from runnel.serve.daemon import Daemon
from runnel.serve.tensors import pack

from .support import SpyEngine, code, rows, tally_engine


@contextmanager
def dealer(address: str, queued: int = 1000) -> Iterator[zmq.Socket[bytes]]:
    sock = zmq.Context.instance().socket(zmq.DEALER)
    sock.linger = 0
    sock.rcvhwm = queued
    sock.connect(address)
    try:
        yield sock
    finally:
        sock.close()


def reply_of(sock: zmq.Socket[bytes], within: int = 10_000) -> wire.Reply:
    assert sock.poll(within), "no reply"
    return wire.decode_reply(sock.recv_multipart())[0]


def feed(stream: str, value: float, **fields: Any) -> list[bytes]:
    infos, buffers = pack({"x": rows(value)})
    header = wire.Request(v=1, op="feed", sequence_id=stream, inputs=infos, **fields)
    return wire.encode_request(header, buffers)


def ask(sock: zmq.Socket[bytes], op: Any, stream: str = "") -> wire.Reply:
    sock.send_multipart(wire.encode_request(wire.Request(v=1, op=op, sequence_id=stream)))
    return reply_of(sock)


class Gate:
    """Holds the engine inside its next batch, so that the test can let more arrive."""

    def __init__(self, engine: SpyEngine) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        inner = engine.feed_many

        def feed_many(pairs: Any) -> Any:
            self.entered.set()
            assert self.go.wait(10)
            return inner(pairs)

        engine.feed_many = feed_many  # type: ignore[method-assign]


def test_what_arrives_during_a_batch_is_the_next_batch(daemon: Daemon, engine: SpyEngine) -> None:
    with dealer(daemon.address) as sock:
        names = [f"s{i}" for i in range(20)]
        for name in ["first", *names]:
            assert code(ask(sock, "open", name)) == "ok"
        gate = Gate(engine)
        sock.send_multipart(feed("first", 1))
        assert gate.entered.wait(10)
        for name in names:
            sock.send_multipart(feed(name, 1))
        time.sleep(0.2)  # until they are in the daemon's queue
        gate.go.set()
        assert [code(reply_of(sock)) for _ in range(21)] == ["ok"] * 21
    assert engine.batches == [1, 20]


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"", b"\x81\xa1v\x01"],
        [b"GET / HTTP/1.1"],
        [b"x" * (wire.MAX_HEADER + 1)],
        [b"x"] * 500,
        [bytes(wire.MAX_TENSOR_BYTES)] * 5,
    ],
)
def test_any_message_gets_a_typed_error_and_the_daemon_lives(daemon: Daemon, frames: list[bytes]) -> None:
    with dealer(daemon.address) as sock:
        sock.send_multipart(frames)
        assert code(reply_of(sock)) in ("BAD_MESSAGE", "TOO_LARGE")
        assert code(ask(sock, "hello")) == "ok"


def test_of_frames_without_end_only_what_a_message_holds_is_kept(daemon: Daemon) -> None:
    with dealer(daemon.address) as sock, pytest.MonkeyPatch.context() as patch:
        seen: list[int] = []
        receive = protocol.Server.receive

        def spy(self: Any, peer: bytes, frames: list[bytes], now: float) -> Any:
            seen.append(len(frames))
            return receive(self, peer, frames, now)

        patch.setattr(protocol.Server, "receive", spy)
        sock.send_multipart([b"x"] * 3000)
        assert code(reply_of(sock)) == "BAD_MESSAGE"
        assert seen == [wire.MAX_TENSORS + 2]


def test_a_frame_past_the_bound_ends_its_connection_and_no_other(daemon: Daemon) -> None:
    with dealer(daemon.address) as good, dealer(daemon.address) as bad:
        assert code(ask(bad, "hello")) == "ok"
        bad.send_multipart([b"x", bytes(wire.MAX_TENSOR_BYTES + 1)])
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


def test_a_peer_that_is_gone_costs_its_replies_and_nothing_else(daemon: Daemon, engine: SpyEngine) -> None:
    with Client(daemon.address) as client:
        stream = client.open("a")
        gate = Gate(engine)
        with dealer(daemon.address) as sock:
            sock.send_multipart(feed("b", 1, sequence_start=True))
            assert gate.entered.wait(10)
        time.sleep(0.2)  # until the daemon's side has seen it go
        gate.go.set()
        assert len(stream.feed(rows(1))) == 0
    assert daemon.dropped == 1
    assert engine.streams["b"].seq == 1


def test_a_peer_that_does_not_read_is_bounded_and_slows_no_other(
    engine: SpyEngine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "QUEUED_REPLIES", 10)
    daemon = Daemon(engine, address)
    thread, _ = run(daemon)
    assert daemon.started.wait(10)
    with dealer(daemon.address, queued=1) as deaf, Client(daemon.address) as client:
        hello = wire.encode_request(wire.Request(v=1, op="hello"))
        for _ in range(20_000):
            deaf.send_multipart(hello)
        stream = client.open("a")
        stream.feed(rows(1))
        deadline = time.monotonic() + 10
        while not daemon.dropped and time.monotonic() < deadline:
            time.sleep(0.01)
        assert daemon.dropped
        assert stream.flush().tolist() == [[1, 1]]
    daemon.stop()
    thread.join(10)


def test_a_full_server_is_not_handed_more(
    daemon: Daemon, engine: SpyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_PENDING", 10)
    with dealer(daemon.address) as sock:
        assert code(ask(sock, "open", "a")) == "ok"
        for i in range(200):
            sock.send_multipart(feed("a", i))
        assert [code(reply_of(sock)) for _ in range(200)] == ["ok"] * 200


def test_a_peer_that_connects_and_says_nothing_is_cut_off(
    engine: SpyEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "HANDSHAKE_MS", 100)
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread, _ = run(daemon)
    assert daemon.started.wait(10)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(tmp_path / "d.sock"))
        silent.settimeout(5)
        while silent.recv(100):  # the daemon's greeting, then the end
            pass
    daemon.stop()
    thread.join(10)


# Its end.


def run(daemon: Daemon) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def target() -> None:
        try:
            results.append(daemon.serve())
        except RunnelError as error:
            results.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    return thread, results


def test_told_to_stop_it_answers_what_arrived(tmp_path: Path) -> None:
    engine = tally_engine()
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread, results = run(daemon)
    assert daemon.started.wait(10)
    with dealer(daemon.address) as sock:
        assert code(ask(sock, "open", "a")) == "ok"
        gate = Gate(engine)
        sock.send_multipart(feed("a", 0))
        assert gate.entered.wait(10)
        for i in range(50):
            sock.send_multipart(feed("a", i))
        time.sleep(0.2)
        daemon.stop()
        gate.go.set()
        assert [reply_of(sock).applied_seq for _ in range(51)] == list(range(1, 52))
        thread.join(10)
    assert results == [True]
    assert not (tmp_path / "d.sock").exists()
    assert engine.streams["a"].seq == 51


def test_told_twice_it_stops_at_once(tmp_path: Path) -> None:
    engine = tally_engine()
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread, results = run(daemon)
    assert daemon.started.wait(10)
    with dealer(daemon.address) as sock:
        assert code(ask(sock, "open", "a")) == "ok"
        gate = Gate(engine)
        for i in range(50):
            sock.send_multipart(feed("a", i))
        assert gate.entered.wait(10)
        time.sleep(0.2)
        daemon.stop()
        daemon.stop()
        gate.go.set()
        thread.join(10)
    assert results == [False]
    assert engine.streams["a"].seq < 50
    assert not (tmp_path / "d.sock").exists()


def test_it_does_not_finish_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(daemon_module, "FINISH_SECONDS", 0.0)
    engine = tally_engine()
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread, results = run(daemon)
    assert daemon.started.wait(10)
    with dealer(daemon.address) as sock:
        assert code(ask(sock, "open", "a")) == "ok"
        gate = Gate(engine)
        for i in range(50):
            sock.send_multipart(feed("a", i))
        assert gate.entered.wait(10)
        time.sleep(0.2)
        daemon.stop()
        gate.go.set()
        thread.join(10)
    assert results == [False]


def test_stop_may_come_before_the_start_and_after_the_end(tmp_path: Path) -> None:
    daemon = Daemon(tally_engine(), f"ipc://{tmp_path}/d.sock")
    daemon.stop()
    thread, results = run(daemon)
    thread.join(10)
    assert results == [True]
    daemon.stop()


# Its socket file.


def test_the_socket_file_is_the_owners_alone(tmp_path: Path) -> None:
    daemon = Daemon(tally_engine(), f"ipc://{tmp_path}/d.sock")
    before = os.umask(0o022)
    os.umask(before)
    thread, _ = run(daemon)
    assert daemon.started.wait(10)
    assert stat.S_IMODE((tmp_path / "d.sock").stat().st_mode) == 0o600
    assert os.umask(before) == before
    daemon.stop()
    thread.join(10)


def test_a_live_daemons_address_is_refused_and_stays_its_own(daemon: Daemon) -> None:
    _, results = thread_results = run(Daemon(tally_engine(), daemon.address))
    thread_results[0].join(10)
    assert isinstance(results[0], UsageError)
    assert daemon.address in results[0].message
    with Client(daemon.address) as client:
        client.open("still here")


def test_a_dead_daemons_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    daemon = Daemon(tally_engine(), f"ipc://{path}")
    thread, results = run(daemon)
    assert daemon.started.wait(10)
    with Client(daemon.address) as client:
        client.open()
    daemon.stop()
    thread.join(10)
    assert results == [True]


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    path.write_text("precious")
    with pytest.raises(UsageError, match="no socket"):
        Daemon(tally_engine(), f"ipc://{path}").serve()
    assert path.read_text() == "precious"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Daemon(tally_engine(), f"ipc://{tmp_path}/nowhere/d.sock").serve()


def test_a_socket_file_that_another_took_over_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    daemon = Daemon(tally_engine(), f"ipc://{path}")
    thread, _ = run(daemon)
    assert daemon.started.wait(10)
    path.unlink()
    path.write_text("another's")
    daemon.stop()
    thread.join(10)
    assert path.read_text() == "another's"


def test_of_two_starts_at_once_one_serves(tmp_path: Path) -> None:
    daemons = [Daemon(tally_engine(), f"ipc://{tmp_path}/d.sock") for _ in range(4)]
    started = [run(daemon) for daemon in daemons]
    deadline = time.monotonic() + 10
    while sum(bool(results) for _, results in started) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    refused = [results[0] for _, results in started if results]
    assert [type(error) for error in refused] == [UsageError] * 3
    for daemon in daemons:
        daemon.stop()
    for thread, _ in started:
        thread.join(10)
    assert sum(results == [True] for _, results in started) == 1
