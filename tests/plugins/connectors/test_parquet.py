"""Parquet, against pyarrow's own reading and writing."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel import Signal, TensorSpec
from runnel.errors import UsageError
from runnel_plugins.connectors import parquet as ours
from tests.cli.support import open_sink, open_source, read

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

X = Signal((TensorSpec("x", "float32", (2,)),))
TIMED = Signal((TensorSpec("n", "int32"), TensorSpec("time", "float64"), TensorSpec("x", "float32", (2,))))

N = Signal((TensorSpec("n", "int8"),))


def write(path: Path, rows: int = 3, **columns: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)
    return path


def test_columns_in_row_groups_whatever_the_block(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((100, 2))
    path = write(tmp_path / "x.parquet", 17, **{"x.1": x[:, 1], "id": np.arange(100), "x.0": x[:, 0]})
    for block in (1, 7, 1000):
        chunks = read(path, X, block)
        assert all(1 <= len(chunk["x"]) <= block for chunk in chunks)
        np.testing.assert_array_equal(np.concatenate([c["x"] for c in chunks]), x.astype(np.float32))
    with open_source(path, X) as source:
        assert source.steps == 100
    swapped = np.concatenate([c["x"] for c in read(f"{path}?columns=x.1,id", X)])
    np.testing.assert_array_equal(swapped[:, 1], np.arange(100))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_and_seconds(tmp_path: Path, unit: str) -> None:
    noon = int(datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp())
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    stamps = pyarrow.array([noon * scale, (noon + 2) * scale], pyarrow.timestamp(unit, "Europe/Paris"))
    path = write(tmp_path / "x.parquet", n=[1, 2], t=stamps, s=[0.5, 1.5], a=[1.0, 2.0], b=[3.0, 4.0])
    for column, want in (("t", [noon, noon + 2]), ("s", [0.5, 1.5])):
        with open_source(f"{path}?time={column}&columns=n,a,b", TIMED) as source:
            (chunk,) = source.chunks(10)
            assert chunk["time"].tolist() == want
            assert source.stamp == want[-1]
        assert chunk["x"].tolist() == [[1, 3], [2, 4]]
        assert chunk["n"].dtype == np.int32


def test_nulls(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", **{"x.0": [1.0, None, 3.0, 4.0], "x.1": [1, 2, 3, None]})
    with pytest.raises(UsageError, match=r"column 'x.0', row 2: null is not a number \(missing=nan"):
        read(path, X)
    got = np.concatenate([c["x"] for c in read(f"{path}?missing=nan", X)])
    np.testing.assert_array_equal(got, [[1, 1], [np.nan, 2], [3, 3], [4, np.nan]])


@pytest.mark.parametrize(
    ("columns", "signal", "says"),
    [
        ({"x.0": [1.0], "y": [2.0]}, X, r"no column 'x.1'.* columns are x.0, y, 2 of them hold numbers"),
        ({"x.0": [1.0], "x.1": ["a"]}, X, "column 'x.1' holds string, not numbers"),
        ({"x.0": [1.0, 2.0], "x.1": [3.0, np.inf]}, X, "column 'x.1', row 2: inf is not a finite number"),
        (
            {"n": [1, 300]},
            Signal((TensorSpec("n", "int8"),)),
            r"rows 1 to 2: not all are int8 \(-128 to 127\)",
        ),
        ({"n": [1.0]}, Signal((TensorSpec("n", "int8"),)), "double, rows 1 to 1: not all are int8"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, columns: dict[str, Any], signal: Signal, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read(write(tmp_path / "x.parquet", **columns), signal)


def test_files_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(UsageError, match=r"no\.parquet: not a Parquet file"):
        read(tmp_path / "no.parquet", X)
    path = write(tmp_path / "x.parquet", t=["now"], **{"x.0": [1.0], "x.1": [2.0]})
    with pytest.raises(UsageError, match="time column 't' holds string, neither timestamps nor numbers"):
        read(f"{path}?time=t", X)
    with pytest.raises(UsageError, match="no time column 'T'"):
        read(f"{path}?time=T", X)
    monkeypatch.setattr(ours, "MAX_GROUP", 10)
    with pytest.raises(UsageError, match=r"row group 0 holds .* bytes of these columns, at most 10"):
        read(path, X)
    monkeypatch.undo()
    x = np.random.default_rng(0).standard_normal((1000, 2))
    data = bytearray(write(path, 1000, **{"x.0": x[:, 0], "x.1": x[:, 1]}).read_bytes())
    data[4:1000] = b"\xff" * 996
    path.write_bytes(data)
    with pytest.raises(UsageError, match="damaged, after row 0"):
        read(path, X)


def test_pyarrow_reads_the_sinks_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "ROW_GROUP", 100)
    words = TensorSpec("w", "int64", (), ("yes", "no"))
    signal = Signal((TensorSpec("x", "float32", (2,)), TensorSpec("b", "bool"), words))
    x = np.random.default_rng(0).standard_normal((250, 2)).astype(np.float32)
    said = np.arange(250) % 3
    with open_sink(tmp_path / "x.parquet", signal) as put:
        for part in np.array_split(np.arange(250), 11):
            put({"x": x[part], "b": x[part, 0] > 0, "w": said[part]})
        put(signal.empty())
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["x.0", "x.1", "b", "w"]
    np.testing.assert_array_equal(np.stack([table["x.0"], table["x.1"]], 1), x)
    assert table["b"].to_pylist() == (x[:, 0] > 0).tolist()
    assert table["w"].to_pylist() == [("yes", "no", None)[w] for w in said]
    assert parquet.ParquetFile(tmp_path / "x.parquet").metadata.num_row_groups >= 2


def test_error_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", x=[1.0])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"need the package pyarrow .*pip install 'runnel\[parquet\]'"):
        read(path, X)
