"""smooth: SciPy's lfilter and median_filter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import median_filter
from scipy.signal import lfilter

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel.laws.trial import play
from runnel_plugins import smooth as module
from runnel_plugins.smooth import smooth


def signal(*shape, rate=100.0):
    return Signal((TensorSpec("x", "float32", shape),), rate)


WAYS = [{"weight": 0.3}, {"weight": 1.0}, {"time_constant": 0.05}, {"median": 1}, {"median": 7}]


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("options", WAYS)
def test_it_keeps_the_laws(shape, options):
    check_stage(lambda: smooth(signal(*shape), **options))


@given(
    weight=st.sampled_from([1e-12, 1e-3, 0.1, 0.9, 1.0]),
    length=st.integers(1, 300),
    cut=st.integers(0, 300),
    shape=st.sampled_from([(), (3,), (2, 2)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_average_is_scipys_filter(weight, length, cut, shape, seed):
    x = (np.random.default_rng(seed).standard_normal((length, *shape)) + 5).astype(np.float32)
    got = play(smooth(signal(*shape), weight=weight), [{"x": x[:cut]}, {"x": x[cut:]}])["x"]
    b, a = [weight], [1, weight - 1]
    exact = x.astype(np.float64)
    want = lfilter(b, a, exact, axis=0, zi=exact[:1] * (1 - weight))[0]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_a_jump_is_followed_by_63_percent_after_the_time_constant():
    x = np.r_[0, np.ones(50)].astype(np.float32)
    got = play(smooth(signal(rate=10.0), time_constant=2.0), [{"x": x}])["x"]
    assert got[20] == pytest.approx(1 - np.exp(-1))


@given(
    window=st.sampled_from([1, 3, 5, 11, 101]),
    length=st.integers(1, 250),
    cut=st.integers(0, 250),
    shape=st.sampled_from([(), (3,), (2, 2)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_median_is_scipys(window, length, cut, shape, seed):
    x = np.random.default_rng(seed).standard_normal((length, *shape)).astype(np.float32)
    got = play(smooth(signal(*shape), median=window), [{"x": x[:cut]}, {"x": x[cut:]}])["x"]
    sizes = (window, *(1,) * len(shape))
    origin = (window // 2, *(0,) * len(shape))  # the window ends at the sample
    np.testing.assert_array_equal(got, median_filter(x, size=sizes, mode="nearest", origin=origin))


def test_a_long_chunk_is_sorted_in_blocks(monkeypatch):
    x = np.random.default_rng(1).standard_normal((400, 3)).astype(np.float32)
    whole = play(smooth(signal(3), median=9), [{"x": x}])["x"]
    monkeypatch.setattr(module, "MAX_SORTED", 100)
    np.testing.assert_array_equal(play(smooth(signal(3), median=9), [{"x": x}])["x"], whole)


def test_the_median_is_late_by_half_its_window():
    stage = smooth(signal(), median=9)
    assert (stage.latency, smooth(signal(), weight=0.1).latency) == (4, 0)
    edge = (np.arange(30) >= 10).astype(np.float32)
    assert play(stage, [{"x": edge}])["x"].argmax() == 10 + 4


def test_all_float_arrays_or_the_named_one_are_smoothed():
    inputs = Signal((TensorSpec("a", "float32"), TensorSpec("b", "float32"), TensorSpec("n", "int64")))
    x = np.array([0, 1], np.float32)
    chunk = {"a": x, "b": x, "n": np.array([3, 4])}
    got = play(smooth(inputs, weight=0.5), [chunk])
    assert [got[k].tolist() for k in "abn"] == [[0, 0.5], [0, 0.5], [3, 4]]
    got = play(smooth(inputs, weight=0.5, of="b"), [chunk])
    assert [got[k].tolist() for k in "abn"] == [[0, 1], [0, 0.5], [3, 4]]
    check_stage(lambda: smooth(inputs, median=3, of="b"))


@pytest.mark.parametrize("options", [{"weight": 0.1}, {"median": 3}])
def test_nan_is_refused(options):
    stage = smooth(signal(2), **options)
    with pytest.raises(NonFiniteError, match=r"smooth: 'x' has inf at time step 0, element \(1,\)"):
        stage.step(stage.open(), {"x": np.array([[0, np.inf]], np.float32)})


@pytest.mark.parametrize(
    ("options", "bad", "says"),
    [
        ({"weight": 0.1}, {"level.x": np.zeros(3)}, r"'level.x' has shape \(3,\), expected \(2,\)"),
        ({"weight": 0.1}, {"level.x": np.array([0, np.nan])}, "'level.x' is not finite"),
        ({"median": 3}, {"tail.x": np.zeros((3, 2), np.float32)}, r"'tail.x' has shape \(3, 2\)"),
        ({"median": 3}, {"tail.x": np.full((2, 2), np.inf, np.float32)}, "not finite"),
    ],
)
def test_impossible_states_are_not_restored(options, bad, says):
    stage = smooth(signal(2), **options)
    with pytest.raises(SnapshotError, match=says):
        stage.load(stage.open(), {**stage.initial(), **bad})


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (signal(), {}, "needs one of weight, time_constant and median, not none"),
        (signal(), {"weight": 0.1, "median": 3}, "not weight and median"),
        (signal(), {"weight": 0.0}, "weight must be above 0 .* not 0"),
        (signal(), {"weight": 1.1}, "at most 1, not 1.1"),
        (signal(), {"median": 4}, r"odd number of samples in 1\.\.1023, not 4"),
        (signal(), {"median": 1025}, "not 1025"),
        (signal(), {"median": -1}, "not -1"),
        (signal(rate=None), {"time_constant": 1.0}, "rate of what arrives is not known"),
        (signal(), {"time_constant": 0.0}, "time_constant must be a positive number, not 0"),
        (signal(), {"time_constant": 1e300}, "weight must be above 0"),
        (Signal((TensorSpec("x", "int8"),)), {"weight": 0.1}, "smooth takes float32 arrays, but x: int8"),
        (signal(), {"weight": 0.1, "of": "y"}, "of is 'y'"),
    ],
)
def test_bad_options_are_refused_at_construction(inputs, options, says):
    with pytest.raises(PipelineError, match=says):
        smooth(inputs, **options)
