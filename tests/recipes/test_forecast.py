"""The forecast recipe: what is streamed is torch's, and what it is compared with is recomputed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forecast import faults, live, pipelines, recipe, series, structural
from forecast.network import LAGS, NAMES, Forecaster
from forecast.series import BASELINES, HORIZONS
from measured import Table
from statsmodels.datasets import co2

import runnel_export
from runnel import Engine
from runnel.errors import RunnelError, UsageError
from tests.recipes.pages import recorded

WEEKLY: np.ndarray = co2.load().data["co2"].to_numpy(np.float64)
DATES: np.ndarray = co2.load().data.index.to_numpy()
FIRST = int((np.datetime64("1992-01-01") > DATES).sum())  # of the test part
TRAINED = int((np.datetime64("1984-01-01") > DATES).sum())
RMSE, MASE = 0, 1  # the order of the tables


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Table]]:
    out = tmp_path_factory.mktemp("forecast")
    return out, recipe.run(out, True, lambda text: None)


def filled() -> np.ndarray:
    whole = WEEKLY.copy()
    for t in range(1, len(whole)):
        if np.isnan(whole[t]):
            whole[t] = whole[t - 1]
    return whole


def by_torch(out: Path) -> np.ndarray:
    """The module with the recipe's weights, fed with lags that are taken here: (n, horizons), ppm."""
    text = (out / "forecast.toml").read_text()
    mean, std = (float(re.search(rf"^{key} = (.*)$", text, re.M)[1]) for key in ("mean", "std"))  # type: ignore[index]
    whole = filled()
    past = np.array([[whole[max(0, t - lag)] for lag in LAGS] for t in range(len(whole))])
    network = Forecaster().double()
    network.load_state_dict(torch.load(out / "forecast.pt", weights_only=True))
    given = torch.from_numpy((past - mean) / std), torch.from_numpy(np.isnan(WEEKLY).astype(np.float64))
    with torch.no_grad():
        foretold = network(*(tensor[None] for tensor in given))
    return np.stack([foretold[name][0].numpy() for name in NAMES], axis=1) * std + mean


def missed(rows: np.ndarray, k: int) -> np.ndarray:
    """Errors of the test part at the k-th horizon, from forecasts by the week they were made in."""
    h = HORIZONS[k]
    return np.array([rows[t - h, k] - WEEKLY[t] for t in range(FIRST, len(WEEKLY)) if WEEKLY[t] > 0])


def figures(errors: list[np.ndarray]) -> tuple[list[str], list[str]]:
    """What the two tables say of them."""
    scale = np.nanmean([abs(WEEKLY[t] - WEEKLY[t - 52]) for t in range(52, TRAINED)])
    return [f"{(e**2).mean() ** 0.5:.3f}" for e in errors], [f"{abs(e).mean() / scale:.3f}" for e in errors]


def test_the_stream_is_torch_however_it_is_cut(made: tuple[Path, list[Table]]) -> None:
    out, tables = made
    weeks = WEEKLY.astype(np.float32)
    cuts = np.sort(np.random.default_rng(1).choice(np.arange(1, len(weeks)), 40, replace=False))
    with Engine.load(out / "forecast.toml") as engine, engine.open() as stream:
        replies = [stream.feed({"co2": piece}) for piece in np.split(weeks, cuts)]
    streamed = np.stack([np.concatenate([r[name] for r in replies]) for name in NAMES], axis=1)
    expected = by_torch(out)
    np.testing.assert_allclose(streamed, expected, atol=1e-3)
    np.testing.assert_allclose(np.concatenate([r["co2"] for r in replies]), filled(), atol=1e-3)
    # The table's own row is of this stream. Its last digit may be rounded either way.
    row = [float(cell) for cell in row_of(tables[RMSE], recipe.NETWORK)]
    np.testing.assert_allclose(row, [(missed(expected, k) ** 2).mean() ** 0.5 for k in range(5)], atol=1.1e-3)


def test_the_model_file_is_certified(made: tuple[Path, list[Table]]) -> None:
    certificate = runnel_export.verify(made[0] / "forecast.onnx")
    assert certificate.passed
    assert certificate.error < 1e-5


def by_hand(name: str, t: int, h: int, whole: np.ndarray) -> float:
    """The definitions, a week at a time."""
    if name == "persistence":
        return float(whole[t])
    if name == "seasonal naive":
        return float(whole[t + h - 52])
    if name == "seasonal naive with drift":
        return float(whole[t + h - 52] + whole[t] - whole[t - 52])
    changes = [whole[t + h - 52 * year] - whole[t - 52 * year] for year in (1, 2, 3, 4, 5)]
    return float(whole[t] + sum(changes) / 5)


