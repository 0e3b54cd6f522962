"""Silero VAD: a model that others made, in its vendor's file and in ours."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from runnel import Engine
from runnel.spec import Array
from tests import recordings, silero

from . import loops
from .kit import Kit
from .measure import Loop, paired
from .report import Measured, Row, SkipRow, micros

RATE = 16000
STREAMS = 64
WINDOWS = 61  # a stream: two seconds, and a prime
SAME = 2e-3  # probabilities: the files differ in how they compute the same


def _noise() -> list[Array]:
    rng = np.random.default_rng(7)
    return list(rng.standard_normal((WINDOWS, silero.HOP)).astype(np.float32) * 0.1)


def _vendor(kit: Kit) -> Engine:
    return Engine.load(silero.pipeline(kit.folder))


def _reexport(kit: Kit) -> Engine:
    return kit.silero.load()


def _feed(kit: Kit) -> Measured:
    hops = _noise()
    ours, by_hand = loops.feed(_vendor(kit), hops), loops.vendor_by_hand(hops)
    loops.agree(ours, by_hand)
    found = paired(ours, by_hand, kit.effort)
    return Measured(found.ratio, [("feed", micros(found.a)), ("by hand", micros(found.b))], ours)


def _files(kit: Kit) -> Measured:
    hops, file = _noise(), kit.silero
    ours, theirs = loops.reexport_by_hand(file.path, file.spec, hops), loops.vendor_by_hand(hops)
    loops.agree(ours, theirs, tolerance=SAME)
    found = paired(ours, theirs, kit.effort)
    return Measured(found.ratio, [("our file", micros(found.a)), ("the vendor's", micros(found.b))], ours)


def _speech(which: str, kit: Kit) -> Measured:
    streams = recorded(STREAMS * WINDOWS * silero.HOP).reshape(STREAMS, WINDOWS, silero.HOP)
    engine = _vendor(kit) if which == "vendor" else _reexport(kit)
    expected, theirs = _wrapper(streams)
    found = _probabilities(engine, streams)
    worst = float(np.abs(found - expected).max())
    if worst > SAME:
        raise AssertionError(f"no ratio means anything: the probabilities differ by {worst:.2g}")
    ours = loops.feed_many(engine, [list(streams[:, i]) for i in range(WINDOWS)])
    timed = paired(ours, theirs, kit.effort, a_steps=STREAMS)
    spoken = float((expected > 0.5).mean())
    beside = [
        ("feed_many, a step", micros(timed.a)),
        ("OnnxWrapper, a step", micros(timed.b)),
        ("windows with speech in them", f"{spoken:.0%} of {expected.size}"),
        ("largest difference of the probabilities", f"{worst:.1e}"),
    ]
    return Measured(timed.ratio, beside, ours)


def recorded(samples: int) -> Array:
    """So many samples of people speaking, one recording after the other."""
    parts, held = [], 0
    for path in (*recordings.alsa(), *recordings.asterisk()):
        parts.append(recordings.at_16k(path))
        held += len(parts[-1])
        if held >= samples:
            return np.concatenate(parts)[:samples]
    raise SkipRow(recordings.REASON)


def _probabilities(engine: Engine, streams: Array) -> Array:
    """Of each window of each stream: (streams, windows)."""
    opened = [engine.open() for _ in streams]
    outs = [engine.feed_many(list(zip(opened, streams[:, i], strict=True))) for i in range(streams.shape[1])]
    for stream in opened:
        stream.close()
    return np.array(outs).reshape(streams.shape[1], -1).T


def _wrapper(streams: Array) -> tuple[Array, Loop]:
    """What silero-vad's own wrapper makes of each stream, and the wrapper as a loop over all windows."""
    from silero_vad.utils_vad import OnnxWrapper

    wrapper = OnnxWrapper(str(silero.model("silero_vad")), force_onnx_cpu=True)
    windows = [torch.from_numpy(hop) for stream in streams for hop in stream]
    found = []
    for i, hop in enumerate(windows):
        if i % streams.shape[1] == 0:
            wrapper.reset_states()
        found.append(float(wrapper(hop, RATE)))
    return np.array(found).reshape(streams.shape[:2]), loops.call_each(wrapper, windows, RATE)


def _speech_row(name: str, file: str) -> Row:
    return Row(
        f"speech-{name}",
        f"Silero on recorded speech, {STREAMS} streams by `feed_many`, {file} ÷ silero-vad's OnnxWrapper",
        f"The same {STREAMS} × {WINDOWS} windows of people speaking, resampled to 16 kHz beforehand; the "
        "wrapper takes one window a call, on ready-made tensors.",
        partial(_speech, name),
        1 / 4,
    )


ROWS = (
    Row(
        "feed-silero",
        "`stream.feed` ÷ hand-written loop, Silero's own file",
        f"{silero.HOP} new samples a call; both keep the {silero.CONTEXT} samples of context themselves.",
        _feed,
        1.05,
    ),
    Row(
        "reexport-silero",
        "our re-export of Silero ÷ the vendor's file, same hand-written loop",
        "`session.run` by hand on either file, the context joined by `numpy.concatenate`.",
        _files,
        0.8,
    ),
    _speech_row("reexport", "our file"),
    _speech_row("vendor", "the vendor's file"),
)
