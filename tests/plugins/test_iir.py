"""iir: scipy's sosfilt, one chunk at a time, and the cookbook's designs by the bilinear transform."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal as dsp

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel_plugins.iir import BLOCK, Iir

SIGNAL = Signal((TensorSpec("x", "float32"),), 16000.0)
DESIGNS = {
    "one pole": [[0.1, 0, 0, 1, -0.9, 0]],
    "a0 not 1": [[1, 2, 3, 4, 1, -0.5]],
    "gain alone": [[2.0, 0, 0, 1, 0, 0]],
    "butterworth 8": dsp.butter(8, 0.1, output="sos").tolist(),
    "elliptic 10, narrow": dsp.ellip(5, 0.5, 60, [0.02, 0.03], "bandpass", output="sos").tolist(),
    "chebyshev 16": dsp.cheby2(16, 40, 0.4, output="sos").tolist(),
}


def play(stage, x, cuts=()):
    state, made = stage.open(), []
    for a, b in itertools.pairwise([0, *sorted(cuts), len(x)]):
        state, out = stage.step(state, {"x": x[a:b]})
        made.append(out["x"])
    return np.concatenate(made), state


@pytest.mark.parametrize("sections", DESIGNS.values(), ids=DESIGNS)
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_it_keeps_the_laws(sections, shape):
    tensors = (TensorSpec("x", "float32", shape), TensorSpec("y", "float64"), TensorSpec("n", "int32"))
    check_stage(lambda: Iir(Signal(tensors), sections))


@given(
    sections=st.sampled_from(list(DESIGNS.values())),
    length=st.integers(0, 5 * BLOCK),
    cuts=st.lists(st.integers(0, 100), max_size=8),
    shape=st.sampled_from([(), (3,), (2, 2)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_equals_scipy_at_any_cuts_memories_included(sections, length, cuts, shape, seed):
    stage = Iir(Signal((TensorSpec("x", "float32", shape),)), sections)
    x = np.random.default_rng(seed).standard_normal((length, *shape)).astype(np.float32)
    got, state = play(stage, x, [c * length // 100 for c in cuts])
    if not length:
        return
    normal = np.asarray(sections) / np.asarray(sections)[:, 3:4]  # scipy expects a0 = 1
    zi = np.zeros((len(sections), 2, *shape))
    want, memories = dsp.sosfilt(normal, x.astype(np.float64), axis=0, zi=zi)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())
    # scipy: (sections, 2, *shape), without time.
    ours = np.moveaxis(state["memory.x"], (-2, -1), (0, 1))
    np.testing.assert_allclose(ours, memories, rtol=1e-6, atol=1e-9 * (1 + np.abs(memories).max()))


def test_float64_stays_float64_to_ten_digits():
    stage = Iir(Signal((TensorSpec("x", "float64"),)), DESIGNS["elliptic 10, narrow"])
    x = np.random.default_rng(1).standard_normal(20_000)
    got, _ = play(stage, x, [1, 777, 5000])
    np.testing.assert_allclose(got, dsp.sosfilt(DESIGNS["elliptic 10, narrow"], x), rtol=0, atol=1e-10)


PROTOTYPES = {  # analog, with its corner at 1 rad/s
    "lowpass": lambda q: ([1], [1, 1 / q, 1]),
    "highpass": lambda q: ([1, 0, 0], [1, 1 / q, 1]),
    "bandpass": lambda q: ([1 / q, 0], [1, 1 / q, 1]),
    "notch": lambda q: ([1, 0, 1], [1, 1 / q, 1]),
}


@pytest.mark.parametrize("kind", PROTOTYPES)
@pytest.mark.parametrize(("frequency", "q"), [(50.0, 0.7071), (1000.0, 5.0), (7900.0, 0.5)])
def test_its_designs_are_the_bilinear_transforms_of_analog_filters(kind, frequency, q):
    rate = 16000
    stage = Iir(SIGNAL, kind=kind, frequency=frequency, q=q)
    warped = 1 / np.tan(np.pi * frequency / rate)  # s = warped * (z - 1) / (z + 1)
    b, a = dsp.bilinear(*PROTOTYPES[kind](q), fs=warped / 2)
    np.testing.assert_allclose(stage.sections[0], [*b, *a], rtol=1e-9, atol=1e-12)
    check_stage(lambda: Iir(SIGNAL, kind=kind, frequency=frequency, q=q))


def test_silence_after_sound_leaves_zeros_and_no_denormals():
    stage = Iir(SIGNAL, [[1, 0, 0, 1, -0.5, 0]])
    state, _ = stage.step(stage.open(), {"x": np.ones(8, np.float32)})
    for _ in range(4):
        state, out = stage.step(state, {"x": np.zeros(200, np.float32)})
    assert not state["memory.x"].any()
    assert not out["x"].any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either sections or kind .* not neither"),
        ({"sections": DESIGNS["one pole"], "kind": "notch", "frequency": 50.0}, "not both"),
        ({"sections": DESIGNS["one pole"], "frequency": 50.0}, "frequency and q go with kind"),
        ({"sections": DESIGNS["one pole"], "q": 1.0}, "frequency and q go with kind"),
        ({"sections": []}, "1 to 32 sections, not 0"),
        ({"sections": DESIGNS["one pole"] * 33}, "1 to 32 sections, not 33"),
        ({"sections": [[1, 0, 0, 1, 0]]}, r"sections\[0\] must be six numbers"),
        ({"sections": [[1, 0, 0, 0, 0, 0]]}, "a0 not 0"),
        ({"sections": [[1, 0, float("inf"), 1, 0, 0]]}, "six numbers"),
        ({"sections": [[1, 0, 0, 5e-324, 0, 0]]}, "too large"),
        ({"sections": [[1e200, 1e200, 0, 1, 0.5, 0]] * 2}, "too large"),
        (
            {"sections": [[1, 0, 0, 1, 0, 0], [1, 0, 0, 1, -2, 1]]},
            r"sections\[1\] is not stable: a pole at 1 ",
        ),
        ({"sections": [[1, 0, 0, 2, 0, 2.5]]}, "not stable: a pole at 1.118"),
        ({"sections": [[1, 0, 0, 1, 1.01, 0]]}, "not stable: a pole at 1.01"),
        ({"kind": "lowpass"}, "a lowpass needs its frequency"),
        ({"kind": "lowpass", "frequency": 8000.0}, "above 0 and below 8000 Hz, half the rate, not 8000"),
        ({"kind": "lowpass", "frequency": 0.0}, "above 0"),
        ({"kind": "lowpass", "frequency": 100.0, "q": 0.0}, "q must be in"),
    ],
)
def test_bad_options_are_refused_at_construction(options, says):
    with pytest.raises(PipelineError, match=says):
        Iir(SIGNAL, **options)


def test_a_design_needs_the_rate_and_sections_do_not():
    with pytest.raises(PipelineError, match="rate of what comes in is not known"):
        Iir(Signal(SIGNAL.tensors), kind="notch", frequency=50.0)
    assert Iir(Signal(SIGNAL.tensors), DESIGNS["one pole"]).outputs.rate is None


def test_integers_alone_are_refused():
    with pytest.raises(PipelineError, match="takes floats, but n: int16"):
        Iir(Signal((TensorSpec("n", "int16"),)), DESIGNS["one pole"])


def test_numbers_too_large_for_its_memories_are_refused_for_their_stream_alone():
    stage = Iir(Signal((TensorSpec("x", "float64"),)), [[1, 0, 0, 1, -0.9, 0]])
    chunks = [{"x": np.full(100, level)} for level in (1e308, 1.0)]
    with np.errstate(over="ignore", invalid="ignore"):
        loud, quiet = stage.step_many([stage.open(), stage.open()], chunks)
    assert isinstance(loud, NonFiniteError)
    assert np.isfinite(quiet[1]["x"]).all()


def test_impossible_states_are_not_restored():
    stage = Iir(SIGNAL, DESIGNS["one pole"])
    with pytest.raises(SnapshotError, match=r"'memory\.x' has shape \(2, 2\), expected \(1, 2\)"):
        stage.load(stage.open(), {"memory.x": np.zeros((2, 2))})
    with pytest.raises(SnapshotError, match="not finite"):
        stage.load(stage.open(), {"memory.x": np.array([[0, np.inf]])})
