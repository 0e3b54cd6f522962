"""Carbon dioxide in the air at Mauna Loa, a number a week, and the forecasts that need no model.

The series comes with statsmodels (C. D. Keeling and T. P. Whorf, Scripps Institution of Oceanography: weekly
averages of March 1958 to December 2001, in parts per million). Weeks without a measurement are NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from runnel.spec import Array

HORIZONS = (1, 4, 13, 26, 52)  # weeks ahead
YEAR = 52  # weeks: the season's length, a day and a quarter short of the true one
YEARS = 5  # whose change over the same weeks is averaged
VALIDATE, TEST = "1984-01-01", "1992-01-01"  # training before the first, tests from the second on


@dataclass(frozen=True)
class Series:
    """`dates` (n,) of weeks; `values` (n,) float64, ppm, NaN where nothing was measured.

    Weeks before `validate` train, those before `test` choose among what was trained, the rest judges.
    """

    dates: Array
    values: Array
    validate: int
    test: int

    @property
    def train(self) -> Array:
        return self.values[: self.validate]

    @property
    def held(self) -> Array:
        """Gaps filled by the last number before them, as the pipeline's stage `impute` does."""
        newest = np.maximum.accumulate(np.where(np.isnan(self.values), 0, np.arange(len(self.values))))
        return self.values[newest]


def co2() -> Series:
    from statsmodels.datasets import co2 as source

    table = source.load().data["co2"]
    dates = table.index.to_numpy().astype("datetime64[D]")
    first = [int(np.searchsorted(dates, np.datetime64(day))) for day in (VALIDATE, TEST)]
    return Series(dates, table.to_numpy(np.float64), *first)


def earlier(held: Array, lag: int) -> Array:
    """Of each week the value `lag` weeks before it; before the first week, the first."""
    return np.concatenate([np.full(lag, held[0]), held[: len(held) - lag]])


def persistence(held: Array, horizon: int) -> Array:
    """It stays as it is."""
    return held


def seasonal(held: Array, horizon: int) -> Array:
    """It will be what it was in that week a year ago (Hyndman and Athanasopoulos, Forecasting, 5.2)."""
    return earlier(held, YEAR - horizon)


def seasonal_drift(held: Array, horizon: int) -> Array:
    """The same, and as much more as there is now than a year ago."""
    return seasonal(held, horizon) + held - earlier(held, YEAR)


def mean_change(held: Array, horizon: int) -> Array:
    """It will change as it did over the same weeks in the last five years, on average."""
    changes = [earlier(held, k * YEAR - horizon) - earlier(held, k * YEAR) for k in range(1, YEARS + 1)]
    made: Array = held + np.mean(changes, axis=0)
    return made


# (the series with its gaps filled, (n,); weeks ahead) -> the forecasts made in each week, (n,)
BASELINES: Mapping[str, Callable[[Array, int], Array]] = {
    "persistence": persistence,
    "seasonal naive": seasonal,
    "seasonal naive with drift": seasonal_drift,
    "mean change of five years": mean_change,
}


def made_by(baseline: Callable[[Array, int], Array], held: Array) -> Array:
    """(n, horizons): what it foretells in each week."""
    return np.stack([baseline(held, horizon) for horizon in HORIZONS], axis=1)


def errors(series: Series, made: Array, first: int, end: int) -> list[Array]:
    """For each horizon the errors in the weeks first … end-1 that were measured, in ppm.

    `made` (n, horizons): row t was foretold in week t, for week t + horizon.
    """
    weeks = np.arange(first, end)
    weeks = weeks[~np.isnan(series.values[weeks])]
    return [made[weeks - h, k] - series.values[weeks] for k, h in enumerate(HORIZONS)]


def rmse(error: Array) -> float:
    return float(np.sqrt(np.mean(error**2)))


def mase(error: Array, series: Series) -> float:
    """The mean absolute error in units of the seasonal naive forecast's over the training part.

    R. J. Hyndman and A. B. Koehler, Another look at measures of forecast accuracy, 2006.
    """
    change = series.train[YEAR:] - series.train[:-YEAR]
    return float(np.mean(np.abs(error)) / np.nanmean(np.abs(change)))
