"""Live runs, as they are typed: rows at once, Ctrl-C as a good end, bounds, and the pace of a time column."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from runnel.cli.pace import Stopper, limited, paced
from tests.cli.test_ends import runnel_run
from tests.cli.test_progress import Clock
from tests.cli.test_run import STATE, leaky


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    leaky(tmp_path / "leaky.onnx", 2)
    path = tmp_path / "leaky.toml"
    path.write_text('[model]\npath = "leaky.onnx"\nrate = 100.0\n' + STATE.format(width=2))
    return path


@pytest.fixture
def started(pipeline: Path):
    made = []

    def start(*words: object, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
        command = [*prefix, sys.executable, "-m", "runnel.cli.main", "run", str(pipeline)]
        made.append(
            subprocess.Popen(
                [*command, *map(str, words), "--quiet"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        )
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_live_run_well(started, tmp_path: Path, number: int) -> None:
    """Each line is answered at once; then the end: status 0, and the file is there, whole."""
    process = started("lines:-", "-o", "jsonl:", "-o", tmp_path / "out.npy")
    for n in range(3):
        process.stdin.write(f"{n} {n}\n")
        assert json.loads(process.stdout.readline())["y"][0] == pytest.approx([0, 1, 2.5][n])
    assert not (tmp_path / "out.npy").exists()
    process.send_signal(number)
    process.stdin.flush()
    assert process.wait(30) == 0
    assert process.stderr.read() == ""
    assert np.load(tmp_path / "out.npy")["peak"].tolist() == [0, 1, 2.5]


def test_ctrl_c_does_not_stop_a_background_job_but_sigterm_does(started, tmp_path: Path) -> None:
    """A shell starts its background jobs with SIGINT ignored: Ctrl-C is meant for the job in front."""
    deaf = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")
    process = started("lines:-", "-o", "jsonl:", "-o", tmp_path / "out.npy", prefix=deaf)
    for n in range(2):
        process.stdin.write(f"{n} {n}\n")
        assert json.loads(process.stdout.readline())["y"][0] == pytest.approx([0, 1][n])
        process.send_signal(signal.SIGINT)
    process.stdin.write("2 2\n")
    assert json.loads(process.stdout.readline())["y"][0] == pytest.approx(2.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert np.load(tmp_path / "out.npy")["peak"].tolist() == [0, 1, 2.5]


def test_the_end_of_a_pipe_is_an_end(started, tmp_path: Path) -> None:
    process = started("raw:", "-o", tmp_path / "out.csv")
    process.stdin.buffer.write(np.ones((4, 2), "<f4").tobytes())
    process.stdin.close()
    process.stdin = None
    assert process.wait(30) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 5


def test_a_live_run_that_fails_keeps_what_it_made(started, tmp_path: Path) -> None:
    process = started("lines:-?malformed=refuse", "-o", tmp_path / "out.csv")
    process.stdin.write("1 2\n")
    process.stdin.write("what\n")
    assert process.wait(30) == 2
    assert "line 2: 'what': 1 numbers, not 2" in process.stderr.read()
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2


def test_so_long_by_the_clock_though_nothing_comes(pipeline: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.csv")
    holder = os.open(tmp_path / "in.csv", os.O_RDWR)  # a writer that says nothing
    began = time.monotonic()
    assert runnel_run(pipeline, f"lines:{tmp_path}/in.csv", "-o", tmp_path / "out.csv", "--for", "300ms") == 0
    assert 0.3 <= time.monotonic() - began < 60, "the writer says nothing for ever"
    os.close(holder)
    assert (tmp_path / "out.csv").read_text() == "y.0,y.1,peak\n"
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_steps_of_a_live_source_end_without_waiting_for_more(
    pipeline: Path,
    tmp_path: Path,
) -> None:
    runnel_run(pipeline, "host:?rate=100", "-o", tmp_path / "out.npy", "--steps", 3)
    assert len(np.load(tmp_path / "out.npy")) == 3


def test_a_second_signal_interrupts_at_once() -> None:
    with Stopper(True, None) as stopper:
        signal.raise_signal(signal.SIGINT)  # not while it waits: the chunk at hand is finished
        assert list(stopper.watch(iter([{}]))) == []
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Stopper(False, None):
        signal.raise_signal(signal.SIGINT)


def test_a_time_column_sets_the_pace(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("t,x.0,x.1\n100,1,1\n100.1,1,1\n100.4,1,1\n")
    words = (
        pipeline,
        f"{tmp_path}/in.csv?time=t&rate=any",
        "-o",
        tmp_path / "out.csv",
        "--realtime",
        "--chunk",
        1,
    )
    began = time.monotonic()
    runnel_run(*words)
    assert 0.4 <= time.monotonic() - began < 60, "the first row is at 100 s"


def test_the_pace_of_stamps_that_go_back_and_far_ahead() -> None:
    clock, fed = Clock(), []
    stamps = iter([10.0, 12.0, 11.0, 10.0 + 3 * 86400])
    chunks = ({"x": np.zeros(2)} for _ in range(4))
    for _ in paced(chunks, 5.0, lambda: next(stamps), clock, clock.sleep):
        fed.append(clock.now - 50)  # noqa: PERF401
    assert fed == [0, 2, 2, 3 * 86400]


def test_a_bound_asks_for_no_chunk_more() -> None:
    def chunks():
        yield {"x": np.zeros(3)}
        yield {"x": np.ones(3)}
        raise AssertionError("asked for more")

    assert [len(chunk["x"]) for chunk in limited(chunks(), 5)] == [3, 2]
    assert [len(chunk["x"]) for chunk in limited(chunks(), 6)] == [3, 3]
