"""resample: SciPy's resample_poly, one chunk at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import firwin, resample_poly

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel_plugins.resample import Resample, low_pass

RATES = [(48000, 16000), (44100, 16000), (16000, 48000), (8000, 11025), (16000, 16000), (3, 2), (1000, 999)]


def make(from_rate, rate, shape=(), **options):
    return Resample(Signal((TensorSpec("x", "float32", shape),), from_rate), rate=rate, **options)


def play(stage, x, cuts=()):
    state, made, edges = stage.open(), [], [0, *sorted(cuts), len(x)]
    for a, b in itertools.pairwise(edges):
        state, out = stage.step(state, {"x": x[a:b]})
        made.append(out["x"])
    return np.concatenate([*made, stage.flush(state)[1]["x"]])


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize(("from_rate", "rate"), RATES)
def test_it_keeps_the_laws(from_rate, rate, shape):
    check_stage(lambda: make(from_rate, rate, shape))


@given(
    up=st.integers(1, 40),
    down=st.integers(1, 40),
    half_width=st.integers(1, 20),
    beta=st.sampled_from([0.0, 0.5, 5.0, 8.6, 14.0]),
    length=st.integers(0, 700),
    cuts=st.lists(st.integers(0, 100), max_size=8),
    shape=st.sampled_from([(), (2,)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_equals_scipy_at_any_ratio_and_any_cuts(up, down, half_width, beta, length, cuts, shape, seed):
    stage = make(down, up, shape, half_width=half_width, beta=beta)
    x = np.random.default_rng(seed).standard_normal((length, *shape)).astype(np.float32)
    got = play(stage, x, [c * length // 100 for c in cuts])
    g = np.gcd(up, down)
    up, down = up // g, down // g
    assert len(got) == -(-length * up // down)
    if length == 0:
        return
    if up == down:
        np.testing.assert_array_equal(got, x)
        return
    half = half_width * max(up, down)
    window = firwin(2 * half + 1, 1 / max(up, down), window=("kaiser", beta))
    want = resample_poly(x.astype(np.float64), up, down, axis=0, window=window)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("from_rate", "rate"), RATES)
def test_its_defaults_are_scipys(from_rate, rate):
    x = np.random.default_rng(5).standard_normal(4000).astype(np.float32)
    stage = make(from_rate, rate)
    want = resample_poly(x.astype(np.float64), stage.up, stage.down)
    np.testing.assert_allclose(play(stage, x, [7, 1000]), want, rtol=0, atol=1e-5)


def test_the_filter_is_firwins():
    want = firwin(2 * 30 + 1, 1 / 3, window=("kaiser", 5.0))
    np.testing.assert_allclose(low_pass(1, 3, 10, 5.0), want, atol=1e-12)


@pytest.mark.parametrize(
    ("from_rate", "rate", "latency"), [(48000, 16000, 30), (16000, 48000, 10), (16000, 16000, 0)]
)
def test_its_latency_is_ten_periods_of_the_slower_rate(from_rate, rate, latency):
    stage = make(from_rate, rate)
    assert stage.latency == latency
    x = np.zeros(600, np.float32)
    x[120] = 1  # time step 120 * up / down has the impulse's peak, and comes once sample 120 + latency is in
    state, row = stage.open(), 120 * stage.up // stage.down
    state, before = stage.step(state, {"x": x[: 120 + latency]})
    state, due = stage.step(state, {"x": x[120 + latency : 120 + latency + 1]})
    assert len(before["x"]) == row
    assert np.argmax(np.abs(play(stage, x))) == row
    assert due["x"][0] == play(stage, x)[row] != 0


def test_a_long_chunk_is_made_in_blocks():
    x = np.random.default_rng(1).standard_normal(40_000).astype(np.float32)
    np.testing.assert_array_equal(play(make(3, 2), x), play(make(3, 2), x, range(500, 40_000, 500)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_chunk_is_refused_with_its_position(bad):
    stage = make(48000, 16000, (2,))
    x = np.zeros((10, 2), np.float32)
    x[4, 1] = bad
    with pytest.raises(NonFiniteError, match=r"resample: 'x' has (nan|inf) at time step 4, element \(1,\)"):
        stage.step(stage.open(), {"x": x})


def test_several_arrays_keep_one_time_axis():
    stage = Resample(
        Signal((TensorSpec("a", "float32"), TensorSpec("b", "float32", (2,))), 48000), rate=16000
    )
    rng = np.random.default_rng(2)
    chunk = {"a": rng.random(100, np.float32), "b": rng.random((100, 2), np.float32)}
    _, out = stage.step(stage.open(), chunk)
    assert len(out["a"]) == len(out["b"]) > 0
    check_stage(lambda: stage)


def test_from_rate_is_the_rate_of_the_input():
    stage = Resample(Signal((TensorSpec("x", "float32"),)), rate=16000, from_rate=48000)
    assert (stage.inputs.rate, stage.outputs.rate, stage.ratio) == (48000, 16000, (1, 3))


@pytest.mark.parametrize(
    ("source", "rate", "ratio"),
    [(16000 / 3, 16000, (3, 1)), (44100 / 441 / 7, 100, (7, 1)), (0.1, 0.3, (3, 1))],
)
def test_ratio_is_exact_for_a_rounded_rate(source, rate, ratio):
    """After `decimate` or `frame` the rate is a rounded quotient."""
    assert make(source, rate).ratio == ratio
    with pytest.raises(PipelineError, match="is no ratio of whole numbers up to 4096"):
        make(source * (1 + 1e-9), rate)


@pytest.mark.parametrize(
    ("signal", "options", "says"),
    [
        (
            Signal((TensorSpec("x", "float32"),)),
            {"rate": 16000.0},
            "rate of what comes in is not known: give from_rate",
        ),
        (Signal((TensorSpec("x", "int16"),), 48e3), {"rate": 16000.0}, r"takes float32, but x: int16 \(T\)"),
        (Signal((TensorSpec("x", "float32"),), 48e3), {"rate": 0.0}, "rate must be a positive number of Hz"),
        (
            Signal((TensorSpec("x", "float32"),), 48e3),
            {"rate": float("inf")},
            "rate must be a positive number",
        ),
        (
            Signal((TensorSpec("x", "float32"),), 44101.0),
            {"rate": 16000.0},
            "44101 Hz to 16000 Hz is no ratio of whole numbers up to 4096",
        ),
        (
            Signal((TensorSpec("x", "float32"),), 48e3),
            {"rate": 16e3, "half_width": 0},
            "half_width must be in 1..256",
        ),
        (
            Signal((TensorSpec("x", "float32"),), 48e3),
            {"rate": 16e3, "beta": -1.0},
            "beta must be in 0..500",
        ),
        (
            Signal((TensorSpec("x", "float32"),), 48e3),
            {"rate": 16e3, "beta": 720.0},  # its window would be infinite / infinite
            "beta must be in 0..500",
        ),
    ],
)
def test_bad_options_are_refused_at_construction(signal, options, says):
    with pytest.raises(PipelineError, match=says):
        Resample(signal, **options)


@pytest.mark.parametrize("position", [-(2**62), 2**62, -(2**33), -1])
def test_impossible_positions_are_not_restored(position):
    """From -2**33, the next step would make gigabytes of output."""
    stage = make(48000, 16000)
    with pytest.raises(SnapshotError, match="position"):
        stage.load(stage.open(), {**stage.initial(), "position": np.array(position)})


def test_a_tail_of_another_length_is_not_restored():
    stage = make(48000, 16000)
    with pytest.raises(SnapshotError, match=r"'tail\.x' has shape \(1,\)"):
        stage.load(stage.open(), {**stage.initial(), "tail.x": np.zeros(1, np.float32)})


def test_a_tail_that_is_not_finite_is_not_restored():
    stage = make(48000, 16000)
    tail = np.full_like(stage.initial()["tail.x"], np.inf)
    with pytest.raises(SnapshotError, match="not finite"):
        stage.load(stage.open(), {**stage.initial(), "tail.x": tail})


@pytest.mark.parametrize("rates", [(48000, 16000), (44100, 16000), (16000, 48000), (3, 2)])
@pytest.mark.parametrize("shape", [(), (2,)])
def test_many_streams_at_different_phases_are_each_alone_bit_by_bit(rates, shape):
    stage, rng = make(*rates, shape), np.random.default_rng(8)
    heads = [rng.standard_normal((n, *shape)).astype(np.float32) for n in (0, 300, 301, 302, 303, 600)]
    chunks = [
        {"x": rng.standard_normal((n, *shape)).astype(np.float32)} for n in (960, 960, 960, 960, 7, 960)
    ]
    states = [stage.step(stage.open(), {"x": head})[0] for head in heads]
    for i, (state, out) in enumerate(stage.step_many(states, chunks)):
        want_state, want = stage.step(states[i], chunks[i])
        np.testing.assert_array_equal(out["x"], want["x"])
        assert state["position"] == want_state["position"]
        np.testing.assert_array_equal(state["tail.x"], want_state["tail.x"])


@given(
    rates=st.sampled_from(RATES),
    cuts=st.lists(st.integers(0, 300), max_size=6).map(sorted),
    flushed=st.booleans(),
)
def test_every_possible_state_is_restored(rates, cuts, flushed):
    stage = make(*rates)
    state = stage.open()
    for a, b in itertools.pairwise([0, *cuts, 300]):
        state, _ = stage.step(state, {"x": np.ones(b - a, np.float32)})
        stage.load(stage.open(), stage.dump(state))
    if flushed:
        stage.load(stage.open(), stage.dump(stage.flush(state)[0]))
