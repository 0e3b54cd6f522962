"""Live sound to features: how many times faster than it arrives."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

import numpy as np

from runnel import Signal, TensorSpec
from runnel.pipeline.pipeline import Pipeline
from runnel.spec import Array
from runnel_plugins.log_mel import LogMel
from runnel_plugins.resample import Resample

from .kit import Kit
from .measure import Loop, Spread, alone
from .report import Measured, Row, SkipRow, micros

MICROPHONE, MODEL = 48_000, 16_000  # Hz
CHUNKS_MS = (10, 20, 100)
BAR_MS = 20
SECONDS = 4  # of sound, used in turn
STREAMS = 256


def _pipeline() -> Pipeline:
    resample = Resample(Signal((TensorSpec("sound", "float32"),), MICROPHONE), MODEL)
    return Pipeline([resample, LogMel(resample.outputs)], None, {})


def _sound() -> Array:
    rng = np.random.default_rng(7)
    return (0.1 * rng.standard_normal(SECONDS * MICROPHONE)).astype(np.float32)


def _chunks(ms: int) -> list[Array]:
    return np.split(_sound(), SECONDS * 1000 // ms)


def _live(chunks: list[Array]) -> Loop:
    """What `stream.feed` does: the check at the door, the step, the commit, the answer."""
    pipeline, given = _pipeline(), cycle(chunks)
    states = pipeline.open()

    def loop(calls: int) -> Any:
        nonlocal states
        for chunk in islice(given, calls):
            states, out = pipeline.step(states, pipeline.accept(chunk))
            y = pipeline.answer(chunk, out)
        return y

    return loop


def _together(chunks: list[Array]) -> Loop:
    """One chunk of each of `STREAMS` streams a call."""
    pipeline = _pipeline()
    states = [pipeline.open() for _ in range(STREAMS)]
    given = cycle([[{"sound": chunk}] * STREAMS for chunk in chunks])

    def loop(calls: int) -> Any:
        nonlocal states
        for batch in islice(given, calls):
            done = [r for r in pipeline.step_many(states, batch) if isinstance(r, tuple)]
            states = [after for after, _ in done]
        return done

    return loop


def _prove() -> None:
    """The pipeline's rows, in chunks of `BAR_MS`, are those of SciPy and Kaldi on the whole recording."""
    try:
        import kaldi_native_fbank as knf
        from scipy.signal import resample_poly
    except ImportError as error:
        raise SkipRow(f"needs scipy and kaldi-native-fbank, to compare with: {error}") from None
    pipeline, rows = _pipeline(), []
    states = pipeline.open()
    for chunk in _chunks(BAR_MS):
        states, out = pipeline.step(states, {"sound": chunk})
        rows.append(out["sound"])
    rows.append(pipeline.flush(states)[1]["sound"])
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 80
    kaldi = knf.OnlineFbank(options)
    kaldi.accept_waveform(MODEL, resample_poly(_sound(), MODEL, MICROPHONE).tolist())
    kaldi.input_finished()
    want = np.array([kaldi.get_frame(i) for i in range(kaldi.num_frames_ready)])
    if not np.allclose(np.concatenate(rows), want, rtol=0, atol=1e-2):  # of logarithms
        raise AssertionError("no figure means anything: the features are not those of SciPy and Kaldi")


def _audio(kit: Kit) -> Measured:
    _prove()
    costs = {ms: alone(_live(_chunks(ms)), kit.effort) for ms in CHUNKS_MS}
    many = alone(_together(_chunks(BAR_MS)), kit.effort, steps=STREAMS)
    beside = [
        (f"a chunk of {ms} ms", f"{micros(cost)}, {_times(cost, ms).median:.0f} × real time")
        for ms, cost in costs.items()
    ]
    beside.append(
        (
            f"a chunk of {BAR_MS} ms, {STREAMS} streams together",
            f"{micros(many)}, {_times(many, BAR_MS).median:.0f} × real time",
        )
    )
    return Measured(_times(costs[BAR_MS], BAR_MS), beside, _live(_chunks(BAR_MS)))


def _times(cost: Spread, ms: int) -> Spread:
    """How many times faster than real time."""
    return Spread(*(ms / 1000 / seconds for seconds in (cost.median, cost.high, cost.low)))


ROWS = (
    Row(
        "audio",
        f"`resample` 48 → 16 kHz and `log_mel`, live in chunks of {BAR_MS} ms, one core",
        "A pipeline of the two stages, with the check of the chunk at the door, fed one chunk at a time. Its "
        "rows are first compared with SciPy's and Kaldi's on the whole recording.",
        _audio,
        300,
        unit="× real time",
        digits=0,
        least=True,
    ),
)
