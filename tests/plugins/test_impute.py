"""impute: numpy's interp and a plain loop, one chunk at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel_plugins.impute import impute


def signal(shape=()):
    return Signal((TensorSpec("x", "float32", shape),))


MIXED = Signal((TensorSpec("x", "float32", (2,)), TensorSpec("y", "float64"), TensorSpec("id", "int32")))


def play(stage, x, cuts=()):
    state, made, edges = stage.open(), [], [0, *sorted(cuts), len(x)]
    for a, b in itertools.pairwise(edges):
        state, out = stage.step(state, {"x": x[a:b]})
        made.append(out)
    made.append(stage.flush(state)[1])
    return {name: np.concatenate([m[name] for m in made]) for name in made[0]}


def holes(rng, shape, share):
    x = rng.standard_normal(shape)
    x[rng.random(shape) < share] = np.nan
    return x.astype(np.float32)


def held(x, value):
    """Hold by a plain loop over one column."""
    out = []
    for number in x.tolist():
        value = value if np.isnan(number) else number
        out.append(value)
    return np.array(out)


def drawn(x, value, max_gap):
    """Interpolate one column: numpy's interp, except for gaps that are too long or open."""
    known = np.flatnonzero(~np.isnan(x))
    out = held(x, value)
    for a, b in itertools.pairwise(known):
        if b - a - 1 <= max_gap:
            out[a:b] = np.interp(np.arange(a, b), [a, b], x[[a, b]].astype(np.float64))
    return out


OPTIONS = [
    {},
    {"mark": True, "value": 3.0},
    {"method": "constant", "value": -1.0, "mark": True},
    {"method": "linear", "max_gap": 5},
    {"method": "linear", "max_gap": 1, "mark": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_it_keeps_the_laws(options):
    rng = np.random.default_rng(0)
    check_stage(lambda: impute(signal((2,)), **options))
    check_stage(lambda: impute(signal((2, 2)), **options), {"x": holes(rng, (200, 2, 2), 0.4)})
    mixed = {"x": holes(rng, (99, 2), 0.6), "y": rng.standard_normal(99), "id": np.arange(99, dtype=np.int32)}
    check_stage(lambda: impute(MIXED, **options), mixed)
    check_stage(lambda: impute(MIXED, of="x", **options), mixed)


@given(
    share=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    length=st.integers(0, 80),
    cuts=st.lists(st.integers(0, 100), max_size=6),
    max_gap=st.integers(1, 12),
    value=st.sampled_from([0.0, 7.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_equals_interp_and_a_plain_loop_at_any_cuts(share, length, cuts, max_gap, value, seed):
    x = holes(np.random.default_rng(seed), (length, 3), share)
    cuts = [c * length // 100 for c in cuts]
    missing = np.isnan(x).astype(np.float32)
    stages = {
        "hold": (impute(signal((3,)), "hold", value, mark=True), held),
        "linear": (
            impute(signal((3,)), "linear", value, max_gap, mark=True),
            lambda column, before: drawn(column, before, max_gap),
        ),
        "constant": (
            impute(signal((3,)), "constant", value, mark=True),
            lambda column, before: np.nan_to_num(column, nan=before),
        ),
    }
    for stage, oracle in stages.values():
        got = play(stage, x, cuts)
        want = np.stack([oracle(x[:, f], value) for f in range(3)], axis=1)
        np.testing.assert_allclose(got["x"], want, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(got["x.missing"], missing)


def test_linear_comes_max_gap_rows_late_and_no_later():
    stage = impute(signal(), "linear", max_gap=3)
    assert stage.latency == 3
    state = stage.open()
    for t in range(10):
        state, out = stage.step(state, {"x": np.array([t], np.float32)})
        assert out["x"].tolist() == ([] if t < 3 else [t - 3])


def test_a_line_between_the_largest_floats_is_finite():
    x = np.array([3e38, np.nan, -3e38], np.float32)
    assert play(impute(signal(), "linear", max_gap=1), x)["x"][1] == 0


@pytest.mark.parametrize("options", OPTIONS)
def test_an_infinity_is_refused_with_its_place(options):
    x = np.array([[1, 1], [np.nan, np.inf]], np.float32)
    stage = impute(signal((2,)), **options)
    with pytest.raises(NonFiniteError, match="'x' has inf at time step 1; only NaN stands for"):
        stage.step(stage.open(), {"x": x})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "linear"}, "needs max_gap in 1..1024 rows, not None"),
        ({"method": "linear", "max_gap": 0}, "not 0"),
        ({"method": "linear", "max_gap": 2000}, "not 2000"),
        ({"max_gap": 3}, "max_gap is for method 'linear', not for 'hold'"),
        ({"value": float("inf")}, "value must be a finite number"),
        ({"value": 1e39}, "value must be finite in float32"),
        ({"method": "linear", "max_gap": 1024, "of": "wide"}, "1024 rows would be held .* at most 16777216"),
        ({"of": "z"}, "of is 'z', but x: float32"),
    ],
)
def test_bad_options_are_refused(options, message):
    wide = Signal((*signal().tensors, TensorSpec("wide", "float32", (8192,))))
    with pytest.raises(PipelineError, match=message):
        impute(wide, **options)


def test_existing_mark_is_refused():
    two = Signal((TensorSpec("x", "float32"), TensorSpec("x.missing", "float32")))
    with pytest.raises(PipelineError, match=r"'x.missing', and there is one already"):
        impute(two, mark=True)
    with pytest.raises(PipelineError, match="takes floats"):
        impute(Signal((TensorSpec("x", "int16"),)))


@pytest.mark.parametrize(
    "change",
    [
        {"held.x": np.zeros((9, 2), np.float32), "missing.x": np.zeros((9, 2), bool)},
        {"held.x": np.zeros((1, 2), np.float32)},
        {"held.x": np.zeros((3, 1), np.float32)},
        {"held.x": np.full((3, 2), np.nan, np.float32)},
        {"last.x": np.full(2, np.inf, np.float32)},
        {"age.x": np.array([-1, 0])},
        {"age.x": np.array([2**60, 0])},
    ],
)
def test_impossible_states_are_refused(change):
    stage = impute(signal((2,)), "linear", max_gap=3)
    state, _ = stage.step(stage.open(), {"x": np.ones((5, 2), np.float32)})
    stage.load(stage.open(), state)
    with pytest.raises(SnapshotError, match="impute: "):
        stage.load(stage.open(), {**state, **change})


def test_non_finite_held_rows_are_not_restored():
    stage = impute(signal())
    with pytest.raises(SnapshotError, match=r"'last.x' is not finite"):
        stage.load(stage.open(), {"last.x": np.array(np.nan, np.float32)})
