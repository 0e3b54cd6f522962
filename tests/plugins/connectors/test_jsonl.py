"""JSON lines: written and read back; keys, columns, times, nulls and labels."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from runnel import Engine, Signal, TensorSpec
from runnel.errors import RunnelError, UsageError
from tests.cli.support import open_sink, open_source, read

ONE = Signal((TensorSpec("x", "float32", (2, 2)),))
TWO = Signal((TensorSpec("n", "int64"), TensorSpec("x", "float32", (2,)), TensorSpec("time", "float64")))


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_written_file_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    chunk = {
        "n": np.array([2**60 + 1, -3, 0, 5]),
        "x": rng.standard_normal((4, 2)).astype(np.float32),
        "time": rng.standard_normal(4),
    }
    with open_sink(tmp_path / "x.jsonl", TWO) as put:
        put({name: array[:3] for name, array in chunk.items()})
        put({name: array[3:] for name, array in chunk.items()})
    chunks = read(tmp_path / "x.jsonl", TWO)
    assert [len(c["n"]) for c in chunks] == [3, 1]
    for name in TWO.names:
        got = np.concatenate([c[name] for c in chunks])
        assert got.dtype == chunk[name].dtype
        np.testing.assert_array_equal(got, chunk[name])


def test_values_alone_flat_keys_and_chosen_columns(tmp_path: Path) -> None:
    want = [[1, 2], [3, 4]]
    flat = {"x.1.1": 4, "x.0.0": 1, "x.0.1": 2, "x.1.0": 3, "else": "what"}
    for row, query in (
        (want, ""),
        ({"x": want}, ""),
        (flat, ""),
        ({**flat, "a": 1}, "?columns=a,x.0.1,x.1.0,x.1.1"),
    ):
        (chunk,) = read(f"{write(tmp_path / 'x.jsonl', row)}{query}", ONE)
        assert chunk["x"].tolist() == [want]


def test_times_and_nulls(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl",
        {"n": 1, "x": [None, 2], "at": "1970-01-01T00:00:10Z"},
        {"n": 2, "x": [3, 4], "at": 12.5},
    )
    with open_source(f"{path}?time=at&missing=nan", TWO) as source:
        (chunk,) = source.chunks(9)
        assert source.stamp == 12.5
    assert chunk["time"].tolist() == [10.0, 12.5]
    np.testing.assert_array_equal(chunk["x"], [[np.nan, 2], [3, 4]])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"line 2: \S"),
        ('{"n": 1, "x": [1, 2], "time": NaN}', "line 2: 'time': nan is not a finite number"),
        ('{"n": 1.5, "x": [1, 2], "time": 0}', "line 2: 'n': 1.5 is not a whole number"),
        ('{"n": 1, "x": [1, null], "time": 0}', "line 2: 'x': None is not a finite number"),
        ('{"n": 1, "x": [1, 2, 3], "time": 0}', "line 2: 'x': a list of 3, but a time step has shape"),
        ('{"n": 1, "x": 5, "time": 0}', "line 2: 'x': 5, but a time step"),
        ('{"n": 1, "time": 0}', "line 2: no 'x.0' in it; it has 'n', 'time'"),
        ("[1, 2]", "line 2: expected an object with 'n', 'x', 'time'"),
        ('{"n": 99999999999999999999, "x": [1, 2], "time": 0}', "up to line 2: .*n: int64"),
        ("[" * 100_000, "line 2"),
    ],
)
def test_error_for_a_bad_line_has_its_number(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"n": 1, "x": [1, 2], "time": 0}\n' + line)
    with pytest.raises(UsageError, match=says):
        read(tmp_path / "x.jsonl", TWO, block=1)


def test_blank_lines_are_no_time_steps(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n[1, 2]\n\n\n[3, 4]\n\n")
    (chunk,) = read(tmp_path / "x.jsonl", Signal((TensorSpec("x", "float32", (2,)),)))
    assert chunk["x"].tolist() == [[1, 2], [3, 4]]


def test_labelled_number_is_written_as_its_label(tmp_path: Path) -> None:
    signal = Signal((TensorSpec("word", "int32", (2,), ("yes", "no")),))
    with open_sink(tmp_path / "x.jsonl", signal) as put:
        put({"word": np.array([[1, 0], [-1, 2]], np.int32)})
    assert (tmp_path / "x.jsonl").read_text() == '{"word": ["no", "yes"]}\n{"word": [null, null]}\n'


def test_events_of_streams_are_appended(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        '[input]\nshape = []\n[[before]]\nuse = "gain"\nfactor = 2.0\n'
        '[[notice]]\nuse = "jsonl"\npath = "all.jsonl"\n'
        '[[notice]]\nuse = "jsonl"\npath = "some.jsonl"\nevents = ["failed"]\n'
    )
    before = time.time()
    for _ in range(2):
        with Engine.load(file) as engine, engine.open("mic-1") as stream:
            stream.feed(np.ones(3, np.float32))
            with pytest.raises(RunnelError):
                stream.feed(np.ones(3))
    told = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [(t["event"], t["stream"], t["seq"]) for t in told] == 2 * [
        ("opened", "mic-1", 0), ("failed", "mic-1", 1), ("closed", "mic-1", 1)
    ]  # fmt: skip
    assert all(before - 1 < t["time"] < time.time() + 1 for t in told)
    some = [json.loads(line) for line in (tmp_path / "some.jsonl").read_text().splitlines()]
    assert [t["event"] for t in some] == ["failed", "failed"]
    assert "float64" in some[0]["reason"]
    file.write_text(file.read_text().replace("all.jsonl", "missing/all.jsonl"))
    with pytest.raises(UsageError, match=r"number 1 \(jsonl\): .*missing/all.jsonl: cannot write it"):
        Engine.load(file)
    file.write_text(file.read_text().replace("missing/", "").replace('["failed"]', '["faild"]'))
    with pytest.raises(RunnelError, match=r"number 2 \(jsonl\): option 'events'.* 'failed'"):
        Engine.load(file)
