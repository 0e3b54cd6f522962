"""`runnel bench`, as it is typed: in process, on a daemon, as a ramp, and what it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runnel.cli.main import main
from runnel.daemon.loop import Daemon
from tests.serve.support import UNLUCKY, SpyEngine, model_pipeline, tally_engine


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    return str(model_pipeline(tmp_path))


@pytest.fixture
def engine() -> SpyEngine:
    return tally_engine(max_streams=32)


@pytest.fixture
def daemon(engine: SpyEngine, tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread = threading.Thread(target=daemon.serve)
    thread.start()
    assert daemon.started.wait(10)
    yield daemon
    daemon.stop()
    thread.join(15)
    assert not thread.is_alive()


def bench(*words: str) -> int:
    return main(["bench", *words, "--quiet", "--timeout", "20"])


def test_a_pipeline_in_process(pipeline: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(pipeline, "--streams", "4", "--rate", "50", "--chunk", "2", "--seconds", "0.5",
                 "--warm-up", "0.1", "--json") == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["streams"] == 4
    assert found["due"] == found["answered"] == 100
    assert 0 < found["latency"]["p50"] <= found["latency"]["p99"] <= found["latency"]["max"]


def test_a_daemon(daemon: Daemon, engine: SpyEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """Its pipeline says 100 Hz: at 10 time steps a chunk that is 10 chunks a second."""
    assert bench(daemon.address, "--streams", "8", "--chunk", "10", "--seconds", "1", "--poisson") == 0
    text = capsys.readouterr().out
    assert "8 streams at 10 Hz (poisson arrivals)" in text
    assert "latency from the due time  p50" in text
    assert "the generator's own lag" in text
    assert "≤" in text
    assert not engine.streams
    assert sum(engine.batches) > 80


def test_a_file_is_fed_in_whole_chunks(
    pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((25, 2), "float32"))
    words = (pipeline, "--rate", "20", "--seconds", "0.3", "--warm-up", "0", "--input", str(path))
    assert bench(*words, "--chunk", "10") == 0
    assert bench(*words, "--chunk", "26") == 2
    assert "shorter than one chunk of 26 time steps" in capsys.readouterr().err


def test_chunks_that_fail_are_the_exit_status(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.full((10, 2), UNLUCKY, "float32"))
    words = ("--input", str(path), "--chunk", "10", "--seconds", "0.5", "--warm-up", "0")
    assert bench(daemon.address, *words) == 1
    assert "× STAGE_FAILED" in capsys.readouterr().out
    assert bench(daemon.address, *words, "--ramp", "--deadline", "5s") == 1
    assert "0 live streams" in capsys.readouterr().out


def test_a_ramp_ends_at_what_the_daemon_allows(
    daemon: Daemon, engine: SpyEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--ramp", "--deadline", "10s", "--rate", "5", "--seconds", "0.3", "--warm-up", "0")
    assert bench(daemon.address, *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["capacity"] == engine.max_streams
    assert found["missed"] is None
    assert bench(daemon.address, *words, "--streams", "9") == 0
    assert "9 live streams at p99 < 10000 ms" in capsys.readouterr().out


def test_a_ramp_finds_a_deadline_that_cannot_be_met(
    pipeline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--ramp", "--deadline", "0.0001ms", "--rate", "50", "--seconds", "0.2", "--warm-up", "0")
    assert bench(pipeline, *words) == 1
    out = capsys.readouterr().out
    assert out.startswith("0 live streams at p99 < 0.000 ms")
    assert "missed        1 streams" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--streams", "0"), "--streams 0: expected 1 to"),
        (("--rate", "0"), "--rate 0: expected a positive number"),
        (("--rate", "nan"), "--rate nan: expected a positive number"),
        (("--seconds", "-1"), "--seconds -1: expected a positive number"),
        (("--warm-up", "-1"), "--warm-up -1: expected 0 to"),
        (("--percentile", "101"), "--percentile 101: expected more than 0"),
        (("--ramp",), "--ramp and --deadline go together"),
        (("--deadline", "1s"), "--ramp and --deadline go together"),
        (("--ramp", "--deadline", "32"), "--deadline '32': expected a time, as 32ms or 0.1s"),
        ((), "--rate is needed: the pipeline states no input rate"),
        (("--rate", "10", "--chunk", "0"), "--chunk 0: that is 0 time steps"),
        (("--rate", "10", "--input", "none.npy"), "none.npy: cannot read it"),
    ],
)
def test_what_cannot_be_run_is_told_before_it_begins(
    pipeline: str, words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(pipeline, *words) == 2
    assert told in capsys.readouterr().err


def test_no_daemon_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"ipc://{tmp_path}/none.sock", "--timeout", "0.1"]) == 2
    assert "is the daemon running there" in capsys.readouterr().err