@pytest.mark.parametrize("name", BASELINES)
def test_what_it_is_compared_with(made: tuple[Path, list[Table]], name: str) -> None:
    whole = filled()
    errors = [
        np.array([by_hand(name, t - h, h, whole) - WEEKLY[t] for t in range(FIRST, len(WEEKLY))])
        for h in HORIZONS
    ]
    for k, row in enumerate(figures(errors)):
        assert row_of(made[1][k], name) == row
        assert row_of(recorded("forecast")[k], name) == row


def test_an_untrained_network_is_the_mean_change() -> None:
    """Where its years lie within the series."""
    whole = filled()
    past = np.array([[whole[t - lag] for lag in LAGS] for t in range(300, 900)])
    with torch.no_grad():
        foretold = Forecaster().double()(torch.from_numpy(past)[None], torch.zeros(1, 600).double())
    for h, name in zip(HORIZONS, NAMES, strict=True):
        expected = [by_hand("mean change", t, h, whole) for t in range(300, 900)]
        np.testing.assert_allclose(foretold[name][0].numpy(), expected, atol=1e-4)


def test_the_structural_forecast_is_statsmodels_own() -> None:
    data = series.co2()
    parameters = structural.fit(data, data.validate, 2)
    rows = structural.foretold(data, parameters)
    for t in (FIRST, FIRST + 200):
        own = structural.model(WEEKLY[: t + 1]).filter(parameters).forecast(52)
        np.testing.assert_allclose(rows[t], own[[h - 1 for h in HORIZONS]], rtol=1e-9)


def test_a_fault_is_planted_where_it_says() -> None:
    values = np.arange(100, dtype=np.float32)
    for kind, at, changed in zip(
        faults.KINDS, (50, 60, 70), ([50], range(60, 100), range(70, 83)), strict=True
    ):
        bad = faults.Fault(kind, at, -1).planted(values)
        assert np.flatnonzero(bad != values).tolist() == list(changed)
    assert set(bad[69:83]) == {69.0}
    planted = faults.draw(series.co2(), 10, 0)
    assert len(set(planted)) == 30
    assert planted == faults.draw(series.co2(), 10, 0)


def test_alarms_are_counted_as_they_are_defined() -> None:
    """Eight alarms of one fault at week 20: before it, in every stream, within, in a row, and after it."""
    clean = np.zeros(104, bool)
    clean[[5, 30, 31]] = True
    alarms = clean.copy()
    alarms[[23, 24, 50, 51, 80]] = True
    unseen = clean.copy()
    kind = faults.KINDS[0]
    seen, missed_one = faults.Fault(kind, 20, 1), faults.Fault(kind, 25, 1)
    watched = faults.Watched(clean, {seen: alarms, missed_one: unseen})
    assert watched.of(kind) == (1, 2, 3, 1.0)
    assert watched.false_a_year == 1.0


def test_a_trial_is_the_whole_series_with_a_fault_in_it(made: tuple[Path, list[Table]]) -> None:
    """From the snapshot on, batched with others, as if one stream had been given all of it."""
    data = series.co2()
    planted = faults.draw(data, 1, 3)
    path = made[0] / "watch_13.toml"
    watched = faults.watched(path, data, planted)
    fault = planted[-1]
    whole = np.concatenate([WEEKLY[:FIRST], fault.planted(WEEKLY[FIRST:])]).astype(np.float32)
    with Engine.load(path) as engine, engine.open() as stream:
        out = stream.feed({"co2": whole})
    np.testing.assert_array_equal(out["anomaly"][FIRST:], watched.alarms[fault])
    # What `forecast_error` compares: this week with the forecast of thirteen weeks before.
    np.testing.assert_allclose(out["residual"][13:], out["co2"][13:] - out["week_13"][:-13], atol=1e-4)


def test_a_burst_is_seen_where_it_was() -> None:
    time = np.arange(10, dtype=np.float64)
    unusual = np.zeros((10, 2), bool)
    unusual[[2, 6], [1, 0]] = True
    seen = live.Seen(time, np.zeros((10, 2)), unusual, begin=4.5, end=6.5, tick=1.0)
    assert np.flatnonzero(seen.during).tolist() == [5, 6, 7, 8]
    assert seen.delay == 1.5
    assert seen.elsewhere == 1
    unusual[6, 0] = False
    assert seen.delay is None


