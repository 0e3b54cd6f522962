"""The rate of rows by their times: which times are accepted or refused."""

from __future__ import annotations

import numpy as np
import pytest

from runnel.errors import UsageError
from runnel.times import FIRST, STILL, WINDOW, RowClock, pace

RNG = np.random.default_rng(11)


def clock(stamps, rate: float | None = 100.0, live: bool = False, unit: str = "s") -> RowClock:
    """Return a clock that has all the stamps."""
    made = RowClock("x.csv", "t", rate, live, unit)
    for stamp in stamps:
        made.follow(float(stamp))
    made.end()
    return made


def at(rate: float, rows: int = 3000) -> np.ndarray:
    return np.arange(rows) / rate


@pytest.mark.parametrize(
    ("rate", "stamps"),
    [
        (100, at(100)),
        (100, 1.7e9 + at(100)),
        (100, at(100, 2)),
        (100, at(100, 1)),
        (100, at(101.5)),
        (100, at(100) + RNG.uniform(-0.003, 0.003, 3000)),
        (100, np.sort(at(100) + RNG.uniform(-0.01, 0.01, 3000))),
        (400, np.round(at(400), 3)),
        (700, np.round(at(700), 3)),
        (60, np.round(at(60, 3), 3)),
        (100, np.floor(at(100))),
        (100, np.floor(at(100, 40))),
        (16000, np.round(at(16000), 3)),
        (100, at(100) + 3600.0 * (np.arange(3000) > 1500)),
        (100, np.repeat(at(10, 300), 10)),
        (1 / 3600, 3600.0 * np.arange(50)),
    ],
    ids=[
        "exact", "since 1970", "two rows", "one row", "1.5 % off", "jitter", "jitter of a whole period",
        "2.5 ms in whole ms", "1.4 ms in whole ms", "three rows in whole ms", "whole seconds",
        "fewer rows than a second holds", "sound in ms", "an hour's gap", "ten at once", "hourly",
    ],
)  # fmt: skip
@pytest.mark.parametrize("live", [False, True])
def test_rows_at_the_rate_are_taken(rate, stamps, live) -> None:
    clock(stamps, rate, live)


@pytest.mark.parametrize(
    ("rate", "stamps", "says"),
    [
        (100, at(25), "at 25 Hz, but the pipeline takes 100 Hz"),
        (100, at(25, 2), "at 25 Hz, but"),
        (100, at(50, 2), "at 50 Hz, but"),
        (100, at(200), "at 200 Hz, but"),
        (100, at(95), "at 95 Hz, but"),
        (100, at(25) + RNG.uniform(-0.01, 0.01, 3000), "Hz, but the pipeline takes 100 Hz"),
        (100, np.floor(at(25)), "Hz, but the pipeline takes 100 Hz"),
        (100, at(25) + 3600.0 * (np.arange(3000) > 1500), "at 25 Hz, but"),
        (100, np.concatenate([at(100, 5000), 50 + at(25, 2000)]), "at 25 Hz, but"),
        (100, np.full(3000, 5.0), "stands still"),
        (None, np.full(3000, 5.0), "stands still"),
        (100, 1000 * at(100), r"read in ms the rate would fit: say \?time=t&unit=ms"),
        (100, 1e9 * at(100), r"read in ns .* \?time=t&unit=ns"),
    ],
)
@pytest.mark.parametrize("live", [False, True])
def test_rows_at_another_rate_are_refused(rate, stamps, says, live) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        clock(stamps, rate, live)
    if "still" not in says:
        for way in ('use = "tick"', 'use = "resample", rate = 100', "?time=t&rate=any"):
            assert way in str(caught.value)


@pytest.mark.parametrize("rate", [100.0, None])
def test_time_that_runs_backwards_is_refused_at_its_row(rate) -> None:
    made = RowClock("x.csv", "t", rate, False)
    made.follow(1.0)
    made.follow(1.01)
    with pytest.raises(ValueError, match=r"runs backwards, from 1\.01 to 1\.0 s"):
        made.follow(1.0)


def test_rows_of_unknown_pace_are_accepted_with_rate_any() -> None:
    clock(np.cumsum(RNG.exponential(1.0, 3000)), None)


def test_file_waits_for_a_window_and_live_source_does_not_wait() -> None:
    made, live = RowClock("x", "t", 100.0, False), RowClock("x", "t", 100.0, True)
    assert live.ready
    for n in range(WINDOW):
        assert not made.ready
        made.follow(n / 100)
    assert made.ready
    for n in range(FIRST - 1):
        live.follow(n / 25)
    with pytest.raises(UsageError, match="at 25 Hz"):
        live.follow((FIRST - 1) / 25)


def test_at_most_one_window_is_held() -> None:
    made = RowClock("x", "t", 100.0, True)
    for n in range(5 * WINDOW):
        made.follow(n / 100)
        assert len(made._window) <= WINDOW
    assert STILL > 0


def test_gaps_are_counted_once_and_reported_at_the_end() -> None:
    stamps = at(100, 5000) + 60.0 * (np.arange(5000) >= 40) + 3600.0 * (np.arange(5000) >= 3000)
    for live in (False, True):
        told = clock(stamps, live=live).warning()
        assert "has gaps, 2 in all, the longest of 3600" in told
        assert "tick" in told
    assert clock(at(100)).warning() == ""
    assert clock(stamps, None).warning() == ""


def test_the_pace_is_the_mean_step_without_the_gaps() -> None:
    found = pace(np.array([0.0, 1.0, 2.0, 3.0, 13.0, 14.0]))
    assert (found.period, found.mean, found.gaps, found.longest) == (1.0, 2.8, 1, 10.0)
    assert pace(np.array([3.0])) is None
    assert pace(np.array([3.0, 3.0])) is None
