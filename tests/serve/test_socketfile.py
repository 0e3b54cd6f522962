"""The socket file of an ipc address: of one daemon at a time, private to its owner, removed at the end."""

from __future__ import annotations

import os
import socket
import stat
import time
from pathlib import Path

import pytest

from runnel.client.client import Client
from runnel.daemon import socketfile
from runnel.daemon.loop import Daemon
from runnel.errors import UsageError

from .peers import refusal, run
from .support import tally_engine


def test_only_the_owner_may_use_the_socket_file(tmp_path: Path) -> None:
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
    assert daemon.address in refusal(Daemon(tally_engine(), daemon.address))
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
    assert "no socket" in refusal(Daemon(tally_engine(), f"ipc://{path}"))
    assert path.read_text() == "precious"


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "No such file" in refusal(Daemon(tally_engine(), f"ipc://{tmp_path}/nowhere/d.sock"))


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


def test_a_start_waits_for_another_in_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketfile, "LOCK_SECONDS", 0.1)
    with socketfile.claim(tmp_path / "other.sock"):
        assert "another start" in refusal(Daemon(tally_engine(), f"ipc://{tmp_path}/d.sock"))


def test_one_of_two_simultaneous_starts_serves(tmp_path: Path) -> None:
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
