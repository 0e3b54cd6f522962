"""normalize and denormalize: their formulas, written plainly over whole sequences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel_plugins.denormalize import Denormalize
from runnel_plugins.normalize import BLOCK, normalize


def signal(shape=(), dtype="float32"):
    return Signal((TensorSpec("x", dtype, shape),), 10.0)


TWO = Signal((TensorSpec("a", "float32", (2,)), TensorSpec("b", "float32"), TensorSpec("id", "int64")))


def play(stage, x, cuts=()):
    state, made, edges = stage.open(), [], [0, *sorted(cuts), len(x)]
    for a, b in itertools.pairwise(edges):
        state, out = stage.step(state, {"x": x[a:b]})
        made.append(out["x"])
    return np.concatenate(made)


def plain(x, decay, eps, warm_up=1):
    """Compute the weighted mean and variance of every prefix, by their definitions."""
    rows = np.zeros(x.shape)
    for t in range(warm_up, len(x)):
        past = x[: t + 1].astype(np.float64)
        w = (decay ** np.arange(t, -1.0, -1)).reshape(-1, *(1 for _ in x.shape[1:]))
        mean = (w * past).sum(axis=0) / w.sum()
        variance = (w * (past - mean) ** 2).sum(axis=0) / w.sum()
        rows[t] = (past[-1] - mean) / np.sqrt(variance + eps)
    return rows


@pytest.mark.parametrize(
    "options",
    [
        {"mean": 2.0, "std": 3.0},
        {"mean": [1.0, 0.0, -1.0], "std": [0.5, 1.0, 2.0]},
        {"std": 2.0},
        {"running": True},
        {"running": True, "time_constant": 20.0, "warm_up": 30},
        {"running": True, "mean": 1.0, "std": [1.0, 2.0, 3.0], "warm_up": 100},
    ],
)
def test_it_keeps_the_laws(options):
    check_stage(lambda: normalize(signal((3,)), **options))
    check_stage(lambda: normalize(signal((2, 3)), **options))


def test_it_keeps_the_laws_with_other_arrays_beside():
    check_stage(lambda: normalize(TWO, mean=1.0, std=2.0))
    check_stage(lambda: normalize(TWO, running=True))
    check_stage(lambda: normalize(TWO, running=True, of="b"))
    check_stage(lambda: Denormalize(TWO, mean=1.0, std=2.0))


def test_fixed_is_torchs_batch_norm_in_eval_mode():
    norm = torch.nn.BatchNorm1d(3, eps=0.0, affine=False).eval()
    norm.running_mean[:] = torch.tensor([1.0, -2.0, 100.0])
    norm.running_var[:] = torch.tensor([4.0, 0.25, 9.0])
    x = np.random.default_rng(0).normal(0, 50, (40, 3)).astype(np.float32)
    stage = normalize(signal((3,)), mean=[1.0, -2.0, 100.0], std=[2.0, 0.5, 3.0])
    np.testing.assert_allclose(play(stage, x), norm(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-5)
    back = Denormalize(signal((3,)), mean=[1.0, -2.0, 100.0], std=[2.0, 0.5, 3.0])
    np.testing.assert_allclose(play(back, play(stage, x)), x, rtol=1e-5, atol=1e-4)


@given(
    length=st.integers(1, 3 * BLOCK),
    cuts=st.lists(st.integers(0, 100), max_size=4),
    time_constant=st.sampled_from([None, 0.3, 5.0, 1000.0]),
    offset=st.sampled_from([0.0, 1e4]),
    warm_up=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_running_equals_the_definition_at_any_cuts(length, cuts, time_constant, offset, warm_up, seed):
    x = (np.random.default_rng(seed).standard_normal((length, 2)) + offset).astype(np.float32)
    options = {} if time_constant is None else {"time_constant": time_constant}
    stage = normalize(signal((2,)), running=True, warm_up=warm_up, eps=1e-4, **options)
    decay = 1.0 if time_constant is None else np.exp(-1 / time_constant)
    got = play(stage, x, [c * length // 100 for c in cuts])
    np.testing.assert_allclose(got, plain(x, decay, 1e-4, warm_up), rtol=1e-4, atol=1e-4)


def test_a_level_that_jumps_far_leaves_the_variance_right():
    x = np.concatenate([np.full(5, 1e6), np.random.default_rng(1).standard_normal(400)]).astype(np.float32)
    np.testing.assert_allclose(
        play(normalize(signal(), running=True, time_constant=10.0), x)[-20:],
        plain(x, np.exp(-0.1), 1e-8)[-20:],
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_level_far_from_zero_costs_no_digits():
    x = (16_000_000 + np.random.default_rng(2).integers(0, 5, 2 * BLOCK)).astype(np.float32)
    np.testing.assert_allclose(play(normalize(signal(), running=True), x), plain(x, 1.0, 1e-8), atol=1e-6)


def test_the_first_row_and_a_constant_are_zero():
    stage = normalize(signal(), running=True)
    np.testing.assert_array_equal(play(stage, np.full(200, 0.1, np.float32), [1, 2]), 0)


def test_warm_up_uses_the_given_statistics():
    x = np.arange(6, dtype=np.float32)
    got = play(normalize(signal(), running=True, warm_up=3, mean=1.0, std=2.0), x)
    np.testing.assert_allclose(got[:3], [-0.5, 0, 0.5])
    np.testing.assert_allclose(got[3:], plain(x, 1.0, 1e-8)[3:], rtol=1e-6)


def test_the_largest_floats_leave_a_state_of_numbers():
    x = np.array([3e38, -3e38, 3e38, 1, 2], np.float32)
    stage = normalize(signal(), running=True)
    state, out = stage.step(stage.open(), {"x": x})
    assert np.isfinite(out["x"]).all()
    assert all(np.isfinite(array).all() for array in state.values())
    stage.load(stage.open(), state)


def test_fixed_passes_a_nan_and_running_refuses_it():
    x = np.array([1, np.nan], np.float32)
    assert np.isnan(play(normalize(signal(), mean=1.0), x)[1])
    with pytest.raises(NonFiniteError, match="normalize: 'x' has nan at time step 1"):
        play(normalize(signal(), running=True), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give mean and std, or set running"),
        ({"mean": 0.0, "std": 0.0}, "std must be above 0"),
        ({"std": [1.0, -1.0, 1.0]}, "std must be above 0"),
        ({"std": 1e-45}, "std must be above 0"),
        ({"mean": [1.0, 2.0]}, "mean has 2 numbers, but .* has 3 features"),
        ({"mean": 1e39}, "mean must be finite in float32"),
        ({"mean": float("inf")}, "mean must be finite"),
        ({"mean": 0.0, "eps": 1e-3}, "eps is for running statistics"),
        ({"mean": 0.0, "time_constant": 3.0}, "time_constant is for running"),
        ({"running": True, "time_constant": 0.0}, "time_constant must be above 0"),
        ({"running": True, "warm_up": 0}, "warm_up must be at least 1"),
        ({"running": True, "eps": 0.0}, "eps must be a finite number above 0"),
        ({"mean": 0.0, "of": "y"}, "of is 'y', but x: float32 .* arrives"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(PipelineError, match=message):
        normalize(signal((3,)), **options)


def test_bad_inputs_are_refused():
    with pytest.raises(PipelineError, match="takes floats, but x: int16"):
        normalize(signal((), "int16"), mean=0.0)
    with pytest.raises(PipelineError, match="takes float16 or float32, but x: float64"):
        normalize(signal((), "float64"), running=True)
    with pytest.raises(PipelineError, match=r"\(T\) has no features"):
        normalize(signal(), mean=[1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give mean and std"),
        ({"std": -1.0}, "std must be above 0"),
        ({"mean": [1.0]}, "mean has 1 numbers"),
    ],
)
def test_denormalize_refuses_bad_options(options, message):
    with pytest.raises(PipelineError, match=f"denormalize: .*{message}|denormalize: {message}"):
        Denormalize(signal((3,)), **options)


@pytest.mark.parametrize(
    "change",
    [
        {"weight": np.array(-1.0)},
        {"weight": np.array(2.0**50)},
        {"weight": np.array(np.nan)},
        {"seen": np.array(-1)},
        {"seen": np.array(9)},
        {"mean.x": np.full(3, 1e39)},
        {"mean.x": np.zeros(4)},
        {"spread.x": np.full(3, -1.0)},
        {"spread.x": np.full(3, 1e300)},
    ],
)
def test_impossible_states_are_refused(change):
    stage = normalize(signal((3,)), running=True, warm_up=5)
    state, _ = stage.step(stage.open(), {"x": np.ones((4, 3), np.float32)})
    stage.load(stage.open(), state)
    with pytest.raises(SnapshotError, match="normalize: "):
        stage.load(stage.open(), {**state, **change})
