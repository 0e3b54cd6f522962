"""How a daemon stops: it answers what arrived, within bounds, and leaves nothing behind."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from runnel.daemon import loop as daemon_module
from runnel.daemon.loop import Daemon

from .peers import Gate, as_arrived, ask, dealer, feed, reply_of, run, until
from .support import code, tally_engine


def test_stop_answers_what_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tally_engine()
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread, results = run(daemon)
    assert daemon.started.wait(10)
    with dealer(daemon.address) as sock:
        assert code(ask(sock, "open", "a")) == "ok"
        gate = Gate(engine)
        sock.send_multipart(feed("a", 0))
        assert gate.entered.wait(10)
        as_arrived(monkeypatch, 50)
        for i in range(50):
            sock.send_multipart(feed("a", i))
        daemon.stop()
        gate.go.set()
        assert [reply_of(sock).applied_seq for _ in range(51)] == list(range(1, 52))
        thread.join(10)
    assert results == [True]
    assert not (tmp_path / "d.sock").exists()
    assert engine.streams["a"].seq == 51


def test_a_second_stop_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tally_engine()
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread, results = run(daemon)
    assert daemon.started.wait(10)
    with dealer(daemon.address) as sock:
        assert code(ask(sock, "open", "a")) == "ok"
        gate = Gate(engine)
        sock.send_multipart(feed("a", 0))
        assert gate.entered.wait(10)
        as_arrived(monkeypatch, 49)
        for i in range(1, 50):
            sock.send_multipart(feed("a", i))
        daemon.stop()
        daemon.stop()
        gate.go.set()
        thread.join(10)
    assert results == [False]
    assert engine.streams["a"].seq < 50
    assert not (tmp_path / "d.sock").exists()


def test_stopping_is_bounded_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(daemon_module, "FINISH_SECONDS", 0.0)
    engine = tally_engine()
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread, results = run(daemon)
    assert daemon.started.wait(10)
    with dealer(daemon.address) as sock:
        assert code(ask(sock, "open", "a")) == "ok"
        gate = Gate(engine)
        sock.send_multipart(feed("a", 0))
        assert gate.entered.wait(10)
        as_arrived(monkeypatch, 49)
        for i in range(1, 50):
            sock.send_multipart(feed("a", i))
        daemon.stop()
        gate.go.set()
        thread.join(10)
    assert results == [False]


def test_a_large_reply_still_leaves_when_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "SETTLE_SECONDS", 0.0)
    engine = tally_engine()
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread, results = run(daemon)
    assert daemon.started.wait(10)
    with dealer(daemon.address) as sock:
        assert code(ask(sock, "open", "a")) == "ok"
        gate = Gate(engine)
        sock.send_multipart(feed("a", *[1.0] * 2**20))
        assert gate.entered.wait(10)
        daemon.stop()
        gate.go.set()
        assert reply_of(sock).outputs[0].shape == [2**20 - 1, 2]
        thread.join(10)
    assert results == [True]


def test_requests_arriving_at_the_stop_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "SETTLE_SECONDS", 60.0)  # until it is told a second time
    daemon = Daemon(tally_engine(), f"ipc://{tmp_path}/d.sock")
    thread, _ = run(daemon)
    assert daemon.started.wait(10)
    with dealer(daemon.address) as sock:
        assert code(ask(sock, "hello")) == "ok"
        daemon.stop()
        until(lambda: daemon._stops)
        assert code(ask(sock, "open", "a")) == "ok"
        daemon.stop()
        sock.send_multipart(feed("a", 0))  # it looks whether it was told when something arrives
        thread.join(10)
    assert not thread.is_alive()


def test_later_requests_are_refused_while_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "SETTLE_SECONDS", 0.0)
    engine = tally_engine()
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread, results = run(daemon)
    assert daemon.started.wait(10)
    with dealer(daemon.address) as sock, dealer(daemon.address) as late:
        assert code(ask(sock, "open", "a")) == code(ask(late, "hello")) == "ok"
        gate = Gate(engine)
        sock.send_multipart(feed("a", 0))
        assert gate.entered.wait(10)
        as_arrived(monkeypatch, 49)
        for i in range(1, 50):
            sock.send_multipart(feed("a", i))
        stop, finishing = daemon._server.stop, threading.Event()

        def stopped() -> None:
            stop()
            as_arrived(monkeypatch, 1)  # while it finishes
            finishing.set()

        monkeypatch.setattr(daemon._server, "stop", stopped)
        daemon.stop()
        gate.go.set()
        assert finishing.wait(30)
        assert code(ask(late, "open", "b")) == "SHUTDOWN"
        assert [code(reply_of(sock)) for _ in range(50)] == ["ok"] * 50
        thread.join(10)
    assert results == [True]


def test_stop_may_come_before_the_start_and_after_the_end(tmp_path: Path) -> None:
    daemon = Daemon(tally_engine(), f"ipc://{tmp_path}/d.sock")
    daemon.stop()
    thread, results = run(daemon)
    thread.join(10)
    assert results == [True]
    daemon.stop()
