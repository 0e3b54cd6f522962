"""`runnel feed` gives what `runnel run` gives, through a daemon."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runnel.cli.main import main
from runnel.serve.daemon import Daemon

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


def test_no_daemon_is_told_in_one_line(
    tmp_path: Path, numbers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["feed", f"ipc://{tmp_path}/none.sock", str(numbers), "--timeout", "0.2"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "is the daemon running there" in err
    assert len(err.splitlines()) == 1