MACHINE = """
import collections, pathlib, time
Times, Memory = collections.namedtuple("Times", "user idle"), collections.namedtuple("Memory", "percent")
spent, last = [0.0, 0.0], time.monotonic()

def cpu_times(percpu=False):
    global last
    passed, last = time.monotonic() - last, time.monotonic()
    share = 0.9 if pathlib.Path(__file__).with_name("busy").exists() else 0.1
    spent[0] += share * passed
    spent[1] += (1 - share) * passed
    return [Times(*spent)] if percpu else Times(*spent)

def virtual_memory():
    return Memory(20.0)

def cpu_count():
    return 1
"""


def test_a_burst_on_a_machine_at_rest_is_seen_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real run, of a machine whose load is the test's own: the real one may be busy anyway."""
    (tmp_path / "psutil.py").write_text(MACHINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    script = 'sleep "$1"; rm "$0"'

    def load(seconds: float) -> list[subprocess.Popen[bytes]]:
        (tmp_path / "busy").touch()
        return [subprocess.Popen(["sh", "-c", script, tmp_path / "busy", str(seconds)])]

    monkeypatch.setattr(live, "load", load)
    plan = live.Plan(rate=4, warm_up=6, quiet=2, burst=1.5, seconds=4.75)
    path = pipelines.write(tmp_path, "host", pipelines.host(plan.rate, plan.warm_up))
    seen = live.watch(path, plan)
    assert seen.delay is not None
    assert seen.delay < plan.burst
    assert seen.elsewhere <= 2  # ticks that were late
    assert seen.load[seen.during, 0].max() > 80 > 20 > seen.load[~seen.during, 0].min()
    assert set(seen.load[:, 1]) == {20.0}


def test_a_live_run_that_is_stopped_leaves_no_load_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[subprocess.Popen[bytes]] = []

    def load(seconds: float) -> list[subprocess.Popen[bytes]]:
        busy.append(subprocess.Popen(["sleep", "60"]))
        return busy

    def loads(line: str) -> dict[str, object]:
        if busy:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(live, "load", load)
    monkeypatch.setattr("json.loads", loads)
    with pytest.raises(KeyboardInterrupt):
        live.watch(pipelines.write(tmp_path, "host", pipelines.host(50, 2)), live.Plan(50, 2, 1, 60, 60))
    assert [process.returncode for process in busy] == [-9]


def test_a_live_run_that_fails_says_why(tmp_path: Path) -> None:
    path = pipelines.write(tmp_path, "host", pipelines.host(10, 10).replace('"cpu"', '"cup"'))
    with pytest.raises(RunnelError, match=r"ended with status 2: .*no metric 'cup'"):
        live.watch(path, live.Plan(10, 10, 3, 0.5, 1))


def test_it_watched_this_machine_and_drew_it(made: tuple[Path, list[Table]]) -> None:
    from matplotlib import image

    out, tables = made
    title, (row,) = tables[-1].title, tables[-1].rows
    assert title == "This machine, live"
    assert row[0] == "0.5 s"
    assert row[3] == "not seen" or re.fullmatch(r"seen after \d\.\d s", row[3])
    assert 0 < int(row[4].split()[2]) < 16
    pixels = image.imread(out / "forecast.png")[..., :3]
    assert 0.02 < float((pixels.min(axis=2) < 0.9).mean()) < 0.9


def test_what_is_missing_is_said_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels", None)
    with pytest.raises(UsageError, match=r"need the package statsmodels .*pip install 'runnel\[recipes\]'"):
        recipe.run(tmp_path, True, print)
    assert not list(tmp_path.iterdir())


def test_the_recorded_network_beats_all_that_need_no_model() -> None:
    assert beaten(recorded("forecast"))


@pytest.mark.soak
def test_the_whole_recipe(tmp_path: Path) -> None:
    tables = recipe.run(tmp_path, False, print)
    assert beaten(tables)
    noticed = {(row[0], row[1]): int(row[2].split()[0]) for row in tables[2].rows}
    spike, _, stuck = faults.KINDS
    week, quarter = recipe.WATCHES
    assert noticed[week, spike] > 20
    assert noticed[quarter, stuck] > 20 > noticed[recipe.PLAIN, stuck]


def beaten(tables: list[Table]) -> bool:
    return all(
        float(ours) < float(theirs)
        for table in tables[:2]
        for name in BASELINES
        for ours, theirs in zip(row_of(table, recipe.NETWORK), row_of(table, name), strict=True)
    )


def row_of(table: Table, name: str) -> list[str]:
    (row,) = [list(row[1:]) for row in table.rows if row[0] == name]
    assert len(row) == len(HORIZONS)
    return row
