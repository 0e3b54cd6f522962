"""`runnel top`: what a frame says, and the command itself, on a terminal and off."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.cli.main import main
from runnel.cli.panel import _BARS, document, duration, frame, number, render, size, sparkline
from runnel.client.monitor import WorkerStatus
from runnel.daemon.protocol.stats import Stats
from runnel.wire.placement import Placement
from tests.serve.workers import Worker, workers


def seen(at: int = 0, streams: int = 4, **counted: Any) -> WorkerStatus:
    """A worker that has done what `counted` says."""
    stats = Stats()
    for name, value in counted.items():
        if name in ("latency", "batch_sizes"):
            for one in value:
                getattr(stats, name).observe(one)
        elif isinstance(value, dict):
            getattr(stats, name).update(value)
        else:
            setattr(stats, name, value)
    laid = stats.document() | {
        "boot_id": "b",
        "streams": streams,
        "max_streams": 64,
        "resident_bytes": 3 << 20,
    }
    return WorkerStatus(f"ipc:///w{at}", None, laid)


BUSY = {
    "chunks": 4000, "requests": {"feed": 4000, "open": 4}, "errors": {"GAP": 8},
    "latency": [1e-3] * 99 + [0.1], "batch_sizes": [2.0, 4.0],
}  # fmt: skip


def test_a_frame_says_what_happened_in_the_interval() -> None:
    shown = frame("ipc:///d", [seen()], [seen(**BUSY)], 2.0, [1000.0, 500.0])
    head, row = render(shown, 120)[2:4]
    cells = dict(zip(head.split(), row.split(), strict=True))
    assert cells == {
        "worker": "0", "streams": "4/64", "steps/s": "2k", "req/s": "2k", "fill": "3.0",
        "p50": cells["p50"], "p90": cells["p90"], "p99": cells["p99"],
        "queue": "0", "mem": "3M", "cpu": "0%", "err/s": "4",
    }  # fmt: skip
    text = "\n".join(render(shown, 120))
    assert "▅▃█  most 2k" in text
    assert "errors    GAP 4/s" in text
    assert shown.history == [1000.0, 500.0, 2000.0]


def test_each_stage_says_what_it_takes() -> None:
    before, after = seen(), seen()
    for look, spent, chunks in ((before, (1.0, 2.0), 5), (after, (1.0001, 2.5), 105)):
        assert isinstance(look.stats, dict)
        names = ("0: gain", "1: vad")
        look.stats["stage_seconds"] = dict(zip(names, spent, strict=True))
        look.stats["stage_chunks"] = dict.fromkeys(names, chunks)
    shown = frame("ipc:///x", [before], [after], 2.0)
    assert "stages    0: gain  1µs a chunk, 0% | 1: vad  5ms a chunk, 25%" in render(shown, 100)
    assert render(shown, 40)[-2:] == [
        "stages    0: gain  1µs a chunk, 0%",
        "          1: vad  5ms a chunk, 25%",
    ]
    told = document(shown)["all"]
    assert told["stages"]["1: vad"] == pytest.approx(0.25)


def test_streams_whose_state_is_not_well_are_told_with_its_figures() -> None:
    before, after = seen(), seen()
    for look, looks, total in ((before, 10, 5.0), (after, 30, 45.0)):
        assert isinstance(look.stats, dict)
        histogram = {"bounds": [1.0], "counts": [looks, 0], "sum": total}
        added: dict[str, Any] = {
            "looks": looks, "unhealthy": {"died": 2, "blown_up": 0}, "non_finite": {"m.h": looks},
            "state_rms": {"m.h": histogram}, "state_distance": {"m.h": histogram | {"sum": total / 2}},
            "gate_units": {"m.l.f": 64 * looks}, "gate_units_shut": {"m.l.f": 16 * looks},
            "gate_units_open": {"m.l.f": 0},
        }  # fmt: skip
        look.stats.update(added)
    shown = frame("ipc:///x", [before], [after], 2.0)
    assert render(shown, 150)[-1] == (
        "health    2 died | m.h  non-finite 10/s | m.h  rms 2, 1 from its start | m.l.f  shut 25%, open 0%"
    )
    assert document(shown)["all"]["unhealthy"] == {"died": 2, "blown_up": 0}
    looks = [[look, WorkerStatus("ipc:///w1", None, look.stats)] for look in (before, after)]
    both = frame("ipc:///x", *looks, 2.0)
    assert "health    4 died" in render(both, 30)
    assert "health" not in "\n".join(render(frame("ipc:///x", [seen()], [seen()], 2.0)))


def test_several_workers_have_a_row_for_all() -> None:
    before, after = [seen(0), seen(1)], [seen(0, **BUSY), seen(1, **BUSY)]
    lines = render(frame("ipc:///d", before, after, 2.0), 120)
    assert [line.split()[0] for line in lines[2:6]] == ["worker", "0", "1", "all"]
    assert lines[5].split()[1:4] == ["8/128", "4k", "4k"]


def test_a_worker_that_does_not_answer_is_said_to_be_tried() -> None:
    gone = WorkerStatus("ipc:///w1", error="no answer from ipc:///w1 within 2 s")
    shown = frame("ipc:///d", [seen(0), seen(1)], [seen(0, **BUSY), gone], 1.0)
    lines = render(shown, 120)
    assert lines[4].split(maxsplit=1) == ["1", "trying: no answer from ipc:///w1 within 2 s"]
    assert document(shown)["workers"][1] == {"address": "ipc:///w1", "error": gone.error}
    assert document(shown)["all"]["steps"] == 4000
    nobody = frame("ipc:///d", [], [gone], 1.0)
    assert "trying" in "\n".join(render(nobody))
    assert document(nobody)["all"] is None


def test_a_worker_that_came_back_counts_from_its_new_start() -> None:
    before = seen(**BUSY)
    assert before.stats
    before.stats["boot_id"] = "an earlier one"
    shown = frame("ipc:///d", [before], [seen(chunks=10)], 1.0)
    assert shown.all
    assert shown.all.steps == 10


@given(
    st.integers(1, 200), st.integers(1, 40), st.integers(1, 5), st.floats(1e-3, 1e4),
    st.lists(st.floats(0, 1e9), max_size=300), st.integers(0, 10**12),
)  # fmt: skip
def test_a_frame_fits_any_terminal(
    width: int, height: int, many: int, seconds: float, history: list[float], chunks: int
) -> None:
    before = [seen(at) for at in range(many)]
    after = [seen(at, streams=chunks, **{**BUSY, "chunks": chunks}) for at in range(many)]
    lines = render(frame("ipc:///d", before, after, seconds, history), width, height)
    assert len(lines) <= height
    assert all(len(line) <= width and line.isprintable() for line in lines)


def test_nothing_that_a_daemon_says_reaches_the_terminal_as_control() -> None:
    evil = WorkerStatus("ipc:///w0", error="LIMIT: \x1b[2J\n\u202e")
    text = render(frame("ipc:///d", [], [evil], 1.0))
    assert all(line.isprintable() for line in text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (12.345, "12.3"), (999, "999"), (999.7, "1k"), (24310, "24.3k"),
     (1.2e6, "1.2M"), (999.9e6, "1G"), (5e16, "50000T")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_sizes_and_durations() -> None:
    assert [size(v) for v in (0, 512, 1024, 12.5 * 2**20, 3 * 2**40)] == ["0", "512B", "1K", "12.5M", "3T"]
    assert [duration(v) for v in (None, 85e-6, 1.25e-3, 0.9999, 9.3)] == ["-", "85µs", "1.25ms", "1s", "9.3s"]


@given(st.lists(st.floats(0, 1e9), max_size=50), st.integers(1, 40))
def test_a_sparkline_has_the_order_of_its_values(values: list[float], width: int) -> None:
    bars = sparkline(values, width)
    last = values[-width:]
    assert len(bars) == len(last)
    for (one, bar), (other, next_bar) in pairwise(zip(last, bars, strict=True)):
        assert _BARS.index(bar) <= _BARS.index(next_bar) if one <= other else True
        assert _BARS.index(bar) >= _BARS.index(next_bar) if one >= other else True
    if last and max(last) > 0:
        assert bars[last.index(max(last))] == "█"


# The command.


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with workers(tmp_path, ("a",)) as (made,):
        yield made


def test_once_prints_a_frame(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", worker.address, "--once", "--interval", "0.1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"runnel top  {worker.address}")
    assert "0/1024" in out
    assert "\x1b" not in out


def test_once_with_nobody_there_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runnel.cli.top.ANSWER_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as left:  # by a daemon that was killed
        left.bind(f"{tmp_path}/no.sock")
    assert main(["top", f"ipc://{tmp_path}/no.sock", "--once"]) == 2
    assert "no reply from ipc://" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["somewhere", "--once"], "address 'somewhere'"),
        (["ipc:///x", "--once", "--interval", "0"], "--interval"),
        (["ipc:///x", "--once", "--interval", "nan"], "--interval"),
        (["ipc:///x"], "no terminal: use --once, or --json"),
    ],
)
def test_what_cannot_be_watched(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", *words]) == 2
    assert message in capsys.readouterr().err


def command(address: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "runnel.cli.main", "top", address, "--interval", "0.1", *words]


def test_json_is_a_line_an_interval_over_a_restart(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/w.sock"
    worker = Worker(address, Placement(0, [address]), "a")
    process = subprocess.Popen(command(address, "--json"), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        first = json.loads(process.stdout.readline())
        assert first["all"]["streams"] == 0
        assert first["seconds"] >= 0.1
        worker.end()
        while not json.loads(process.stdout.readline())["workers"][0]["error"]:
            pass
        worker = Worker(address, Placement(0, [address]), "b")
        while json.loads(process.stdout.readline())["all"] is None:
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
        worker.end()


class Terminal:
    """A pseudo-terminal with a command on it."""

    def __init__(self, words: list[str], columns: int = 100, lines: int = 30) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self.slave)
        self.shown = ""
        self.process = subprocess.Popen(
            words, stdin=self.slave, stdout=self.slave, stderr=self.slave,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, pattern: str, since: int = 0) -> int:
        """Read until it has shown this; where in `shown` that ends."""
        deadline = time.monotonic() + 30
        while not (match := re.compile(pattern, re.S).search(self.shown, since)):
            assert time.monotonic() < deadline, self.shown[-2000:]
            if select.select([self.master], [], [], 1)[0]:
                self.shown += os.read(self.master, 65536).decode("utf-8", "replace")
        return match.end()

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def ended(self, status: int) -> None:
        """It ends with this status, and the terminal is as it was."""
        self.until(r"\x1b\[\?25h\x1b\[\?1049l")
        assert self.process.wait(20) == status
        assert termios.tcgetattr(self.slave) == self.before


@contextmanager
def terminal(address: str, **size: int) -> Iterator[Terminal]:
    made = Terminal(command(address), **size)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.master)
        os.close(made.slave)


@pytest.mark.parametrize(
    ("leave", "status"), [(b"q", 0), (b"\x03", 0), (signal.SIGTERM, 143)], ids=["q", "ctrl-c", "sigterm"]
)
def test_any_way_out_gives_the_terminal_back(worker: Worker, leave: Any, status: int) -> None:
    with terminal(worker.address) as screen:
        at = screen.until(r"\x1b\[\?1049h\x1b\[\?25l")
        screen.until(r"0/1024", at)
        assert termios.tcgetattr(screen.slave) != screen.before
        screen.press(leave) if isinstance(leave, bytes) else screen.process.send_signal(leave)
        screen.ended(status)


def test_it_goes_on_over_a_restart_and_a_resize(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/w.sock"
    with terminal(address) as screen:
        at = screen.until("trying: no answer from")
        worker = Worker(address, Placement(0, [address]), "a")
        at = screen.until("0/1024", at)
        worker.end()
        at = screen.until("trying: no answer from", at)
        worker = Worker(address, Placement(0, [address]), "b")
        at = screen.until("0/1024", at)
        screen.resize(40, 5)
        at = screen.until(r"\x1b\[H", at)  # one may be under way in the old size; the next is not
        at = begin = screen.until(r"\x1b\[H", at)
        at = screen.until(r"\x1b\[H", at)
        drawn = re.sub(r"\x1b\[[HJK]|\r", "", screen.shown[begin:at]).split("\n")
        assert len(drawn) == 5
        assert max(map(len, drawn)) == 40
        worker.end()
        screen.press(b"q")
        screen.ended(0)


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(worker: Worker) -> None:
    with terminal(worker.address) as screen:
        at = screen.until("0/1024")
        screen.press(b"\x1a")
        at = screen.until(r"\x1b\[\?25h\x1b\[\?1049l", at)
        assert os.WIFSTOPPED(os.waitpid(screen.process.pid, os.WUNTRACED)[1])
        assert termios.tcgetattr(screen.slave) == screen.before
        screen.process.send_signal(signal.SIGCONT)
        at = screen.until(r"\x1b\[\?1049h\x1b\[\?25l", at)
        at = screen.until("0/1024", at)
        screen.press(b"q")
        screen.until(r"\x1b\[\?1049l", at)
        assert screen.process.wait(20) == 0
