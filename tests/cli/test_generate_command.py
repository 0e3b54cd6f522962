"""`--generate` of `runnel run` and `runnel feed`: after a prompt or none, what a pipeline makes of itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runnel import Engine
from runnel.cli.main import main
from runnel.daemon.loop import Daemon
from tests.serve.peers import served

DOUBLES = """
[input]
rate = 10
[[before]]
use = "gain"
factor = {factor}
[feedback]
x = {{ output = "x", initial = 1.0 }}
"""


@pytest.fixture
def doubles(tmp_path: Path) -> Path:
    """x[t] = 2 x[t-1], from 1."""
    path = tmp_path / "doubles.toml"
    path.write_text(DOUBLES.format(factor=2.0))
    (tmp_path / "prompt.csv").write_text("x\n7\n5\n")
    return path


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["--generate", "70"], 2.0 ** np.arange(1, 71)),  # more than are made at once
        (["prompt.csv", "--generate", "3"], [10, 20, 40, 80]),
        (["prompt.csv", "--steps", "1", "--generate", "2"], [14, 28, 56]),
        (["prompt.csv"], [14, 10]),
    ],
)
def test_a_pipeline_makes_time_steps_of_itself(
    doubles: Path, monkeypatch: pytest.MonkeyPatch, far: bool, words: list[str], want: list[float]
) -> None:
    monkeypatch.chdir(doubles.parent)
    words = [*words, "-o", "out.npy", "--quiet"]
    if far:
        with served(Daemon(Engine.load(doubles), f"ipc://{doubles.parent}/d.sock")) as daemon:
            assert main(["feed", daemon.address, *words]) == 0
    else:
        assert main(["run", str(doubles), *words]) == 0
    np.testing.assert_array_equal(np.load("out.npy"), np.array(want, np.float32))


def test_progress_knows_how_much_is_still_to_be_made(
    doubles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(doubles.parent)
    assert main(["run", str(doubles), "prompt.csv", "--generate", "3", "-o", "out.npy"]) == 0
    assert capsys.readouterr().err.startswith("5 time steps, ")


def test_what_cannot_generate_is_told_before_anything_is_read_or_written(
    doubles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doubles.write_text(doubles.read_text().partition("[feedback]")[0])
    out = doubles.parent / "out.csv"
    assert main(["run", str(doubles), "nowhere.csv", "--generate", "3", "-o", str(out)]) == 2
    assert "cannot step without input" in capsys.readouterr().err
    assert not out.exists()


def test_without_an_input_it_says_that_it_could_generate(
    doubles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(doubles)]) == 2
    assert "or --generate N: it can make time steps of itself" in capsys.readouterr().err
    assert main(["feed", "ipc:///nowhere/x.sock"]) == 2
    assert "INPUT is needed: a file, -, or NAME:…; or --generate N" in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["-1", "16777217"])
def test_how_many_are_bounded(doubles: Path, capsys: pytest.CaptureFixture[str], steps: str) -> None:
    assert main(["run", str(doubles), "--generate", steps]) == 2
    assert f"--generate {steps}: a whole number, 1 to 16777216" in capsys.readouterr().err
