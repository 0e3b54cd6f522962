"""A time column of the input is kept in the tables of outputs, with the rows' true times."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from runnel import Engine
from runnel.cli.main import main
from runnel.cli.stamps import Stamps, step_of, step_served
from runnel.columns import columns_of
from runnel.spec import Signal, TensorSpec

HEAD = '[input]\nshape = [1]\ndtype = "float32"\nrate = 100\n'
GAIN = '[[before]]\nuse = "gain"\nfactor = 2.0\n'
DECIMATE = '[[before]]\nuse = "decimate"\nevery = 4\n'
RESAMPLE = '[[before]]\nuse = "resample"\nrate = 50\n'

TICK = """
[input.tensors]
x = { shape = [1] }
time = { dtype = "float64" }
[[before]]
use = "tick"
rate = 20
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(name: str) -> dict[str, list[float]]:
    with open(name) as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows] for key in rows[0]}


def table(path: Path, times: list[object], column: str = "when") -> None:
    path.write_text(f"{column},x\n" + "".join(f"{t},{n}\n" for n, t in enumerate(times)))


@pytest.mark.parametrize("chunk", [1, 7, 5000])
@pytest.mark.parametrize(("stages", "every"), [(GAIN, 1), (DECIMATE, 4)])
def test_each_row_has_the_time_of_the_input_row_that_it_lies_at(
    here: Path, chunk: int, stages: str, every: int
) -> None:
    """The numbers are the row numbers, so that each row says itself which row it is of."""
    (here / "p.toml").write_text(HEAD + stages)
    times = [round(5 + n / 100 + 0.001 * (n % 3), 6) for n in range(2000)]
    table(here / "x.csv", list(times))
    outs = [word for out in ("o.csv", "o.tsv", "o.jsonl", "o.npy") for word in ("-o", out)]
    assert main(["run", "p.toml", "x.csv?time=when", "--chunk", str(chunk), "-q", *outs]) == 0
    made = written("o.csv")
    assert list(made) == ["when", "x"]
    assert made["when"] == times[::every]
    rows = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert [row["when"] for row in rows] == times[::every]
    assert np.load("o.npy").dtype == np.float32, "an array has no columns that time could be one of"


def test_times_stand_in_their_own_unit(here: Path) -> None:
    (here / "p.toml").write_text(HEAD + GAIN)
    table(here / "x.csv", [1000 + 10 * n for n in range(30)], "t_ms")
    assert main(["run", "p.toml", "x.csv?time=t_ms&unit=ms", "-q", "-o", "o.csv"]) == 0
    assert written("o.csv")["t_ms"] == [1000 + 10 * n for n in range(30)]


@pytest.mark.parametrize(
    ("stages", "column", "says"),
    [
        (RESAMPLE, "when", "latency of"),
        (TICK, "when", "'tick' come when they come"),
        (GAIN, "x.0", "an output of that name"),
    ],
)
def test_times_that_are_not_known_are_left_out_and_that_is_told(
    here: Path, capsys: pytest.CaptureFixture[str], stages: str, column: str, says: str
) -> None:
    (here / "p.toml").write_text(stages if stages is TICK else HEAD + stages)
    times = [n / 100 for n in range(50)]
    if column == "when":
        table(here / "x.csv", list(times))
        words = ["x.csv?time=when"]
    else:
        (here / "x.csv").write_text("x,y\n" + "".join(f"{t},1\n" for t in times))
        words = ["x.csv?time=x", "--columns", "y"]
    assert main(["run", "p.toml", *words, "-q", "-o", "o.csv"]) == 0
    told = capsys.readouterr().err
    assert "is not kept in the output" in told
    assert says in told
    with open("o.csv") as file:
        assert "when" not in next(csv.reader(file))


@pytest.mark.parametrize(("up", "down"), [(1, 1), (1, 3), (3, 1), (2, 3), (3, 2)])
def test_times_between_rows_lie_on_the_line_between_them(up: int, down: int) -> None:
    rng = np.random.default_rng(up * 10 + down)
    times = np.cumsum(rng.uniform(0.5, 1.5, 200))
    rows = len(times) * up // down
    want = np.interp(np.arange(rows) * down / up, np.arange(len(times)), times)
    stamps, made, given = Stamps("t", Fraction(down, up)), [], 0
    while given < len(times):
        size = int(rng.integers(1, 20))
        stamps.note(times[given : given + size])
        given = min(len(times), given + size)
        made.append(stamps.take(max(0, (given - 1) * up // down - sum(map(len, made)))))
        assert len(stamps._times) < 40, "what is past is forgotten"
    made.append(stamps.take(rows - sum(map(len, made))))
    inside = np.arange(rows) * down / up <= len(times) - 1
    np.testing.assert_allclose(np.concatenate(made)[inside], want[inside], rtol=1e-12)
    if (up, down) == (1, 1):
        np.testing.assert_array_equal(np.concatenate(made), times)


def test_a_row_behind_the_last_goes_on_as_the_last_two() -> None:
    stamps = Stamps("t", Fraction(1, 2))
    stamps.note(np.array([1.0, 2.0]))
    assert stamps.take(4).tolist() == [1.0, 1.5, 2.0, 2.5]
    alone = Stamps("t", Fraction(1))
    alone.note(np.array([3.0]))
    assert alone.take(1).tolist() == [3.0]


def test_a_daemon_says_as_much_as_its_rates(here: Path) -> None:
    def signal(rate: float | None) -> Signal:
        return Signal((TensorSpec("x", "float32"),), rate)

    assert step_served(signal(100.0), signal(25.0), 0) == 4
    assert step_served(signal(16000.0), signal(16000.0 / 3), 0) == 3
    assert "latency" in str(step_served(signal(100.0), signal(25.0), 3))
    for rates in ((None, 5.0), (5.0, None), (None, None)):
        assert "no rate" in str(step_served(*map(signal, rates), 0))
    (here / "p.toml").write_text(HEAD + DECIMATE)
    with Engine.load("p.toml") as engine:
        assert step_of(engine.pipeline) == 4
        assert columns_of(engine.pipeline.outputs) == ["x"]
