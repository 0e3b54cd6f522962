"""The times of a table's rows in every format: a wrong rate is refused, an unused time column reported."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from runnel import Signal, TensorSpec
from runnel.errors import UsageError
from tests.cli.support import open_source, read

AT_100 = Signal((TensorSpec("x", "float32", (1,)),), 100.0)
TIMED = Signal((TensorSpec("x", "float32", (1,)), TensorSpec("time", "float64")))

Rows = list[tuple[object, float]]


def write(path: Path, rows: Rows) -> Path:
    """Write a table with the columns time and x, in the format of the path's extension."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"time": t, "x": x}) + "\n" for t, x in rows))
    elif path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        times = [datetime.fromisoformat(t) if isinstance(t, str) else t for t, _ in rows]
        table = arrow.table({"time": times, "x": [x for _, x in rows]})
        pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=300)
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        path.write_text(f"time{mark}x\n" + "".join(f"{t}{mark}{x}\n" for t, x in rows))
    return path


def at(rate: float, rows: int, scale: float = 1.0) -> Rows:
    return [(round(n / rate * scale, 9), float(n)) for n in range(rows)]


@pytest.fixture(params=["csv", "tsv", "jsonl", "parquet"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Rows], Path]:
    return lambda rows: write(tmp_path / f"x.{request.param}", rows)


@pytest.mark.parametrize("rows", [2, 300, 3000])
@pytest.mark.parametrize("block", [1, 5000])
def test_a_table_at_another_rate_gives_no_chunk(table: Callable[[Rows], Path], rows: int, block: int) -> None:
    with open_source(f"{table(at(25, rows))}?time=time", AT_100) as source:
        chunks = source.chunks(block)
        with pytest.raises(
            UsageError, match=r"x\.\w+: by its column 'time' the rows come at 25 Hz, but .* 100 Hz"
        ):
            next(chunks)


def test_a_table_at_the_rate_is_taken_whole(table: Callable[[Rows], Path]) -> None:
    for rows in (1, 2, 1023, 1024, 1025, 2500):
        with open_source(f"{table(at(100, rows))}?time=time", AT_100) as source:
            taken, stamps = [], []
            for chunk in source.chunks(7):
                taken.append(chunk["x"][:, 0])
                assert source.stamped == "time"
                assert source.stamps is not None
                assert source.stamp == source.stamps[-1]
                stamps.append(source.stamps)
        assert np.concatenate(taken).tolist() == list(range(rows))
        np.testing.assert_allclose(np.concatenate(stamps), np.arange(rows) / 100, atol=1e-9)


def test_other_ways_to_set_the_rate(table: Callable[[Rows], Path]) -> None:
    name = table(at(25, 50))
    assert sum(len(c["x"]) for c in read(f"{name}?time=time&rate=any", AT_100)) == 50
    assert sum(len(c["x"]) for c in read(f"{name}?time=time", Signal(AT_100.tensors, 25.0))) == 50
    assert sum(len(c["x"]) for c in read(f"{name}?time=time", Signal(AT_100.tensors))) == 50
    (chunk,) = read(f"{name}?time=time", TIMED, 100)
    np.testing.assert_allclose(chunk["time"], np.arange(50) / 25)


def test_units(table: Callable[[Rows], Path]) -> None:
    for unit, scale in (("ms", 1e3), ("us", 1e6), ("ns", 1e9)):
        name = table(at(100, 50, scale))
        with pytest.raises(
            UsageError, match=rf"read in {unit} the rate would fit: say \?time=time&unit={unit}"
        ):
            read(f"{name}?time=time", AT_100)
        with open_source(f"{name}?time=time&unit={unit}", AT_100) as source:
            assert sum(len(chunk["x"]) for chunk in source.chunks(100)) == 50
            assert source.stamp == pytest.approx(0.49)
            assert source.stamps is not None
            assert source.stamps[-1] == pytest.approx(0.49 * scale)
        (chunk,) = read(f"{name}?time=time&unit={unit}", TIMED, 100)
        np.testing.assert_allclose(chunk["time"], np.arange(50) / 100)


def test_times_in_iso_8601(table: Callable[[Rows], Path]) -> None:
    def iso(rate: float) -> Rows:
        return [
            (datetime.fromtimestamp(1.7e9 + n / rate, UTC).isoformat(timespec="milliseconds"), 0.0)
            for n in range(60)
        ]

    assert sum(len(c["x"]) for c in read(f"{table(iso(100))}?time=time", AT_100)) == 60
    with pytest.raises(UsageError, match="at 25 Hz, but the pipeline takes 100 Hz"):
        read(f"{table(iso(25))}?time=time", AT_100)


@pytest.mark.parametrize("signal", [AT_100, Signal(AT_100.tensors)])
def test_time_that_runs_backwards(table: Callable[[Rows], Path], signal: Signal) -> None:
    rows = at(100, 20)
    rows[11] = (0.05, 11.0)
    with pytest.raises(UsageError, match=r"(line 13|line 12|row 12).*runs backwards, from 0\.1 to 0\.05 s"):
        read(f"{table(rows)}?time=time", signal)


def test_time_that_stands_still(table: Callable[[Rows], Path]) -> None:
    with pytest.raises(UsageError, match=r"'time' stands still: 200 rows at 1\.0 s"):
        read(f"{table([(1.0, 0.0)] * 200)}?time=time", AT_100)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_of_a_pipe_are_given_at_once_and_refused_within_a_few(tmp_path: Path, kind: str) -> None:
    rows = write(tmp_path / f"all.{kind}", at(25, 200)).read_text().splitlines(keepends=True)
    os.mkfifo(tmp_path / f"x.{kind}")
    first, go = rows[:3], threading.Event()

    def feed() -> None:
        with open(tmp_path / f"x.{kind}", "w") as pipe:
            pipe.write("".join(first))
            pipe.flush()
            go.wait(10)
            with contextlib.suppress(BrokenPipeError):
                pipe.write("".join(rows[3:]))

    writer = threading.Thread(target=feed)
    writer.start()
    with open_source(f"{tmp_path}/x.{kind}?time=time", AT_100) as source:
        chunks: Iterator[object] = source.chunks(1000)
        next(chunks)
        go.set()
        with pytest.raises(UsageError, match="at 25 Hz, but the pipeline takes 100 Hz"):
            for _ in chunks:
                pass
    writer.join(10)


def test_unused_time_column_causes_a_warning(
    table: Callable[[Rows], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for rate, more in ((25, "though by that column, in seconds, they come at 25 Hz"), (100, "")):
        name = table(at(rate, 50))
        read(name, AT_100)
        told = capsys.readouterr().err
        assert told.count("the column 'time' is not used, its rows are taken as 100 Hz") == 1
        assert "?time=time" in told
        assert more in told
        assert ("though" in told) == bool(more)
    read(f"{name}?time=time", AT_100)
    read(name, Signal((TensorSpec("time", "float32"),), 100.0))
    read(name, TIMED)
    assert "not used" not in capsys.readouterr().err


def test_gaps_are_reported_at_the_end(
    table: Callable[[Rows], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(t + 60.0 * (n >= 30), x) for n, (t, x) in enumerate(at(100, 100))]
    read(f"{table(rows)}?time=time", AT_100)
    assert "has gaps, 1 in all, the longest of 60.01 s" in capsys.readouterr().err
