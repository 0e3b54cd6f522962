"""decimate: numpy's slices and means over the whole sequence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel_plugins.decimate import Decimate


def signal(shape=(), dtype="float32", rate=100.0):
    return Signal((TensorSpec("x", dtype, shape),), rate)


def play(stage, x, cuts=()):
    state, made, edges = stage.open(), [], [0, *sorted(cuts), len(x)]
    for a, b in itertools.pairwise(edges):
        state, out = stage.step(state, {"x": x[a:b]})
        made.append(out["x"])
    return np.concatenate([*made, stage.flush(state)[1]["x"]])


@pytest.mark.parametrize(
    "options",
    [
        {"every": 1},
        {"every": 7},
        {"every": 7, "phase": 6},
        {"every": 1, "mean": True},
        {"every": 6, "mean": True},
    ],
)
def test_it_keeps_the_laws(options):
    check_stage(lambda: Decimate(signal(), **options))
    check_stage(lambda: Decimate(signal((2, 3)), **options))
    if "mean" not in options:
        two = Signal((TensorSpec("a", "float32"), TensorSpec("b", "uint8", (2,))))
        check_stage(lambda: Decimate(two, **options))


@given(
    every=st.integers(1, 12),
    phase=st.integers(0, 11),
    length=st.integers(0, 60),
    cuts=st.lists(st.integers(0, 100), max_size=6),
    shape=st.sampled_from([(), (2,)]),
)
def test_it_equals_numpy_at_any_cuts(every, phase, length, cuts, shape):
    x = np.random.default_rng(length).standard_normal((length, *shape)).astype(np.float32)
    cuts = [c * length // 100 for c in cuts]
    phase %= every
    np.testing.assert_array_equal(play(Decimate(signal(shape), every, phase), x, cuts), x[phase::every])
    means = [x[i : i + every].mean(axis=0, dtype=np.float64) for i in range(0, length, every)]
    want = np.array(means, np.float32).reshape(-1, *shape)
    np.testing.assert_allclose(play(Decimate(signal(shape), every, mean=True), x, cuts), want, atol=1e-6)


def test_it_states_its_rate_ratio_and_latency():
    kept, mean = Decimate(signal(), 4, 2), Decimate(signal(), 4, mean=True)
    assert kept.outputs.rate == mean.outputs.rate == 25
    assert kept.ratio == mean.ratio == (1, 4)
    assert (kept.latency, mean.latency) == (0, 3)
    assert Decimate(signal(rate=None), 4).outputs.rate is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be in 1..1048576"),
        ({"every": 2**21}, "every must be in"),
        ({"every": 3, "phase": 3}, r"phase must be in 0..2, not 3"),
        ({"every": 3, "phase": -1}, "not -1"),
        ({"every": 3, "phase": 1, "mean": True}, "phase must be 0 with a mean, not 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(PipelineError, match=message):
        Decimate(signal(), **options)


def test_bad_inputs_are_refused():
    with pytest.raises(PipelineError, match="a mean is of float32 or float16, but x: int16"):
        Decimate(signal((), "int16"), 2, mean=True)
    stage = Decimate(signal(), 2, mean=True)
    with pytest.raises(NonFiniteError, match="decimate: 'x' has inf"):
        stage.step(stage.open(), {"x": np.array([np.inf], np.float32)})


@pytest.mark.parametrize(
    "change",
    [
        {"position": np.array(-1)},
        {"position": np.array(4)},
        {"sum.x": np.array(np.nan)},
        {"sum.x": np.array(1e300)},
        {"position": np.array(0), "sum.x": np.array(1.0)},
    ],
)
def test_impossible_states_are_refused(change):
    stage = Decimate(signal(), 4, mean=True)
    state, _ = stage.step(stage.open(), {"x": np.ones(3, np.float32)})
    stage.load(stage.open(), state)
    with pytest.raises(SnapshotError, match="decimate: "):
        stage.load(stage.open(), {**state, **change})
