"""A noise suppressor from waveform to waveform: trained, certified, measured, and streamed live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from measured import Say, Table

from runnel import Engine
from runnel.spec import Array

from . import measuring, picture, sounds, streaming, training
from .measuring import KINDS, RATIOS, SETS, Measured, mean
from .network import AHEAD, HOP, RATE, WINDOW
from .sounds import Mixture, Speech
from .streaming import Streamed

MODEL, PICTURE = "suppressor.onnx", "noise_suppression.png"
_SEED = 1979
_HELD_OUT = 100_000  # seeds from here on draw what is measured
_SHOWN = ("pink", 0.0)  # the kind of noise and the ratio in the picture


@dataclass(frozen=True)
class Size:
    prompts: int | None  # telephone prompts at most
    updates: int
    measured: float  # seconds of each mixture
    each: int  # mixtures of each set, kind and ratio
    streams: int
    streamed: float  # seconds of each
    live: float  # seconds in real time


FULL = Size(None, updates=500, measured=5.0, each=2, streams=12, streamed=5.0, live=5.0)
QUICK = Size(40, updates=3, measured=1.0, each=1, streams=2, streamed=1.0, live=0.5)


def run(out: Path, quick: bool, say: Say) -> list[Table]:
    """Train, export, measure, stream. The folder gets the model, its weights, a picture and sound files."""
    size = QUICK if quick else FULL
    say("[1/5] Speech and noise")
    speech = sounds.load(say, size.prompts)
    minutes = sum(map(len, speech.train)) / RATE / 60
    say(f"  {len(speech.train)} prompts to train ({minutes:.0f} minutes), {len(speech.prompts)} held out")

    say("[2/5] Train")
    network = training.train(speech, size.updates, _SEED, say)
    torch.save(network.state_dict(), out / "suppressor.pt")

    say("[3/5] Certify")
    held = _held_out(speech, size)
    certificate = streaming.certify(network, [m.noisy for m in held[:2]], out / MODEL, _SEED)
    say(f"  certified: wrong by at most {certificate.error:.1e} of a peak")

    say("[4/5] Measure on held-out sounds")
    measured = measuring.measure(network, speech, size.measured, size.each, _HELD_OUT)
    say(f"  {len(measured)} mixtures: SI-SDR is better by {mean(measured, 'better'):.1f} dB, on average")

    say("[5/5] Stream, in chunks of random sizes, and live")
    streams = streaming.streamed(network, out / MODEL, [m.noisy for m in held], size.live, _SEED)
    say(f"  torch differs by at most {streams.error:.1e} of a peak; the latency is the one stated")
    _show(out, speech, size, measured)
    say(f"  a picture: {out / PICTURE}; to listen to: noisy.wav, cleaned.wav and clean.wav beside it")
    return [
        _by_ratio(measured),
        _by_kind(measured),
        _streamed(streams, certificate.error),
        _latency(streams, sum(p.numel() for p in network.parameters())),
    ]


def _held_out(speech: Speech, size: Size) -> list[Mixture]:
    """The mixtures that are streamed: all kinds, ratios and both sets in turn."""
    wides = tuple(SETS.values())
    return [
        sounds.held_out(
            speech,
            wides[n % len(wides)],
            KINDS[n % len(KINDS)],
            RATIOS[n % len(RATIOS)],
            size.streamed,
            _HELD_OUT + n,
        )
        for n in range(size.streams)
    ]


def _show(out: Path, speech: Speech, size: Size, measured: Sequence[Measured]) -> None:
    """Stream one mixture; draw it, and write it as sound files."""
    kind, ratio = _SHOWN
    mixture = sounds.held_out(speech, True, kind, ratio, size.streamed, _HELD_OUT)
    with Engine.load(out / MODEL) as engine, engine.open() as stream:
        chunks = np.array_split(mixture.noisy, 50)
        rows = [*map(stream.feed, chunks), stream.flush()]
    cleaned: Array = np.concatenate(rows)
    before, after = (measuring.si_sdr(sound, mixture.clean) for sound in (mixture.noisy, cleaned))
    title = (
        f"{sounds.NAMES}, {kind} noise: SI-SDR {round(before, 1) + 0.0:.1f} dB before, {after:.1f} dB after"
    )
    picture.draw(out / PICTURE, picture.Shown(title, mixture.noisy, cleaned, mixture.clean), measured)
    for name, sound in (("noisy", mixture.noisy), ("cleaned", cleaned), ("clean", mixture.clean)):
        soundfile.write(out / f"{name}.wav", sound, RATE)


def _by_ratio(measured: Sequence[Measured]) -> Table:
    rows = []
    for name, wide in SETS.items():
        for ratio in RATIOS:
            some = [m for m in measured if m.wide == wide and m.ratio == ratio]
            rows.append([name, f"{ratio:g}", *_cells(some)])
    kinds = f"mean of {len(KINDS)} kinds of noise"
    return Table(
        f"SI-SDR of held-out sounds by speech over noise, dB ({kinds})",
        ["recordings", "speech over noise", "noisy", "Wiener filter", "network", "improvement"],
        rows,
    )


def _by_kind(measured: Sequence[Measured]) -> Table:
    rows = []
    for name, wide in SETS.items():
        for kind in KINDS:
            some = [m for m in measured if m.wide == wide and m.kind == kind]
            rows.append([name, kind, *_cells(some)])
    return Table(
        "SI-SDR of held-out sounds by kind of noise, dB (mean of all ratios)",
        ["recordings", "noise", "noisy", "Wiener filter", "network", "improvement"],
        rows,
    )


def _cells(some: Sequence[Measured]) -> list[str]:
    return [f"{round(mean(some, what), 1) + 0.0:.1f}" for what in ("noisy", "classical", "cleaned", "better")]


def _streamed(streams: Streamed, certified: float) -> Table:
    row = [
        f"{streams.sounds}", f"{streams.samples / RATE:.0f}", f"{streams.chunks:,}", f"{certified:.1e}",
        f"{streams.error:.1e}",
    ]  # fmt: skip
    header = [
        "streams",
        "seconds",
        "chunks, of random sizes",
        "certified error",
        "apart from torch, of the peak",
    ]
    return Table("Streamed by the daemon", header, [row])


def _latency(streams: Streamed, parameters: int) -> Table:
    p50, p99 = np.percentile(streams.replies, [50, 99]) * 1e3
    rows = [
        ["latency that the model file states", f"{_ms(streams.stated):.1f} ms, {streams.stated} samples"],
        ["latency measured, sample by sample", f"{_ms(streams.latest):.1f} ms, {streams.latest} samples"],
        ["of it: the step, less one sample", f"{_ms(HOP - 1):.1f} ms"],
        ["of it: the overlap of the windows", f"{_ms(WINDOW - HOP):.1f} ms"],
        ["of it: the frame ahead", f"{_ms(AHEAD * HOP):.1f} ms"],
        ["live, from a hop's last sample to the daemon's reply, p50", f"{p50:.1f} ms"],
        ["the same, p99", f"{p99:.1f} ms"],
        [f"time to compute {_ms(HOP):g} ms, one thread", f"{streams.hop * 1e3:.2f} ms"],
        ["the same, as a part of real time", f"{streams.hop * RATE / HOP:.3f}"],
        ["parameters", f"{parameters:,}"],
    ]
    return Table("Latency and cost", ["", "value"], rows)


def _ms(samples: int) -> float:
    return 1e3 * samples / RATE
