"""Numbers of a file that the pipeline's dtype cannot hold: refused, never wrapped around."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from runnel import Signal, TensorSpec
from runnel.cli.sources import open_source
from runnel.errors import UsageError


def read(path: Path, dtype: str) -> np.ndarray:
    with open_source(str(path), Signal((TensorSpec("x", dtype),)), 3) as source:
        return np.concatenate([chunk["x"] for chunk in source.chunks])


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
