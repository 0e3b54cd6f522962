"""`runnel feed` gives the output of `runnel run`, through a daemon."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from runnel.cli.main import main
from runnel.cli.socketwait import await_socket
from runnel.daemon.loop import Daemon

from .support import SpyEngine


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "in.npy"
    np.save(path, np.arange(2000, dtype="float32").reshape(1000, 2) % 7)
    return path


@pytest.mark.parametrize("chunk", ["1000", "64", "20ms"])
def test_a_file_goes_through_whole(
    daemon: Daemon, engine: SpyEngine, numbers: Path, tmp_path: Path, chunk: str
) -> None:
    out = tmp_path / "out.npy"
    assert main(["feed", daemon.address, str(numbers), "-o", str(out), "--chunk", chunk, "--quiet"]) == 0
    np.testing.assert_array_equal(np.load(out), np.cumsum(np.load(numbers), axis=0))
    assert not engine.streams


def test_a_failure_leaves_no_file_and_no_stream(
    daemon: Daemon, engine: SpyEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "in.npy", tmp_path / "out.npy"
    values = np.zeros((100, 2), "float32")
    values[50] = -777.0
    np.save(path, values)
    assert main(["feed", daemon.address, str(path), "-o", str(out), "--chunk", "10", "--quiet"]) == 2
    assert "an unlucky number" in capsys.readouterr().err
    assert not out.exists()
    assert not engine.streams


def test_no_daemon_is_a_one_line_error(
    tmp_path: Path, numbers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["feed", f"ipc://{tmp_path}/none.sock", str(numbers), "--timeout", "0.2", "--quiet"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "is the daemon running there" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["feed", "top", "inspect", "bench"])
def test_a_missing_socket_is_an_error_without_a_connection(
    tmp_path: Path,
    numbers: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    """No ZeroMQ context is made, so nothing can wait for one."""
    for name in ("Context", "Poller"):
        monkeypatch.delattr(f"zmq.{name}")
    words = [str(numbers)] if command == "feed" else ["--once"] if command == "top" else []
    words += ["--timeout", "0.01"] if command != "top" else []
    (tmp_path / "file").write_text("")
    for path, says in (
        ("none.sock", "there is no socket"),
        ("file", "is no socket"),
        ("file/x", "there is no"),
    ):
        assert main([command, f"ipc://{tmp_path}/{path}", *words]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("quiet", [False, True])
def test_it_waits_for_a_starting_daemon_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    address, told = f"ipc://{tmp_path}/d.sock", []

    def sleep(_: float) -> None:
        told.append(capsys.readouterr().err)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"{tmp_path}/d.sock")

    monkeypatch.setattr("runnel.cli.socketwait.time.sleep", sleep)
    await_socket(address, 3600.0, quiet)
    (first,) = told
    assert ("there is no socket yet; waiting 3600 s" in first) == (not quiet)
    await_socket("tcp://127.0.0.1:1", 3600.0, False)
    assert len(told) == 1


def test_a_table_at_a_wrong_rate_opens_no_stream(
    daemon: Daemon,
    engine: SpyEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text("time,x.0,x.1\n" + "".join(f"{n / 25},1,2\n" for n in range(50)))
    words = ["feed", daemon.address, f"{path}?time=time", "-o", str(out), "--quiet"]
    assert main(words) == 2
    assert "the rows come at 25 Hz, but the pipeline takes 100 Hz" in capsys.readouterr().err
    assert not out.exists()
    assert not engine.streams
    path.write_text("time,x.0,x.1\n" + "".join(f"{n / 100},1,2\n" for n in range(50)))
    assert main(words) == 0
    assert "'time' is not kept in the output: the pipeline has a latency of" in capsys.readouterr().err
    assert out.read_text().startswith("y.0,")
    monkeypatch.setattr("runnel.cli.feed.step_served", lambda *_: Fraction(1))
    assert main([*words, "--chunk", "7"]) == 0
    header, *rows = (line.split(",") for line in out.read_text().splitlines())
    assert header[0] == "time"
    assert [float(row[0]) for row in rows] == [n / 100 for n in range(50)]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_file_and_no_stream(
    daemon: Daemon, engine: SpyEngine, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    path, out = tmp_path / "in.npy", tmp_path / "out.npy"
    np.save(path, np.zeros((100_000, 2), "float32"))  # 1000 s at 100 Hz
    command = [sys.executable, "-m", "runnel.cli.main", "feed", daemon.address, path, "-o", out]
    process = subprocess.Popen([*command, "--realtime", "--quiet"])
    try:
        deadline = time.monotonic() + 30
        while not (engine.streams and any(s.seq for s in engine.streams.values())):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(30) == status
    finally:
        process.kill()
        process.wait()
    assert not engine.streams
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []


def test_sound_at_another_rate_is_refused(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "in.wav", np.zeros((9, 2), np.float32), 8000)
    assert main(["feed", daemon.address, str(tmp_path / "in.wav"), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert "8000 Hz, but the pipeline takes 100 Hz: convert the file first, for example sox" in err
    assert "or let the pipeline resample" in err


def test_a_live_source_is_answered_at_once_and_ends_cleanly(
    daemon: Daemon, engine: SpyEngine, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "runnel.cli.main", "feed", daemon.address, "lines:-", "-o", "jsonl:"]
    process = subprocess.Popen(
        [*command, "-o", tmp_path / "out.npy", "--quiet"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for n in range(3):  # the first is held back until the second comes
            process.stdin.write("1 1\n")
            assert n == 0 or json.loads(process.stdout.readline()) == {"y": [n, n]}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
    assert np.load(tmp_path / "out.npy")[:, 0].tolist() == [1, 2, 3]
    assert not engine.streams
