"""Tables, beyond the tests of `runnel run`: time columns, missing numbers, labels, rows of a pipe."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from runnel import Signal, TensorSpec
from runnel.errors import PipelineError, UsageError
from tests.cli.support import open_sink, open_source, read

X = Signal((TensorSpec("x", "float32", (2,)),))
TIMED = Signal((TensorSpec("x", "float32", (2,)), TensorSpec("time", "float64"), TensorSpec("n", "int64")))


def test_a_time_column_fills_the_input_called_time(tmp_path: Path) -> None:
    """At any position among the inputs, by any name, and with --columns."""
    (tmp_path / "x.csv").write_text(
        "n,t,x.1,x.0\n9007199254740993,2024-05-01T12:00:00Z,2,1\n2,2024-05-01T14:00:00.5+02:00,4,3\n"
        "3,2024-05-01 12:00:01,6,5\n4,1714564802.25,8,7\n"
    )
    chunks = read(f"{tmp_path}/x.csv?time=t", TIMED)
    got = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in TIMED.names}
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp()
    np.testing.assert_array_equal(got["time"], noon + np.array([0, 0.5, 1, 2.25]))
    assert got["time"].dtype == np.float64
    np.testing.assert_array_equal(got["x"], np.arange(1, 9, dtype=np.float32).reshape(4, 2))
    assert got["n"].tolist() == [2**53 + 1, 2, 3, 4], "whole numbers do not pass through a float"


def test_stamp_is_the_time_of_the_last_row_returned(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("t,x.0,x.1\n1,0,0\n2,0,0\n5,0,0\n")
    told = []
    with open_source(f"csv:{tmp_path}/x.csv?time=t", X) as source:
        for chunk in source.chunks(2):
            assert set(chunk) == {"x"}
            told.append(source.stamp)
    assert told == [2.0, 5.0]


@pytest.mark.parametrize(
    ("text", "query", "says"),
    [
        ("t,x.0,x.1\n1,2,3\n", "time=T", r"no time column 'T' \(did you mean|no time column 'T' \(known: t"),
        (
            "t,x.0,x.1\n1,2,3\nnoon,2,3\n",
            "time=t",
            "line 3, column 't': 'noon' is neither a number nor a",
        ),
        ("t,x.0,x.1\n1,2,3\n,2,3\n", "time=t", "line 3, column 't': '' is neither"),
        ("t,x.0,x.1\n1,2,3\ninf,2,3\n", "time=t", "line 3, column 't': 'inf' is neither"),
        ("t,x.0,x.1\n1,2,\n", "missing=nan&time=x.0", "'x.0' cannot be the time and a number of the input"),
        ("t,a,b\n1,2,3\n", "columns=t,a&time=t", "'t' cannot be the time and a number of the input"),
    ],
)
def test_invalid_time_column_is_refused(tmp_path: Path, text: str, query: str, says: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UsageError, match=says):
        read(f"{tmp_path}/x.csv?{query}", X)


def test_pipeline_with_a_time_input_needs_a_time_column(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("when,x.0,x.1,n\n1,2,3,4\n")
    with pytest.raises(UsageError, match=r"say which it is, as in .*x\.csv\?time=when; there are when, x\.0"):
        read(tmp_path / "x.csv", TIMED)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("3,4,5", r"line 3 has 3 cells, but the header 2: a decimal comma"),
        ("3,", r"line 3, column 'x\.1': '' is not a finite number; with \?missing=nan .* it is NaN"),
    ],
)
def test_row_that_contradicts_the_header_is_refused(tmp_path: Path, row: str, says: str) -> None:
    (tmp_path / "x.csv").write_text(f"x.0,x.1\n1,2\n{row}\n")
    with pytest.raises(UsageError, match=says):
        read(tmp_path / "x.csv", X)


def test_duplicate_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("x,y,x\n1,2,3\n")
    with pytest.raises(UsageError, match=r"x\.csv: 2 columns are called 'x'"):
        read(path, Signal((TensorSpec("x", "float32"),)))
    (chunk,) = read(path, Signal((TensorSpec("y", "float32"),)))
    assert chunk["y"].tolist() == [2]


def test_commas_at_the_end_of_each_row_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("x.0,x.1\n1,2,\n3,4, ,\n")
    assert np.concatenate([c["x"] for c in read(tmp_path / "x.csv", X)]).tolist() == [[1, 2], [3, 4]]


def test_missing_numbers_are_nan_if_requested(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("x.0\tx.1\n1\t\nNaN\t2\nNA\t3\n")
    (chunk,) = read(f"{tmp_path}/x.tsv?missing=nan", X)
    np.testing.assert_array_equal(chunk["x"], [[1, np.nan], [np.nan, 2], [np.nan, 3]])
    with pytest.raises(UsageError, match=r"line 2, column 'x.1': '' is not a finite number"):
        read(f"{tmp_path}/x.tsv", X)
    (tmp_path / "n.csv").write_text("n\n\n1\n")
    with pytest.raises(UsageError, match=r"line 2 is blank, and line 3 has numbers"):
        read(f"{tmp_path}/n.csv?missing=nan", Signal((TensorSpec("n", "int32"),)))
    with pytest.raises(
        PipelineError, match="option 'missing' of source 'tsv' takes 'refuse' or 'nan', not 'zero'"
    ):
        read(f"{tmp_path}/x.tsv?missing=zero", X)


def test_rows_of_a_pipe_come_when_they_are_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.csv")
    seen = threading.Event()

    def write() -> None:
        with open(tmp_path / "x.csv", "w") as pipe:
            pipe.write('x.0,x.1\n1,2\n3,"4')
            pipe.flush()
            assert seen.wait(10)
            pipe.write('"\n5,6')

    writer = threading.Thread(target=write)
    writer.start()
    with open_source(tmp_path / "x.csv", X) as source:
        assert source.live
        chunks = source.chunks(100)
        assert next(chunks)["x"].tolist() == [[1, 2]], "before the pipe is closed"
        seen.set()
        assert np.concatenate([chunk["x"] for chunk in chunks]).tolist() == [[3, 4], [5, 6]]
    writer.join(10)


def test_live_rows_before_a_refused_row_count(tmp_path: Path) -> None:
    for name, text in (("x.csv", "x.0,x.1\n1,2\n3,what\n"), ("x.jsonl", "[1, 2]\n[3]\n")):
        os.mkfifo(tmp_path / name)
        writer = threading.Thread(target=(tmp_path / name).write_text, args=(text,))
        writer.start()
        with open_source(tmp_path / name, X) as source:
            chunks = source.chunks(100)
            assert next(chunks)["x"].tolist() == [[1, 2]]
            with pytest.raises(UsageError, match=r"'what' is not a finite|line 2"):
                next(chunks)
        writer.join(10)


def test_labelled_number_is_written_as_its_label(tmp_path: Path) -> None:
    signal = Signal((
        TensorSpec("word", "int64", (2,), ("yes", "no, never")),
        TensorSpec("p", "float32", (), ("not", "meant")),
    ))  # fmt: skip
    with open_sink(tmp_path / "out.csv", signal) as write:
        write({"word": np.array([[0, 1], [-1, 7]]), "p": np.array([0.5, 1], np.float32)})
    assert (tmp_path / "out.csv").read_text() == 'word.0,word.1,p\nyes,"no, never",0.5\n,,1.0\n'


@pytest.mark.parametrize("data", [b"x.0,x.1\n1,\xff\n", b"x.0,x.1\n1,2\n" + b"3" * (2**20 + 70000)])
def test_bytes_that_are_no_table(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(UsageError, match=r"not a text in UTF-8|a line of more than 1048576 characters"):
        read(tmp_path / "x.csv", X)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(UsageError, match=r"x\.csv: cannot read it: Is a directory"):
        read(tmp_path / "x.csv", X)
