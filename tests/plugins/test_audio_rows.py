"""mono, gain and pre_emphasis: the small steps before a speech front end."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import PipelineError, SnapshotError
from runnel_plugins.gain import Gain
from runnel_plugins.mono import Mono
from runnel_plugins.pre_emphasis import PreEmphasis

RNG = np.random.default_rng(3)
STEREO = Signal((TensorSpec("x", "float32", (2,)),), 48000)
MIXED = Signal((TensorSpec("x", "float32", (3,)), TensorSpec("y", "float64"), TensorSpec("n", "int16", (2,))))


def once(stage, **arrays):
    return stage.step(stage.open(), arrays)[1]


def mixed(steps=40):
    return {
        "x": RNG.standard_normal((steps, 3)).astype(np.float32),
        "y": RNG.standard_normal(steps),
        "n": RNG.integers(-99, 99, (steps, 2)).astype(np.int16),
    }


@pytest.mark.parametrize("channels", [None, [1], [2, 0]])
def test_mono_is_the_mean_of_the_chosen_channels_and_keeps_the_laws(channels):
    check_stage(lambda: Mono(MIXED, channels))
    chunk = mixed()
    out = once(Mono(MIXED, channels), **chunk)
    want = chunk["x"][:, channels or [0, 1, 2]].astype(np.float64).mean(axis=1)
    assert out["x"].dtype == np.float32
    np.testing.assert_allclose(out["x"], want, atol=1e-6)
    np.testing.assert_array_equal(out["n"], chunk["n"])


def test_mono_gives_the_rate_on_and_drops_the_axis():
    stage = Mono(STEREO)
    assert stage.outputs == Signal((TensorSpec("x", "float32"),), 48000)


def test_nan_in_an_unused_channel_is_ignored():
    x = np.array([[1, np.nan], [2, 3]], np.float32)
    np.testing.assert_array_equal(once(Mono(STEREO, [0]), x=x)["x"], [1, 2])


def test_mono_works_on_the_array_that_is_named():
    both = Signal((TensorSpec("a", "float32", (2,)), TensorSpec("b", "float32", (2,))))
    a, b = RNG.random((5, 2), np.float32), RNG.random((5, 2), np.float32)
    out = once(Mono(both, of="b"), a=a, b=b)
    np.testing.assert_array_equal(out["a"], a)
    np.testing.assert_allclose(out["b"], b.mean(axis=1), rtol=1e-6)
    with pytest.raises(PipelineError, match=r"'of' must name one.*a: float32 \(T, 2\); b"):
        Mono(both)


@pytest.mark.parametrize(
    ("signal", "options", "says"),
    [
        (Signal((TensorSpec("x", "float32"),)), {}, r"shape \(T, channels\); there is none"),
        (Signal((TensorSpec("x", "int16", (2,)),)), {}, "a float array"),
        (STEREO, {"of": "y"}, "'of' is 'y'"),
        (STEREO, {"channels": []}, r"channels must be some of 0\.\.1"),
        (STEREO, {"channels": [2]}, r"some of 0\.\.1, each once, since x: float32 \(T, 2\).*not \[2\]"),
        (STEREO, {"channels": [-1]}, r"some of 0\.\.1"),
        (STEREO, {"channels": [0, 0]}, "each once"),
    ],
)
def test_mono_refuses_bad_options(signal, options, says):
    with pytest.raises(PipelineError, match=says):
        Mono(signal, **options)


@pytest.mark.parametrize(
    ("options", "factor"),
    [({"factor": -2.5}, -2.5), ({"db": 20.0}, 10), ({"db": -6.0}, 0.501187), ({"factor": 0.0}, 0)],
)
def test_gain_multiplies_floats_in_their_dtype_and_keeps_the_laws(options, factor):
    check_stage(lambda: Gain(MIXED, **options))
    chunk = mixed()
    out = once(Gain(MIXED, **options), **chunk)
    for name in ("x", "y"):
        assert out[name].dtype == chunk[name].dtype
        np.testing.assert_allclose(out[name], factor * chunk[name], rtol=1e-6)
    np.testing.assert_array_equal(out["n"], chunk["n"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either factor or db, not neither"),
        ({"factor": 1.0, "db": 1.0}, "not both"),
        ({"db": 301.0}, r"db must be in -300\.\.300, not 301"),
        ({"factor": float("inf")}, "factor must be in .* not inf"),
    ],
)
def test_gain_refuses_bad_options(options, says):
    with pytest.raises(PipelineError, match=says):
        Gain(STEREO, **options)


@pytest.mark.parametrize("stage", [lambda s: Gain(s, 1.0), PreEmphasis])
def test_integers_alone_are_refused(stage):
    with pytest.raises(PipelineError, match=r"takes floats, but n: int16 \(T\) arrives: put a 'cast'"):
        stage(Signal((TensorSpec("n", "int16"),)))


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.97, 1.0])
def test_pre_emphasis_is_scipys_filter_and_keeps_the_laws(coefficient):
    check_stage(lambda: PreEmphasis(MIXED, coefficient))
    chunk, stage = mixed(), PreEmphasis(MIXED, coefficient)
    state, first = stage.step(stage.open(), {n: a[:17] for n, a in chunk.items()})
    _, rest = stage.step(state, {n: a[17:] for n, a in chunk.items()})
    for name, tolerance in (("x", 1e-6), ("y", 1e-14)):
        got = np.concatenate([first[name], rest[name]])
        want = lfilter([1, -coefficient], [1], chunk[name], axis=0)
        np.testing.assert_allclose(got, want, atol=tolerance)
    np.testing.assert_array_equal(rest["n"], chunk["n"][17:])


@pytest.mark.parametrize("coefficient", [-0.1, 1.1])
def test_a_coefficient_out_of_range_is_refused(coefficient):
    with pytest.raises(PipelineError, match=r"coefficient must be in 0\.\.1"):
        PreEmphasis(STEREO, coefficient)


def test_pre_emphasis_does_not_restore_impossible_states():
    stage = PreEmphasis(STEREO)
    with pytest.raises(SnapshotError, match=r"'last\.x' has shape \(3,\), expected \(2,\)"):
        stage.load(stage.open(), {"last.x": np.zeros(3, np.float32)})
    with pytest.raises(SnapshotError, match="not finite"):
        stage.load(stage.open(), {"last.x": np.array([0, np.nan], np.float32)})
