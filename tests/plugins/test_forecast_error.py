"""forecast_error: the series minus the forecasts, shifted by the horizon."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel.laws.trial import play
from runnel_plugins.forecast_error import ForecastError


def signal(*shape, names=("forecast", "x")):
    return Signal(tuple(TensorSpec(name, "float32", shape) for name in names), 10.0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("horizon", [1, 5, 300])
def test_it_keeps_the_laws(shape, horizon):
    check_stage(lambda: ForecastError(signal(*shape), horizon=horizon))


@given(
    horizon=st.integers(1, 12),
    length=st.integers(0, 40),
    cut=st.integers(0, 40),
    shape=st.sampled_from([(), (3,)]),
)
def test_it_is_the_series_minus_the_shifted_forecast(horizon, length, cut, shape):
    rng = np.random.default_rng(length)
    x, forecast = rng.standard_normal((2, length, *shape)).astype(np.float32)
    parts = [{"forecast": forecast[p], "x": x[p]} for p in (slice(None, cut), slice(cut, None))]
    got = play(ForecastError(signal(*shape), horizon=horizon), parts)
    np.testing.assert_array_equal(got["x"], x)
    np.testing.assert_array_equal(got["forecast"], forecast)
    np.testing.assert_array_equal(
        got["residual"][horizon:], x[horizon:] - forecast[: max(0, length - horizon)]
    )
    assert np.isnan(got["residual"][:horizon]).all()


def test_perfect_forecast_has_no_residual():
    t = np.arange(20, dtype=np.float32)
    got = play(ForecastError(signal(), horizon=3), [{"forecast": t + 3, "x": t}])["residual"]
    assert got[3:].tolist() == [0] * 17


def test_streams_of_another_age_step_together():
    stage = ForecastError(signal(), horizon=2)
    states = [
        stage.step(stage.open(), {"forecast": np.full(n, n, np.float32), "x": np.zeros(n, np.float32)})[0]
        for n in range(4)
    ]
    ones = np.ones(3, np.float32)
    many = stage.step_many(states, [{"forecast": ones, "x": ones}] * 4)
    got = [result[1]["residual"].tolist() for result in many]
    assert np.array_equal(
        got, [[np.nan, np.nan, 0], [np.nan, 0, 0], [-1, -1, 0], [-2, -2, 0]], equal_nan=True
    )


def test_the_arrays_are_found_by_name():
    inputs = signal(names=("x", "y", "guess"))
    stage = ForecastError(inputs, "guess", "y")
    chunk = {name: np.full(2, i, np.float32) for i, name in enumerate(inputs.names)}
    assert stage.step(stage.open(), chunk)[1]["residual"][1] == -1
    assert stage.outputs.names == ("x", "y", "guess", "residual")


@pytest.mark.parametrize("name", ["forecast", "x"])
def test_nan_is_refused(name):
    stage = ForecastError(signal())
    chunk = {n: np.zeros(2, np.float32) for n in ("forecast", "x")}
    chunk[name][1] = np.nan
    with pytest.raises(NonFiniteError, match=f"forecast_error: '{name}' has nan at time step 1"):
        stage.step(stage.open(), chunk)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"held": np.zeros((3, 1), np.float32)}, r"'held' has shape \(3, 1\), expected \(2, 1\)"),
        ({"held": np.full((2, 1), np.nan, np.float32)}, "is not finite"),
        ({"made": np.array(3)}, "3 forecasts of a horizon of 2"),
        ({"made": np.array(-1)}, "-1 forecasts"),
    ],
)
def test_impossible_states_are_not_restored(bad, says):
    stage = ForecastError(signal(1), horizon=2)
    with pytest.raises(SnapshotError, match=says):
        stage.load(stage.open(), {**stage.initial(), **bad})


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (signal(names=("y",)), {}, "forecast is 'forecast', but y: "),
        (signal(names=("forecast",)), {}, r"a second float32 array of the shape of forecast: float32 \(T\)"),
        (signal(names=("forecast", "a", "b")), {}, "'a', 'b' are: say with actual which"),
        (signal(), {"actual": "forecast"}, "is named by actual"),
        (
            Signal((TensorSpec("forecast", "float32", (2,)), TensorSpec("x", "float32"))),
            {"actual": "x"},
            r"x: float32 \(T\) is named by actual",
        ),
        (signal(), {"horizon": 0}, r"horizon must be in 1\.\.65536 steps, not 0"),
        (signal(), {"horizon": 65537}, "not 65537"),
        (signal(65), {"horizon": 65536}, "65536 rows would be held for each stream, 17039360 bytes"),
        (signal(names=("forecast", "x", "residual")), {"actual": "x"}, "makes 'residual'"),
    ],
)
def test_bad_options_are_refused_at_construction(inputs, options, says):
    with pytest.raises(PipelineError, match=says):
        ForecastError(inputs, **options)
