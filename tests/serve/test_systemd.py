"""Notifications to systemd: the messages, the socket, and a real service under a fake systemd."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runnel.daemon.loop import Daemon
from runnel.daemon.settings import Settings, Source
from runnel.daemon.supervision import systemd
from runnel.daemon.supervision.lifecycle import Service
from runnel.daemon.supervision.systemd import Notifier
from runnel.errors import UsageError

from .peers import Gate, ask, dealer, feed, reply_of
from .processes import children, command, observe_nothing
from .support import code, model_pipeline, tally_engine


class Systemd:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.socket.settimeout(20)

    def told(self) -> list[str]:
        """The next datagram's lines."""
        return self.socket.recv(4096).decode().split("\n")

    def told_of(self, line: str) -> list[str]:
        """The next datagram with this line; others are skipped."""
        while True:
            lines = self.told()
            if line in lines:
                return lines

    def hears(self, line: str, within: float) -> bool:
        """Whether a datagram with the line arrives from now on; earlier ones are ignored."""
        self.socket.setblocking(False)
        try:
            while True:
                self.socket.recv(4096)
        except BlockingIOError:
            pass
        self.socket.settimeout(within)
        try:
            self.told_of(line)
            return True
        except TimeoutError:
            return False
        finally:
            self.socket.settimeout(20)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    found = Systemd(f"{tmp_path}/notify" if request.param == "path" else f"@runnel-test-{os.getpid()}")
    with found.socket:
        yield found


def test_messages_follow_sd_notify() -> None:
    assert systemd.status("two\nlines\t of  it") == b"STATUS=two lines of it"
    assert len(systemd.status("x" * 10_000)) == len("STATUS=") + systemd.MAX_STATUS
    assert systemd.reloading(12.3456789) == b"RELOADING=1\nMONOTONIC_USEC=12345678"
    assert systemd.joined(systemd.READY, systemd.status("a")) == b"READY=1\nSTATUS=a"


def test_messages_arrive_and_children_do_not_inherit_the_socket(manager: Systemd) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000000", "PATH": "/bin"}
    with Notifier(environment) as notifier:
        notifier.send(systemd.READY, systemd.status("up"))
        assert manager.told() == ["READY=1", "STATUS=up"]
        assert notifier.watchdog_seconds == 1.5
    assert environment == {"PATH": "/bin"}


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": f"{tmp_path}/nobody"}):
        with Notifier(environment) as notifier:
            notifier.send(systemd.READY)
            assert notifier.watchdog_seconds == 0.0


def test_a_systemd_that_does_not_read_is_not_waited_for(manager: Systemd) -> None:
    with Notifier({"NOTIFY_SOCKET": manager.address}) as notifier:
        for _ in range(10_000):
            notifier.send(systemd.WATCHDOG)


def test_a_watchdog_for_another_process_is_ignored() -> None:
    for pid, expected in ((str(os.getpid()), 1.0), ("1", 0.0)):
        with Notifier({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": pid}) as notifier:
            assert notifier.watchdog_seconds == expected


@pytest.mark.parametrize(
    "environment", [{"NOTIFY_SOCKET": "vsock:2:3"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}]
)
def test_an_invalid_environment_is_an_error(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(environment))):
        Notifier(environment)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_real_service_reports_ready_reload_and_stop(
    manager: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    pipeline = model_pipeline(tmp_path)
    address = f"ipc://{tmp_path}/d.sock"
    with command(str(pipeline), "--bind", address, "--workers", str(workers)) as process:
        ready = manager.told()
        assert ready[0] == "READY=1"
        assert address in ready[1]
        with dealer(address) as sock:
            assert code(ask(sock, "hello")) == "ok"
        assert manager.told_of("WATCHDOG=1")
        before = time.monotonic()
        process.send_signal(signal.SIGHUP)
        reloading = manager.told_of("RELOADING=1")
        assert before <= int(reloading[1].removeprefix("MONOTONIC_USEC=")) / 1e6 + 1e-6 <= time.monotonic()
        assert manager.told_of("READY=1")
        process.send_signal(signal.SIGTERM)
        assert manager.told_of("STOPPING=1")
        assert process.wait(20) == 0


def test_a_stuck_stage_stops_the_watchdog_messages(manager: Systemd, tmp_path: Path) -> None:
    """The messages come from the loop that does all work, so they prove that it runs."""
    engine = tally_engine()
    with (
        Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000"}) as notifier,
        Service(notifier, Source(tmp_path / "m.onnx", {}), Settings(), observe_nothing) as hooks,
    ):
        daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock", hooks=hooks)
        thread = threading.Thread(target=daemon.serve)
        thread.start()
        with dealer(daemon.address) as sock:
            assert code(ask(sock, "open", "a")) == "ok"
            assert manager.hears("WATCHDOG=1", 20), "while it has nothing to do"
            gate = Gate(engine)
            sock.send_multipart(feed("a", 1))
            assert gate.entered.wait(10)
            assert not manager.hears("WATCHDOG=1", 0.5)
            gate.go.set()
            assert code(reply_of(sock)) == "ok"
            assert manager.hears("WATCHDOG=1", 20)
        daemon.stop()
        thread.join(15)
        assert not thread.is_alive()


def test_a_hanging_worker_stops_the_watchdog_messages(
    manager: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    address = f"ipc://{tmp_path}/d.sock"
    with command(str(model_pipeline(tmp_path)), "--bind", address, "--workers", "2") as process:
        manager.told_of("READY=1")
        assert manager.hears("WATCHDOG=1", 20)
        _, stuck = children(process)
        os.kill(stuck, signal.SIGSTOP)
        time.sleep(2)  # its last beat grows old, once the supervisor has read it
        assert not manager.hears("WATCHDOG=1", 1)
        os.kill(stuck, signal.SIGCONT)
        assert manager.hears("WATCHDOG=1", 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
