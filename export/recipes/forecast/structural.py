"""A strong classical forecast for comparison: a drifting level, the season's harmonics, coloured noise.

A. C. Harvey, Forecasting, Structural Time Series Models and the Kalman Filter, 1989, by statsmodels. The
forecast made in week t for h weeks later is Z T^h a[t]. Here a[t] is the state given all weeks up to t.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from runnel.spec import Array

from .series import HORIZONS, Series

WEEKS = 365.25 / 7  # weeks of a true year
HARMONICS = 3


def model(values: Array) -> Any:
    """Return statsmodels' model of these weeks, before its parameters are fitted."""
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    season = [{"period": WEEKS, "harmonics": HARMONICS}]
    return UnobservedComponents(values, level="local linear trend", autoregressive=1, freq_seasonal=season)


def fit(series: Series, first: int, iterations: int) -> Array:
    """Return the model's parameters, fitted to the weeks from `first` to the test part."""
    from statsmodels.tools.sm_exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # with --quick, the fit stops early
        found: Array = model(series.values[first : series.test]).fit(disp=0, maxiter=iterations).params
    return found


def foretold(series: Series, parameters: Array) -> Array:
    """Return forecasts (n, horizons), ppm. Row t is made from the weeks up to t."""
    found = model(series.values).filter(parameters).filter_results
    design, step = found.design[:, :, 0], found.transition[:, :, 0]
    made = [design @ np.linalg.matrix_power(step, h) @ found.filtered_state for h in HORIZONS]
    rows: Array = np.concatenate(made).T
    return rows
