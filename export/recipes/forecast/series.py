"""Carbon dioxide in the air at Mauna Loa, one number per week, and forecasts that need no model.

The series comes with statsmodels (C. D. Keeling and T. P. Whorf, Scripps Institution of Oceanography: weekly
averages of March 1958 to December 2001, in parts per million). Weeks without a measurement are NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from runnel.spec import Array

HORIZONS = (1, 4, 13, 26, 52)  # weeks ahead
YEAR = 52  # weeks: length of the season; the true year is a day and a quarter longer
YEARS = 5  # years whose change over the same weeks is averaged
VALIDATE, TEST = "1984-01-01", "1992-01-01"  # training ends at the first, the test part starts at the second


@dataclass(frozen=True)
class Series:
    """`dates` (n,) of weeks; `values` (n,) float64, ppm, NaN for a week without a measurement.

    Weeks before `validate` are the training part, weeks before `test` the validation part, the rest the test
    part.
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
        """Return the values with each gap filled by the last number before it, as the stage `impute` does."""
        newest = np.maximum.accumulate(np.where(np.isnan(self.values), 0, np.arange(len(self.values))))
        return self.values[newest]


def co2() -> Series:
    from statsmodels.datasets import co2 as source

    table = source.load().data["co2"]
    dates = table.index.to_numpy().astype("datetime64[D]")
    first = [int(np.searchsorted(dates, np.datetime64(day))) for day in (VALIDATE, TEST)]
    return Series(dates, table.to_numpy(np.float64), *first)


def earlier(held: Array, lag: int) -> Array:
    """Return, for each week, the value `lag` weeks before it; before the first week, the first value."""
    return np.concatenate([np.full(lag, held[0]), held[: len(held) - lag]])


def persistence(held: Array, horizon: int) -> Array:
    """Forecast the current value."""
    return held


def seasonal(held: Array, horizon: int) -> Array:
    """Forecast the value of that week a year ago (Hyndman and Athanasopoulos, Forecasting, 5.2)."""
    return earlier(held, YEAR - horizon)


def seasonal_drift(held: Array, horizon: int) -> Array:
    """Forecast the value of that week a year ago, plus the change since a year ago."""
    return seasonal(held, horizon) + held - earlier(held, YEAR)


def mean_change(held: Array, horizon: int) -> Array:
    """Forecast the mean change over the same weeks in the last five years."""
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
    """Return the baseline's forecasts made in each week, (n, horizons)."""
    return np.stack([baseline(held, horizon) for horizon in HORIZONS], axis=1)


def errors(series: Series, made: Array, first: int, end: int) -> list[Array]:
    """Return, for each horizon, the errors in ppm for the weeks first … end-1 that have a measurement.

    `made` (n, horizons): row t holds the forecasts made in week t, for week t + horizon.
    """
    weeks = np.arange(first, end)
    weeks = weeks[~np.isnan(series.values[weeks])]
    return [made[weeks - h, k] - series.values[weeks] for k, h in enumerate(HORIZONS)]


def rmse(error: Array) -> float:
    return float(np.sqrt(np.mean(error**2)))


def mase(error: Array, series: Series) -> float:
    """Return the mean absolute error, divided by that of the seasonal naive forecast on the training part.

    R. J. Hyndman and A. B. Koehler, Another look at measures of forecast accuracy, 2006.
    """
    change = series.train[YEAR:] - series.train[:-YEAR]
    return float(np.mean(np.abs(error)) / np.nanmean(np.abs(change)))
