"""Raw numbers, a text's bytes, and file formats that need seeking, which a pipe does not allow."""

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
def test_pipe_is_refused_by_sources_that_seek(tmp_path: Path, name: str, kind: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(
        UsageError, match=rf"{name}: {kind} is read from a file, and this is a pipe or a device"
    ):
        read(tmp_path / name, Signal((TensorSpec("x", "float32"),), 8000.0))


@pytest.mark.parametrize("name", ["x.npy", "x.wav", "x.flac"])
def test_pipe_is_refused_by_sinks_that_seek(tmp_path: Path, name: str) -> None:
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
def test_npy_with_an_invalid_header_is_refused(tmp_path: Path, header: str) -> None:
    """numpy evaluates it as Python, and does not catch what that raises."""
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00\x40\x00" + header.encode().ljust(64))
    with pytest.raises(UsageError, match=r"x\.npy: not a \.npy file"):
        read(tmp_path / "x.npy", Signal((TensorSpec("x", "float32"),)))


WORDS = ("the", " ", "naïve", "\n")


def test_labels_are_written_as_text(tmp_path: Path) -> None:
    spec = TensorSpec("token", "int64", labels=WORDS), TensorSpec("probability", "float32")
    with open_sink(tmp_path / "x.txt", Signal(spec)) as write:
        for ids in ([0, 1], [], [2, 9, 3]):
            write({"token": np.array(ids, np.int64), "probability": np.zeros(len(ids), np.float32)})
    assert (tmp_path / "x.txt").read_text("utf-8") == "the naïve\ufffd\n"


def test_words_are_separated_across_chunks(tmp_path: Path) -> None:
    with open_sink(
        f"txt:{tmp_path}/x?separator= ", Signal((TensorSpec("w", "int64", labels=WORDS),))
    ) as write:
        for ids in ([0], [], [2, 0]):
            write({"w": np.array(ids, np.int64)})
    assert (tmp_path / "x").read_text("utf-8") == "the naïve the"


def test_bytes_are_written_as_text_even_if_a_chunk_ends_inside_a_character(tmp_path: Path) -> None:
    signal = Signal((TensorSpec("byte", "uint8"),))
    with open_sink(tmp_path / "x.txt", signal) as write:
        for byte in "ça".encode() + b"\xff" + "ç".encode()[:1]:
            write({"byte": np.array([byte], np.uint8)})
    assert (tmp_path / "x.txt").read_text("utf-8") == "ça\ufffd\ufffd"


def test_text_on_standard_output_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with open_sink("txt:", Signal((TensorSpec("byte", "uint8"),))) as write:
        write({"byte": np.frombuffer(b"hello", np.uint8)})
        assert capsys.readouterr().out == "hello"  # at once, and not at the end
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize(
    ("tensors", "text", "told"),
    [
        ([TensorSpec("y", "float32")], "txt:", r"the pipeline makes y: float32 \(T\)"),
        ([TensorSpec("y", "uint8", (2,))], "txt:", r"one a time step, but the pipeline makes y: uint8"),
        ([TensorSpec("a", "uint8"), TensorSpec("b", "uint8")], "txt:", r"a, b could be .*txt:\?of=a"),
        ([TensorSpec("a", "uint8")], "txt:?of=aa", r"no output 'aa' \(known: a\)"),
        ([TensorSpec("a", "uint8"), TensorSpec("b", "int8")], "txt:?of=b", r"makes b: int8"),
        ([TensorSpec("a", "uint8")], "txt:?separator=x", "for words"),
    ],
)
def test_output_that_is_not_text_is_refused(tensors: list[TensorSpec], text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told), open_sink(text, Signal(tuple(tensors))):
        pass


def test_one_output_with_labels_is_the_text_beside_bytes(tmp_path: Path) -> None:
    signal = Signal((TensorSpec("flag", "uint8"), TensorSpec("w", "int32", labels=WORDS)))
    for text, want in ((f"{tmp_path}/x.txt", "the"), (f"{tmp_path}/x.txt?of=flag", "A")):
        with open_sink(text, signal) as write:
            write({"flag": np.array([65], np.uint8), "w": np.array([0], np.int32)})
        assert (tmp_path / "x.txt").read_text() == want
