"""frame: the windows that numpy, torch and the engine's own framing cut from the whole signal."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import get_window

from runnel import Framing, Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, RunnelError, SnapshotError
from runnel.model.framing import Frame as ModelFrame
from runnel_plugins.frame import Frame

SIGNAL = Signal((TensorSpec("x", "float32"),), 1000)
PADDINGS = ["none", "left", "center", "mirror"]


def play(stage, x, cuts=()):
    state, made = stage.open(), []
    for a, b in itertools.pairwise([0, *sorted(cuts), len(x)]):
        state, out = stage.step(state, {"x": x[a:b]})
        stage.load(stage.open(), stage.dump(state))  # every state that a stream has can be restored
        made.append(out["x"])
    state, out = stage.flush(state)
    stage.load(stage.open(), stage.dump(state))
    return np.concatenate([*made, out["x"]])


def plain(x, window, hop, padding, last):
    """Frame by the definition, from the whole signal."""
    n = len(x)
    if padding == "mirror":
        first = window // 2 - hop // 2
        count = (n + hop // 2) // hop if last == "fill" else max(0, (n + first - window) // hop + 1)
        at = np.arange(count)[:, None] * hop - first + np.arange(window)
        at = at % (2 * n) if n else at  # a mirrored signal repeats itself
        return x[np.where(at < n, at, 2 * n - 1 - at)]
    before = {"none": 0, "left": window - hop, "center": window // 2}[padding]
    after = 0
    if last == "fill" and padding == "center" and n:
        after = window // 2
    elif last == "fill" and n:
        after = max(window - before - n, -(n + before - window) % hop)
    zeros = [np.zeros((m, *x.shape[1:]), x.dtype) for m in (before, after)]
    padded = np.concatenate([zeros[0], x, zeros[1]])
    starts = range(0, len(padded) - window + 1, hop)
    return np.array([padded[s : s + window] for s in starts], x.dtype).reshape(-1, window, *x.shape[1:])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("window", "hop"), [(40, 16), (7, 7), (25, 1), (1, 1), (12, 11)])
@pytest.mark.parametrize("last", ["fill", "drop"])
def test_it_keeps_the_laws(padding, window, hop, last):
    signal = Signal((TensorSpec("x", "float32", (2,)),), 1000)
    check_stage(lambda: Frame(signal, window, hop, padding, last))
    check_stage(lambda: Frame(SIGNAL, window, hop, padding, last, "hamming"))


@given(
    window=st.integers(1, 30),
    hop=st.integers(1, 30),
    padding=st.sampled_from(PADDINGS),
    last=st.sampled_from(["fill", "drop"]),
    length=st.integers(0, 120),
    cuts=st.lists(st.integers(0, 100), max_size=6),
    shape=st.sampled_from([(), (2,)]),
)
def test_any_cuts_equal_the_whole_signal(window, hop, padding, last, length, cuts, shape):
    hop = min(hop, window)
    stage = Frame(Signal((TensorSpec("x", "int32", shape),)), window, hop, padding, last)
    x = np.arange(1, 1 + length * max(1, sum(shape)), dtype=np.int32).reshape(length, *shape)
    got = play(stage, x, [c * length // 100 for c in cuts])
    np.testing.assert_array_equal(got, plain(x, window, hop, padding, last))


@pytest.mark.parametrize("last", ["fill", "drop"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_signals_shorter_than_a_few_windows_all_of_them(padding, last):
    for window, length in itertools.product(range(1, 7), range(16)):
        for hop in range(1, window + 1):
            stage, x = Frame(SIGNAL, window, hop, padding, last), np.arange(1, 1 + length, dtype=np.float32)
            np.testing.assert_array_equal(play(stage, x), plain(x, window, hop, padding, last))


@given(window=st.integers(1, 30), hop=st.integers(1, 30), length=st.integers(0, 100))
def test_left_is_the_framing_of_a_model_file(window, hop, length):
    hop = min(hop, window)
    x = np.arange(1, 1 + length, dtype=np.float32)
    model = ModelFrame(SIGNAL.tensors[0], "x", Framing(window, hop), 1000)
    np.testing.assert_array_equal(play(Frame(SIGNAL, window, hop, "left"), x), play(model, x))


@pytest.mark.parametrize("length", [1, 37, 64, 200])
def test_center_padding_equals_torch_stft(length):
    x = np.random.default_rng(1).standard_normal(length).astype(np.float32)
    rows = play(Frame(SIGNAL, 32, 8, "center", function="hann", periodic=True), x, [length // 3])
    want = torch.stft(
        torch.from_numpy(x), 32, 8, window=torch.hann_window(32), pad_mode="constant", return_complex=True
    )
    np.testing.assert_allclose(np.fft.rfft(rows), want.T, atol=1e-5)


@pytest.mark.parametrize("function", ["hann", "hamming", "blackman", "povey"])
@pytest.mark.parametrize("periodic", [False, True])
def test_the_window_functions_are_scipys(function, periodic):
    stage = Frame(SIGNAL, 31, function=function, periodic=periodic)
    rows = play(stage, np.ones(31, np.float32))
    want = get_window("hann" if function == "povey" else function, 31, fftbins=periodic)
    np.testing.assert_allclose(rows[0], want**0.85 if function == "povey" else want, atol=1e-6)


@pytest.mark.parametrize(
    ("padding", "latency"), [("none", 240), ("left", 0), ("center", 40), ("mirror", 120)]
)
def test_latency_is_the_wait_beyond_one_hop(padding, latency):
    stage = Frame(Signal((TensorSpec("x", "float32"),), 16000), 400, 160, padding)
    assert (stage.latency, stage.ratio, stage.outputs.rate) == (latency, (1, 160), 100)
    x = np.ones(2000, np.float32)
    state, before = stage.step(stage.open(), {"x": x[: latency + 159]})
    _, due = stage.step(state, {"x": x[:1]})
    assert (len(before["x"]), len(due["x"])) == (0, 1)


def test_many_streams_at_different_points_of_a_hop_are_each_alone(monkeypatch):
    stage, rng = Frame(SIGNAL, 20, 8, "mirror"), np.random.default_rng(4)
    heads = [rng.random(n, np.float32) for n in (0, 3, 8, 11, 19, 27, 3)]
    states = [stage.step(stage.open(), {"x": head})[0] for head in heads]
    chunks = [{"x": rng.random(n, np.float32)} for n in (30, 30, 30, 30, 5, 30, 30)]
    together, advance = [], stage.advance
    with monkeypatch.context() as patch:
        patch.setattr(stage, "advance", lambda s, c: together.append(len(c["x"])) or advance(s, c))
        results = stage.step_many(states, chunks)
    assert sorted(together) == [1, 1, 1, 1, 1, 2], "those that held 3 samples go together"
    for i, (state, out) in enumerate(results):
        want_state, want = stage.step(states[i], chunks[i])
        np.testing.assert_array_equal(out["x"], want["x"])
        np.testing.assert_array_equal(state["samples"], want_state["samples"])


@pytest.mark.parametrize(
    ("signal", "options", "says"),
    [
        (SIGNAL, {"window": 0}, "window must have 1 to 1048576 samples, not 0"),
        (SIGNAL, {"window": 2**20 + 1}, "window must have 1 to 1048576"),
        (SIGNAL, {"window": 8, "hop": 9}, "hop must have 1 to 8 samples, the window, not 9"),
        (SIGNAL, {"window": 8, "hop": 0}, "hop must have"),
        (SIGNAL, {"window": 8, "padding": "right"}, "padding must be one of .*'mirror'.* not 'right'"),
        (SIGNAL, {"window": 8, "last": "keep"}, "last must be one of"),
        (SIGNAL, {"window": 8, "function": "kaiser"}, "window function must be one of"),
        (
            Signal((TensorSpec("x", "int16"),)),
            {"window": 8, "function": "hann"},
            r"'hann' takes float32, but x: int16 \(T\) arrives",
        ),
        (
            Signal((TensorSpec("x", "float32"), TensorSpec("y", "float32"))),
            {"window": 8},
            "takes one array, but x: .*; y: .* arrive",
        ),
    ],
)
def test_bad_options_are_refused_at_construction(signal, options, says):
    with pytest.raises(PipelineError, match=says):
        Frame(signal, **options)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("length", "begun"), [(10, False), (10, True), (9999, False), (3, True), (0, True)])
def test_impossible_counts_of_samples_are_not_restored(padding, length, begun):
    stage = Frame(SIGNAL, 10, 4, padding)
    state = {"samples": np.zeros(length, np.float32), "begun": np.array(begun)}
    with pytest.raises(SnapshotError, match=r"the samples held have shape .* expected"):
        stage.load(stage.open(), state)


def test_other_impossible_states_are_not_restored():
    stage = Frame(SIGNAL, 10, 4)
    with pytest.raises(NonFiniteError):
        stage.load(stage.open(), {"samples": np.full(7, np.nan, np.float32), "begun": np.array(True)})
    wide = Frame(Signal((TensorSpec("x", "float32", (2,)),)), 10, 4)
    with pytest.raises(RunnelError, match="shape"):
        wide.load(wide.open(), {"samples": np.zeros((7, 3), np.float32), "begun": np.array(True)})
