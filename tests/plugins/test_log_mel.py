"""log_mel and mfcc: kaldi-native-fbank on the same samples, and the formulas in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dct

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel_plugins.log_mel import BLOCK, LogMel
from runnel_plugins.mfcc import Mfcc

knf = pytest.importorskip("kaldi_native_fbank")

KALDI_WINDOWS = {
    "povey": "povey", "hamming": "hamming", "hann": "hanning", "blackman": "blackman",
    "rectangular": "rectangular",
}  # fmt: skip


def sound(rate=16000):
    return Signal((TensorSpec("x", "float32"),), rate)


def speech(length, rate=16000, seed=0):
    """Return a signal with a pitch, formants, a slow envelope, an offset and a little noise, within -1..1."""
    rng, t = np.random.default_rng(seed), np.arange(length) / rate
    pitch = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 1.3 * t)) / rate
    voice = sum(np.sin(k * pitch) / k for k in range(1, 25))
    return (0.2 * (1 + np.sin(7 * t)) * voice + 0.003 * rng.standard_normal(length) + 0.02).astype(np.float32)


def play(stage, x, cuts=()):
    state, made = stage.open(), []
    for a, b in itertools.pairwise([0, *sorted(cuts), len(x)]):
        state, out = stage.step(state, {"x": x[a:b]})
        made.append(out["x"])
    return np.concatenate([*made, stage.flush(state)[1]["x"]])


def kaldi(x, rate, options, mfcc=False):
    """Return all of Kaldi's frames; `options` by our names."""
    o = knf.MfccOptions() if mfcc else knf.FbankOptions()
    f, m = o.frame_opts, o.mel_opts
    f.samp_freq, f.dither = rate, 0.0
    f.frame_length_ms, f.frame_shift_ms = options.get("frame_ms", 25), options.get("hop_ms", 10)
    f.window_type = KALDI_WINDOWS[options.get("window", "povey")]
    f.preemph_coeff = options.get("pre_emphasis", 0.97)
    f.remove_dc_offset = options.get("remove_dc", True)
    f.snip_edges = options.get("snip_edges", True)
    m.num_bins = options.get("n_mels", 23 if mfcc else 80)
    m.low_freq, m.high_freq = options.get("low_hz", 20), options.get("high_hz", 0)
    if mfcc:
        o.num_ceps, o.cepstral_lifter = options.get("n_ceps", 13), options.get("lifter", 22)
        o.use_energy = options.get("use_energy", True)
    else:
        o.use_power = options.get("power", True)
    computer = (knf.OnlineMfcc if mfcc else knf.OnlineFbank)(o)
    computer.accept_waveform(rate, (x * np.float32(options.get("scale", 1.0))).tolist())
    computer.input_finished()
    width = options.get("n_ceps", 13) if mfcc else m.num_bins
    rows = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    return np.array(rows, np.float32).reshape(-1, width)


def exact(x, rate, options):
    """Compute log_mel's formulas on each frame in float64, for the defaults except `scale`."""
    x = x.astype(np.float64) * options.get("scale", 1.0)
    size, hop, n_fft = 400, 160, 512
    assert rate == 16000
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / (size - 1))) ** 0.85
    mel = lambda f: 1127 * np.log(1 + f / 700)  # noqa: E731
    edges = np.linspace(mel(20), mel(8000), 82)
    rows = []
    for start in range(0, len(x) - size + 1, hop):
        frame = x[start : start + size] - x[start : start + size].mean()
        frame = (frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])) * window
        power = np.abs(np.fft.fft(frame, n_fft)[:257]) ** 2
        row = []
        for j in range(80):
            triangle = np.interp(mel(np.arange(257) * rate / n_fft), edges[j : j + 3], [0, 1, 0])
            row.append(np.log(max(2.0**-23, triangle @ power)))
        rows.append(row)
    return np.array(rows)


