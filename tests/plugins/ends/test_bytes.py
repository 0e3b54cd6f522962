"""Raw numbers, a text's bytes, and the kinds of file that a pipe cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from runnel import Signal, TensorSpec
from runnel.errors import UsageError
from tests.cli.support import open_sink, read


def test_raw_numbers_of_a_file(tmp_path: Path) -> None:
    signal = Signal((TensorSpec("x", "int16", (3,)),))
    want = np.arange(30, dtype="<i2").reshape(10, 3)
    (tmp_path / "x.raw").write_bytes(want.tobytes())
    chunks = read(tmp_path / "x.raw", signal, block=4)
    assert [len(chunk["x"]) for chunk in chunks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([chunk["x"] for chunk in chunks]), want)
    (tmp_path / "x.raw").write_bytes(want.tobytes()[:-1])
    with pytest.raises(UsageError, match=r"x\.raw ended 5 bytes into time step 9, which takes 6"):
        read(tmp_path / "x.raw", signal)


def test_a_text_is_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("ça va", "utf-8")
    (chunk,) = read(tmp_path / "x.txt", Signal((TensorSpec("text", "uint8"),)), block=99)
    assert chunk["text"].tobytes().decode() == "ça va"
    with pytest.raises(UsageError, match=r"a text is a byte a time step \(uint8\), .*takes x: float32"):
        read(tmp_path / "x.txt", Signal((TensorSpec("x", "float32"),)))


@pytest.mark.parametrize(
    ("name", "kind"), [("x.npy", "a .npy"), ("x.wav", "sound"), ("x.parquet", "Parquet")]
)
def test_a_pipe_that_would_have_to_be_read_to_and_fro(tmp_path: Path, name: str, kind: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(
        UsageError, match=rf"{name}: {kind} is read from a file, and this is a pipe or a device"
    ):
        read(tmp_path / name, Signal((TensorSpec("x", "float32"),), 8000.0))


@pytest.mark.parametrize("name", ["x.npy", "x.wav", "x.flac"])
def test_a_pipe_that_would_have_to_be_finished_at_its_beginning(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    signal = Signal((TensorSpec("x", "float32"),), 8000.0)
    with (
        pytest.raises(UsageError, match=rf"{name}: .*which a pipe or a device does not allow"),
        open_sink(tmp_path / name, signal),
    ):
        pass
    assert (tmp_path / name).is_fifo()


def test_sound_that_libsndfile_cannot_write_leaves_nothing(tmp_path: Path) -> None:
    signal = Signal((TensorSpec("x", "float32", (100,)),), 8000.0)
    with (
        pytest.raises(UsageError, match="libsndfile cannot write that: 100 channels"),
        open_sink(tmp_path / "x.flac", signal),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.npy", "x.parquet"])
def test_a_number_beyond_the_inputs_range_is_refused_and_not_infinite(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "x.npy":
        np.save(path, np.array([1, 1e39]))
    elif name == "x.parquet":
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table({"x": [1, 1e39]}), path)
    else:
        path.write_text("x\n1\n1e39\n" if name == "x.csv" else "1\n1e39\n")
    with pytest.raises(UsageError, match=r"x\..*float32"):
        read(path, Signal((TensorSpec("x", "float32"),)))
    (chunk,) = read(path, Signal((TensorSpec("x", "float64"),)))
    assert chunk["x"].tolist() == [1, 1e39]


@pytest.mark.parametrize("header", ["((", "{'descr': '<f4', 'shape': (5,)", "{'descr': '<f4'\n(", "\\", "('"])
def test_an_npy_whose_header_is_no_header(tmp_path: Path, header: str) -> None:
    """numpy reads it as a piece of Python, and lets out whatever that raises."""
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00\x40\x00" + header.encode().ljust(64))
    with pytest.raises(UsageError, match=r"x\.npy: not a \.npy file"):
        read(tmp_path / "x.npy", Signal((TensorSpec("x", "float32"),)))
