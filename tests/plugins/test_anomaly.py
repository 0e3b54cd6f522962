"""anomaly: z against numpy's weighted mean and deviation of the samples before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel.laws.trial import play
from runnel_plugins.anomaly import Anomaly


def signal(*shape):
    return Signal((TensorSpec("x", "float32", shape),), 10.0)


def series(n, *shape, seed=0):
    return (np.random.default_rng(seed).standard_normal((n, *shape)) * 2 + 7).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((), {}),
        ((2, 2), {"memory": 10, "threshold": 1.5, "restart": 2, "warm_up": 5}),
        ((3,), {"memory": 0, "learn_all": True}),
    ],
)
def test_it_keeps_the_laws(shape, options):
    check_stage(lambda: Anomaly(signal(*shape), **options))


def test_it_keeps_the_laws_with_missing_values():
    x = series(200, 2)
    x[np.random.default_rng(1).random(x.shape) < 0.3] = np.nan
    check_stage(lambda: Anomaly(signal(2), warm_up=5), {"x": x})


def reference(x, memory, warm_up, threshold, floor=1e-6):
    """Return z with the weights of all learned samples: 1/k for the first `memory`, then decreasing."""
    learned, z = [], []
    for value in x.astype(np.float64):
        k = len(learned)
        if np.isnan(value):
            z.append(np.nan)
            continue
        if k < warm_up:
            z.append(0.0)
        else:
            rates = 1 / np.minimum(np.arange(1, k + 1), memory)
            keep = np.append(np.cumprod((1 - rates)[:0:-1])[::-1], 1.0)
            weights = rates * keep
            mean = np.average(learned, weights=weights)
            deviation = np.sqrt(np.average((np.array(learned) - mean) ** 2, weights=weights))
            z.append((value - mean) / max(deviation, floor))
        if abs(z[-1]) <= threshold:
            learned.append(value)
    return np.array(z)


@given(
    memory=st.sampled_from([1, 2, 10, 30, 10**6]),
    warm_up=st.integers(2, 20),
    threshold=st.sampled_from([1.0, 2.5, 1e9]),
    gaps=st.booleans(),
    cut=st.integers(0, 90),
    seed=st.integers(0, 2**32 - 1),
)
def test_z_uses_the_weighted_mean_and_deviation_of_learned_samples(
    memory, warm_up, threshold, gaps, cut, seed
):
    x = series(90, 2, seed=seed)
    if gaps:
        x[np.random.default_rng(seed).random(x.shape) < 0.2] = np.nan
    stage = Anomaly(signal(2), threshold, memory, warm_up)
    got = play(stage, [{"x": x[:cut]}, {"x": x[cut:]}])
    for column in (0, 1):
        want = reference(x[:, column], memory, warm_up, threshold)
        np.testing.assert_allclose(got["z"][:, column], np.clip(want, -1e6, 1e6), rtol=1e-5, atol=1e-5)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(got["anomaly"][:, column], np.abs(want) > threshold)
    np.testing.assert_array_equal(got["x"], x)


def test_without_forgetting_it_is_numpys_mean_and_std():
    x = series(200)
    z = play(Anomaly(signal(), 1e9, memory=0, warm_up=2), [{"x": x}])["z"]
    want = [(x[t] - x[:t].astype(float).mean()) / x[:t].astype(float).std() for t in range(2, 200)]
    np.testing.assert_allclose(z[2:], want, rtol=1e-5)


def test_outlier_is_marked_and_not_learned():
    x = series(300)
    wild = x.copy()
    wild[[100, 101]] = 70
    got, plain = (play(Anomaly(signal()), [{"x": v}]) for v in (wild, np.delete(x, [100, 101])))
    assert np.flatnonzero(got["anomaly"]).tolist() == [100, 101]
    np.testing.assert_allclose(np.delete(got["z"], [100, 101]), plain["z"])
    learning = play(Anomaly(signal(), learn_all=True), [{"x": wild}])
    assert learning["anomaly"][100]
    assert abs(learning["z"][102:]).max() < abs(got["z"][102:]).max()


def test_new_level_is_normal_after_restart_samples():
    x = np.r_[series(100), series(100, seed=1) + 50]
    assert play(Anomaly(signal()), [{"x": x}])["anomaly"][100:].all()
    got = play(Anomaly(signal(), restart=10, warm_up=20), [{"x": x}])
    assert np.flatnonzero(got["anomaly"]).tolist() == list(range(100, 110))
    assert (got["z"][110:130] == 0).all()
    assert (got["z"][130:] != 0).all()


def test_a_missing_value_neither_ends_nor_lengthens_a_run():
    x = np.r_[series(100), 70, np.nan, 70].astype(np.float32)
    stage = Anomaly(signal(), restart=3)
    state, _ = stage.step(stage.open(), {"x": x})
    assert state["run"] == 2


def test_a_series_that_stands_still_has_the_least_deviation():
    x = np.r_[np.full(50, 5), 5.5].astype(np.float32)
    assert play(Anomaly(signal(), floor=0.25), [{"x": x}])["z"][-1] == 2
    assert play(Anomaly(signal()), [{"x": np.r_[x, np.float32(3e38)]}])["z"][50:].tolist() == [5e5, 1e6]


def test_an_infinity_is_refused():
    stage = Anomaly(signal(2))
    with pytest.raises(NonFiniteError, match="anomaly: 'x' has an infinity at time step 1"):
        stage.step(stage.open(), {"x": np.array([[np.nan, 0], [0, -np.inf]], np.float32)})


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"mean": np.zeros(3)}, r"'mean' has shape \(3,\), expected \(2,\)"),
        ({"mean": np.array([0, np.nan])}, "is not finite"),
        ({"mean": np.array([0, 1e300])}, "'mean' is outside"),  # the next variance would be infinite
        ({"variance": np.array([0, 1e300])}, "'variance' is outside"),
        ({"variance": np.array([0, -1.0])}, "'variance' is outside"),
        ({"learned": np.array([0, -1])}, "below 0"),
        ({"learned": np.array([0, 1001])}, "higher than any stream's"),
        ({"run": np.array([0, 2**62])}, "higher than any stream's"),
    ],
)
def test_impossible_states_are_not_restored(bad, says):
    stage = Anomaly(signal(2))
    with pytest.raises(SnapshotError, match=says):
        stage.load(stage.open(), {**stage.initial(), **bad})


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (Signal((TensorSpec("x", "bool"),)), {}, "takes a float32 array, but x: bool"),
        (signal(), {"threshold": 0.0}, "threshold must be a positive number, not 0"),
        (signal(), {"floor": -1.0}, "floor must be a positive number, not -1"),
        (signal(), {"memory": -1}, "memory must be at least 0 samples, not -1"),
        (signal(), {"warm_up": 1}, "warm_up must be at least 2 samples, not 1"),
        (signal(), {"restart": -1}, "restart must be at least 0"),
        (Signal((TensorSpec("x", "float32"), TensorSpec("z", "int8"))), {}, "makes 'z'"),
    ],
)
def test_bad_options_are_refused_at_construction(inputs, options, says):
    with pytest.raises(PipelineError, match=says):
        Anomaly(inputs, **options)