VARIANTS = [
    {},
    {"scale": 32768.0},
    {"n_mels": 40, "low_hz": 0.0, "high_hz": 7600.0, "window": "hamming"},
    {"high_hz": -400.0, "window": "hann", "pre_emphasis": 0.0},
    {"window": "blackman", "remove_dc": False, "scale": 100.0},
    {"window": "rectangular", "power": False, "n_mels": 23},
    {"snip_edges": False},
    {"snip_edges": False, "frame_ms": 32.0, "hop_ms": 8.0},
    {"frame_ms": 20.0, "hop_ms": 20.0, "pre_emphasis": 0.5, "n_mels": 30},
]
RATES = [
    (16000, {}),
    (8000, {"n_mels": 40}),
    (22050, {"hop_ms": 11.6}),
    (11025, {"snip_edges": False, "n_mels": 30}),
    (22050, {"snip_edges": False}),  # an odd window and even hops
]


@pytest.mark.parametrize(("rate", "options"), [*((16000, v) for v in VARIANTS), *RATES], ids=str)
def test_log_mel_is_kaldis(rate, options):
    x = speech(rate // 2, rate)
    got = play(LogMel(sound(rate), **options), x, [7, 400, 401, 1999])
    want = kaldi(x, rate, options)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-4)
    assert np.abs(got - want).mean() < 1e-5


@pytest.mark.parametrize(
    ("rate", "options"),
    [
        *((16000, {k: w for k, w in v.items() if k not in ("power", "n_mels")}) for v in VARIANTS),
        (16000, {"use_energy": False, "n_ceps": 20, "n_mels": 40, "lifter": 0.0}),
        (16000, {"n_ceps": 1}),
        (8000, {"n_ceps": 23, "snip_edges": False, "lifter": 10.0}),
    ],
    ids=str,
)
def test_mfcc_is_kaldis(rate, options):
    x = speech(rate // 2, rate)
    got = play(Mfcc(sound(rate), **options), x, [7, 400, 401, 1999])
    want = kaldi(x, rate, options, mfcc=True)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-4)


