"""Numbers of a file that the pipeline's dtype cannot hold: refused, never wrapped around."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runnel import Signal, TensorSpec
from runnel.errors import UsageError
from tests import models
from tests.cli.support import open_source


def read(path: Path, dtype: str) -> np.ndarray:
    with open_source(path, Signal((TensorSpec("x", dtype),))) as source:
        return np.concatenate([chunk["x"] for chunk in source.chunks(3)])


@pytest.mark.parametrize(("dtype", "worst"), [("int8", 300), ("int16", 70000), ("int32", -(2**31) - 1)])
def test_whole_numbers_that_do_not_fit(tmp_path: Path, dtype: str, worst: int) -> None:
    np.save(tmp_path / "x.npy", np.array([1, 2, 3, 4, worst, 5]))
    with pytest.raises(UsageError, match=rf"'x' holds {worst}, which is no {dtype}"):
        read(tmp_path / "x.npy", dtype)
    np.save(tmp_path / "x.npy", np.array([1, -2, 3, 100]))
    np.testing.assert_array_equal(read(tmp_path / "x.npy", dtype), np.array([1, -2, 3, 100], dtype))


def test_a_sound_file_of_floats_into_whole_numbers(tmp_path: Path) -> None:
    """libsndfile does not scale: all would be 0."""
    soundfile.write(tmp_path / "x.wav", np.linspace(-1, 1, 9), 8000, subtype="FLOAT")
    with pytest.raises(UsageError, match=r"holds FLOAT samples in -1..1, but the pipeline takes x: int16"):
        read(tmp_path / "x.wav", "int16")


def test_a_full_disk_is_told_in_a_line(tmp_path: Path) -> None:
    """/dev/full is always full."""
    model = models.lstm(tmp_path / "m.onnx").path
    np.save(tmp_path / "x.npy", np.zeros((500, 3), np.float32))
    command = [sys.executable, "-m", "runnel.cli.main", "run", str(model), str(tmp_path / "x.npy"), "--quiet"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "runnel: no space left on the device that the output goes to\n"
