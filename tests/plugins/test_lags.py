"""lags: a plain loop over the whole sequence, and numpy's sliding windows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel_plugins.lags import Lags


def signal(shape=(), dtype="float32"):
    return Signal((TensorSpec("x", dtype, shape),), 2.0)


def play(stage, x, cuts=()):
    state, made, edges = stage.open(), [], [0, *sorted(cuts), len(x)]
    for a, b in itertools.pairwise(edges):
        state, out = stage.step(state, {"x": x[a:b]})
        made.append(out["x"])
    return np.concatenate(made)


@pytest.mark.parametrize(
    "options", [{"lags": 1}, {"lags": 4}, {"lags": [0, 7, 3]}, {"lags": 3, "before": "zero"}]
)
@pytest.mark.parametrize("layout", ["stack", "concatenate"])
def test_it_keeps_the_laws(options, layout):
    for shape in ((), (3,), (2, 3)):
        check_stage(lambda shape=shape: Lags(signal(shape), layout=layout, **options))
    two = Signal((TensorSpec("a", "float32"), TensorSpec("b", "int64", (2,))))
    check_stage(lambda: Lags(two, layout=layout, **options))
    check_stage(lambda: Lags(two, layout=layout, of="b", **options))


def test_the_last_n_rows_are_numpys_sliding_window():
    x = np.random.default_rng(0).standard_normal(30).astype(np.float32)
    want = np.lib.stride_tricks.sliding_window_view(np.concatenate([np.zeros(4, np.float32), x]), 5)
    np.testing.assert_array_equal(play(Lags(signal(), 5, before="zero"), x), want)


@given(
    lags=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    layout=st.sampled_from(["stack", "concatenate"]),
    before=st.sampled_from(["first", "zero"]),
    shape=st.sampled_from([(), (2,), (3, 2)]),
    length=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 100), max_size=5),
)
def test_it_equals_a_plain_loop_at_any_cuts(lags, layout, before, shape, length, cuts):
    x = np.random.default_rng(length).standard_normal((length, *shape)).astype(np.float32)
    outside = x[0] if before == "first" else np.zeros_like(x[0])
    want = []
    for t in range(length):
        rows = [x[t - lag] if t >= lag else outside for lag in lags]
        want.append(np.stack(rows) if layout == "stack" or not shape else np.concatenate(rows, axis=-1))
    stage = Lags(signal(shape), lags, layout, before)
    got = play(stage, x, [c * length // 100 for c in cuts])
    np.testing.assert_array_equal(got, np.array(want))
    assert stage.outputs.tensors[0].shape == got.shape[1:]
    assert stage.outputs.rate == 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lags": 0}, "give 1..4096 of them, not 0"),
        ({"lags": []}, "not 0"),
        ({"lags": 5000}, "not 5000"),
        ({"lags": [0, -1]}, "each must be in 0..100000"),
        ({"lags": [100_000], "of": "wide"}, "100000 rows would be held for each stream, 25600000 bytes"),
        ({"lags": [100_001]}, "each must be in 0..100000"),
        ({"lags": 2, "of": "y"}, "of is 'y', but x"),
    ],
)
def test_bad_options_are_refused(options, message):
    wide = Signal((*signal().tensors, TensorSpec("wide", "float32", (64,))))
    with pytest.raises(PipelineError, match=message):
        Lags(wide, **options)


def test_bad_inputs_are_refused():
    with pytest.raises(PipelineError, match="takes floats"):
        Lags(signal((), "int16"), 2)
    with pytest.raises(PipelineError, match="too many axes"):
        Lags(signal((1,) * 7), 2)
    stage = Lags(signal(), 2)
    with pytest.raises(NonFiniteError, match="lags: 'x' has nan"):
        stage.step(stage.open(), {"x": np.array([np.nan], np.float32)})


@pytest.mark.parametrize("past", [np.zeros(1, np.float32), np.full(2, np.inf, np.float32)])
def test_impossible_states_are_refused(past):
    stage = Lags(signal(), 3)
    with pytest.raises(SnapshotError, match=r"lags: 'past.x'"):
        stage.load(stage.open(), {**stage.initial(), "past.x": past})