@given(
    length=st.integers(0, 1500),
    cuts=st.lists(st.integers(0, 100), max_size=6),
    snip=st.booleans(),
    frame=st.sampled_from([5.0, 20.0, 25.0, 31.9]),
    hop=st.sampled_from([3.1, 5.0]),
)
def test_however_cut_there_are_kaldis_frames(length, cuts, snip, frame, hop):
    options = {"snip_edges": snip, "frame_ms": frame, "hop_ms": hop, "n_mels": 10, "low_hz": 100.0}
    x = speech(length, 8000)
    got = play(LogMel(sound(8000), **options), x, [c * length // 100 for c in cuts])
    if length == 0:
        assert got.shape == (0, 10)
        return
    want = kaldi(x, 8000, options)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-3)


def test_float32_is_nearer_to_the_exact_result_than_kaldi_is():
    x, options = speech(16000), {"scale": 32768.0}
    want = exact(x, 16000, options)
    ours = np.abs(play(LogMel(sound(), **options), x) - want)
    theirs = np.abs(kaldi(x, 16000, options) - want)
    assert ours.max() < 5e-5
    assert ours.mean() < theirs.mean()
    assert ours.max() < theirs.max()


def test_mfcc_is_the_cosine_transform_of_log_mel():
    x = speech(4000)
    rows = play(LogMel(sound(), n_mels=30), x)
    got = play(Mfcc(sound(), n_mels=30, n_ceps=30, lifter=0.0, use_energy=False), x)
    np.testing.assert_allclose(got, dct(rows, norm="ortho"), atol=1e-4)


SMALL = {"frame_ms": 20.0, "hop_ms": 8.0, "n_mels": 5, "low_hz": 50.0}  # 40 and 16 samples at 2 kHz


@pytest.mark.parametrize(
    "options", [{}, {"snip_edges": False}, {"remove_dc": False, "window": "hamming"}, {"hop_ms": 20.0}]
)
@pytest.mark.parametrize("kind", [LogMel, Mfcc])
def test_they_keep_the_laws(kind, options):
    size = {"n_ceps": 4} if kind is Mfcc else {}
    check_stage(lambda: kind(sound(2000), **{**SMALL, **size, **options}))


def test_a_long_chunk_and_a_batch_are_made_in_blocks():
    stage, x = LogMel(sound(2000), **SMALL), speech(16 * 3 * BLOCK, 2000)
    whole = play(stage, x)
    np.testing.assert_allclose(whole, play(stage, x, range(0, len(x), 1000)), atol=1e-4)
    half = len(x) // 2
    many = stage.step_many([stage.open()] * 2, [{"x": x[:half]}, {"x": x[half:]}])
    for chunk, (_, out) in zip((x[:half], x[half:]), many, strict=True):
        np.testing.assert_allclose(out["x"], play(stage, chunk), atol=1e-4)


def test_silence_gives_the_floor_and_no_infinity():
    rows = play(LogMel(sound(), floor=1e-10), np.zeros(800, np.float32))
    np.testing.assert_allclose(rows, np.log(1e-10), rtol=1e-6)
    assert np.isfinite(play(Mfcc(sound()), np.zeros(800, np.float32))).all()


@pytest.mark.parametrize("options", [{}, {"snip_edges": False}])
def test_latency_and_rate_are_stated(options):
    stage = LogMel(sound(), **options)
    assert stage.latency == (240 if not options else 120)
    assert (stage.ratio, stage.outputs.rate, stage.outputs.tensors[0].shape) == ((1, 160), 100, (80,))


BAD = [
    (Signal((TensorSpec("x", "float32"),)), {}, "rate of what comes in is not known: give"),
    (Signal((TensorSpec("x", "int16"),), 16e3), {}, r"one float32 sample a time step, but x: int16.*'cast'"),
    (Signal((TensorSpec("x", "float32", (2,)),), 16e3), {}, r"but x: float32 \(T, 2\) arrives: 'mono'"),
    (Signal((TensorSpec("x", "float32"), TensorSpec("y", "float32")), 16e3), {}, "takes one array"),
    (sound(), {"frame_ms": 0.0}, "frame_ms must be above 0, not 0"),
    (sound(), {"frame_ms": float("inf")}, "frame_ms must be above 0"),
    (sound(), {"frame_ms": 1e300}, "window must have 1 to"),
    (sound(), {"hop_ms": 0.01}, "hop must have 1 to 400"),
    (sound(), {"hop_ms": 26.0}, "hop must have 1 to 400 samples, the window, not 416"),
    (sound(), {"pre_emphasis": 1.5}, r"pre_emphasis must be in 0\.\.1, not 1.5"),
    (sound(), {"floor": 0.0}, "floor must be at least 1e-37, not 0"),
    (sound(), {"scale": 0.0}, r"scale must be in 1e-6\.\.1e6, not 0"),
    (sound(), {"window": "kaiser"}, "window function must be one of"),
    (sound(), {"n_fft": 256}, r"n_fft must be in 400\.\.32768"),
    (sound(), {"n_fft": 2**16}, "n_fft must be in"),
    (sound(), {"low_hz": 4000.0, "high_hz": 3000.0}, "low_hz is 4000 and high_hz is 3000"),
    (sound(), {"high_hz": 8001.0}, r"high_hz <= 8000 Hz, half the rate"),
    (sound(), {"low_hz": -1.0}, "0 <= low_hz"),
    (sound(), {"n_mels": 0}, r"n_mels must be in 1\.\.1024"),
    (sound(), {"n_mels": 200}, "200 mel filters .* are too many: filter .* 31.25 Hz apart: fewer n_mels"),
]


@pytest.mark.parametrize(("signal", "options", "says"), BAD)
@pytest.mark.parametrize("kind", [LogMel, Mfcc])
def test_bad_options_are_refused_at_construction(kind, signal, options, says):
    with pytest.raises(PipelineError, match=says) as caught:
        kind(signal, **options)
    assert str(caught.value).startswith(("log_mel" if kind is LogMel else "mfcc", "200"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n_ceps": 0}, r"n_ceps must be in 1\.\.23, n_mels, not 0"),
        ({"n_ceps": 24}, r"n_ceps must be in 1\.\.23"),
        ({"lifter": -1.0}, "lifter must be at least 0"),
    ],
)
def test_mfccs_own_bad_options_are_refused(options, says):
    with pytest.raises(PipelineError, match=says):
        Mfcc(sound(), **options)


def test_a_hostile_state_is_not_restored():
    stage = LogMel(sound())
    for samples in (np.zeros(400, np.float32), np.zeros(10**6, np.float32)):
        with pytest.raises(SnapshotError, match="log_mel: the samples held have shape"):
            stage.load(stage.open(), {"samples": samples, "begun": np.array(True)})
    with pytest.raises(NonFiniteError):
        stage.load(stage.open(), {"samples": np.full(300, np.inf, np.float32), "begun": np.array(True)})
