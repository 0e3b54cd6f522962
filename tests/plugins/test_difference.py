"""difference: numpy's diff, and the binomial filter of scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel_plugins.difference import Difference


def signal(shape=()):
    return Signal((TensorSpec("x", "float32", shape),))


def play(stage, x, cuts=()):
    state, made, edges = stage.open(), [], [0, *sorted(cuts), len(x)]
    for a, b in itertools.pairwise(edges):
        state, out = stage.step(state, {"x": x[a:b]})
        made.append(out["x"])
    return np.concatenate(made)


@pytest.mark.parametrize("options", [{}, {"order": 2}, {"lag": 24}, {"order": 3, "lag": 5, "before": "zero"}])
def test_it_keeps_the_laws(options):
    check_stage(lambda: Difference(signal(), **options))
    check_stage(lambda: Difference(signal((2, 3)), **options))
    two = Signal((TensorSpec("a", "float32"), TensorSpec("b", "float64", (2,)), TensorSpec("c", "int16")))
    check_stage(lambda: Difference(two, **options))
    check_stage(lambda: Difference(two, of="b", **options))


def test_it_is_numpys_diff():
    x = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    np.testing.assert_array_equal(play(Difference(signal((2,))), x), np.diff(x, axis=0, prepend=x[:1]))


@given(
    order=st.integers(1, 4),
    lag=st.integers(1, 9),
    before=st.sampled_from(["first", "zero"]),
    length=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 100), max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_equals_scipys_filter_at_any_cuts(order, lag, before, length, cuts, seed):
    x = np.random.default_rng(seed).standard_normal((length, 2)).astype(np.float32)
    one = np.zeros(lag + 1)
    one[0], one[-1] = 1, -1
    taps = np.ones(1)
    for _ in range(order):
        taps = np.convolve(taps, one)
    past = np.repeat(x[:1] if before == "first" else np.zeros((1, 2), np.float32), order * lag, axis=0)
    want = lfilter(taps, 1, np.concatenate([past, x]).astype(np.float64), axis=0)[order * lag :]
    got = play(Difference(signal((2,)), order, lag, before), x, [c * length // 100 for c in cuts])
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_streams_that_begin_beside_older_ones_are_right():
    stage = Difference(signal())
    old, _ = stage.step(stage.open(), {"x": np.array([5], np.float32)})
    results = stage.step_many([old, stage.open()], [{"x": np.array([7, 9], np.float32)}] * 2)
    assert [out["x"].tolist() for _, out in results] == [[2, 2], [0, 2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order must be in 1..8, not 0"),
        ({"order": 9}, "not 9"),
        ({"lag": 0}, "lag must be at least 1"),
        ({"lag": 100_001}, "at most 100000 rows"),
        ({"lag": 100_000, "of": "wide"}, "100000 rows would be held for each stream, 25600000 bytes"),
        ({"order": 2, "lag": 50_001}, "at most 100000 rows"),
    ],
)
def test_bad_options_are_refused(options, message):
    wide = Signal((*signal().tensors, TensorSpec("wide", "float32", (64,))))
    with pytest.raises(PipelineError, match=message):
        Difference(wide, **options)


def test_a_nan_is_refused():
    stage = Difference(signal())
    with pytest.raises(NonFiniteError, match="difference: 'x' has nan at time step 1"):
        stage.step(stage.open(), {"x": np.array([0, np.nan], np.float32)})


@pytest.mark.parametrize("past", [np.zeros(3, np.float32), np.full(2, np.nan, np.float32)])
def test_impossible_states_are_refused(past):
    stage = Difference(signal(), lag=2)
    with pytest.raises(SnapshotError, match=r"difference: 'past.x'"):
        stage.load(stage.open(), {**stage.initial(), "past.x": past})
