"""The limit of open files: a daemon that is at it lives, serves who is there, and lets in who comes later."""

from __future__ import annotations

import os
import resource
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from runnel.client.client import Client
from runnel.daemon import process
from runnel.daemon.loop import Daemon

from . import raw
from .logfmt import events
from .processes import limited, ready
from .support import model_pipeline, rows

LIMIT = 256  # descriptors of the daemon
CROWD = 500  # connections: about twice as many


@pytest.fixture(autouse=True)
def _room_for_the_crowd() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def crowd(address: str) -> Iterator[int]:
    """Many connections that all went through the handshake, as far as they are taken; how many were made."""
    made: list[socket.socket] = []
    ended = time.monotonic() + 10
    for _ in range(CROWD):
        if time.monotonic() > ended:
            break
        one = socket.socket(socket.AF_INET if address.startswith("tcp") else socket.AF_UNIX)
        one.settimeout(5)
        try:
            if address.startswith("tcp"):
                one.connect(("127.0.0.1", int(address.rpartition(":")[2])))
            else:
                one.setblocking(False)
                one.connect(address.removeprefix("ipc://"))
            one.sendall(raw.greeting() + raw.ready())
        except OSError:
            one.close()
            time.sleep(0.002)  # until some of those before are in
        else:
            made.append(one)
    try:
        yield len(made)
    finally:
        for one in made:
            one.close()


def processor_seconds(pid: int) -> float:
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_crowd_at_the_limit_hurts_nobody(tmp_path: Path, transport: str) -> None:
    bind = f"ipc://{tmp_path}/d.sock" if transport == "ipc" else "tcp://127.0.0.1:*"
    with limited(LIMIT, str(model_pipeline(tmp_path)), "--bind", bind) as daemon:
        address = ready(daemon)
        with Client(address, timeout=30) as old, old.open("old") as stream:
            assert stream.feed(rows(1)).tolist() == [[1, 1]]
            for _ in range(2):
                with crowd(address) as made:
                    assert made > 20
                    patient = time.monotonic() + 30
                    while len(os.listdir(f"/proc/{daemon.pid}/fd")) < LIMIT // 2:
                        assert time.monotonic() < patient
                        time.sleep(0.01)  # until they are in
                    before, began = processor_seconds(daemon.pid), time.monotonic()
                    while time.monotonic() - began < 1:
                        stream.feed(rows(0))
                        time.sleep(0.02)
                    spent = processor_seconds(daemon.pid) - before
                    assert spent < 0.5 * (time.monotonic() - began), "it spins"
                    assert len(os.listdir(f"/proc/{daemon.pid}/fd")) < LIMIT
                with Client(address, timeout=60) as new, new.open() as later:
                    assert later.feed(rows(2)).tolist() == [[2, 2]]
            assert stream.feed(rows(1)).tolist() == [[2, 2]]
        daemon.terminate()
        assert daemon.wait(30) == 0
        assert daemon.stderr
        told = [line["event"] for line in events(daemon.stderr.read())]
    if transport == "ipc":
        assert "open files at their limit" in told
        assert "new connections are taken again" in told


def test_a_limit_without_room_for_clients_is_told_at_the_start(tmp_path: Path) -> None:
    with limited(24, str(model_pipeline(tmp_path)), "--bind", f"ipc://{tmp_path}/d.sock") as daemon:
        _, told = daemon.communicate(timeout=30)
    assert daemon.returncode == 2
    assert "the limit of open files, 24, leaves no room for clients" in told


def test_the_name_is_always_there_with_the_mode_that_it_was_given(daemon: Daemon) -> None:
    if not daemon.address.startswith("ipc"):
        pytest.skip("tcp has no file")
    path = Path(daemon.address.removeprefix("ipc://"))
    path.chmod(0o660)
    files = set()
    for _ in range(20):
        with raw.shaken(daemon.address):
            now = path.stat()
        assert stat.S_IMODE(now.st_mode) == 0o660
        files.add(now.st_ino)
    assert len(files) > 1, "each was let in through a socket of its own"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_clients_that_come_and_go_leave_no_descriptors(daemon: Daemon) -> None:
    def visit() -> None:
        with raw.shaken(daemon.address):
            pass

    for _ in range(3):
        visit()
    before = process.open_files()
    with raw.shaken(daemon.address):  # stays while others come and go, and is not cut off by them
        for _ in range(40):
            visit()
    deadline = time.monotonic() + 30
    while process.open_files() > before + 5 and time.monotonic() < deadline:
        visit()
    assert process.open_files() <= before + 5


def test_a_client_that_stays_is_not_cut_off_when_others_go(daemon: Daemon) -> None:
    with Client(daemon.address, timeout=30) as client, client.open() as stream:
        watched: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        watched.linger = 0
        seen = watched.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        watched.connect(daemon.address)
        for _ in range(30):
            with raw.shaken(daemon.address):
                stream.feed(rows(1))
        assert not seen.poll(200)
        watched.disable_monitor()
        seen.close(linger=0)
        watched.close()
