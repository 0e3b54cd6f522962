"""Run the six steps of the demo and print their results."""

from __future__ import annotations

import os
import queue
import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import soundfile

from runnel import Engine
from runnel.errors import RunnelError, UsageError
from runnel.spec import Array

from ..exporter import export
from . import picture, silero
from .daemon import daemon
from .files import clip
from .live import Heard, Microphones, Segment
from .oracle import probabilities, vendor_graph

_THRESHOLD = 0.5
_STATUS_EVERY = 2.0  # seconds
_AGREE = 1e-4  # largest difference of two probabilities: float32 rounding stays far below


def show(source: Path | None, out: Path, microphones: int, seconds: float, quiet: bool = False) -> int:
    """Run the demo. Return 0 if every step succeeded. `quiet`: print nothing.

    Raises errors of `runnel.errors`.
    """
    if quiet:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            return _show(source, out, microphones, seconds, "--log-level", "warning")
    return _show(source, out, microphones, seconds)


def _show(source: Path | None, out: Path, microphones: int, seconds: float, *flags: str) -> int:
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    samples, rate, title = _sound(source, seconds)

    _step(1, "Silero VAD: trained weights into a PyTorch module")
    module = silero.load()
    print(f"      {sum(p.numel() for p in module.parameters()):,} parameters")

    _step(2, "Export as a step model, with its certificate")
    model = out / "silero.onnx"
    certificate = export(
        module, silero.example(), model, framing=silero.FRAMING, rate=silero.RATE,
        output_names=["probability"], progress=lambda text: print(f"      {text}"),
    )  # fmt: skip
    print(f"      {certificate}".replace("\n", "\n      "))

    _step(3, "Hold it against the vendor's own ONNX graph")
    pipeline = _pipeline(out, model, rate)
    _compare(module, model, samples, rate)

    _step(4, "Start the daemon")
    with daemon(pipeline, *flags) as address:
        _step(5, f"{microphones} live microphones, {len(samples) / rate:.1f} s of {title}, in real time")
        # Each microphone starts at another point of the sound, so that mixed-up streams are noticed.
        sounds = [np.roll(samples, -i * len(samples) // microphones) for i in range(microphones)]
        live = Microphones(address, sounds, rate, _hop(rate), silero.RATE)
        with live.listening():
            _watch(live)
    for heard in live.heard:
        if heard.error is not None:
            raise heard.error
    p50, p99 = live.percentiles()
    print(f"      {live.steps} steps, latency p50 {p50:.2f} ms, p99 {p99:.2f} ms; daemon stopped cleanly")
    _compare_alone(pipeline, live)

    _step(6, "Draw what the first microphone heard")
    first = live.heard[0]
    path = out / "demo.png"
    picture.draw(
        path, samples, rate, np.concatenate(first.probability), silero.FRAMING.hop / silero.RATE,
        first.segments, _THRESHOLD, f"{title}: {len(first.segments)} segments of speech",
    )  # fmt: skip
    print(f"      {path}\n\nDone in {time.monotonic() - began:.0f} s. The model and its pipeline are yours:")
    runnel = "runnel" if shutil.which("runnel") else sys.argv[0]
    print(f"      {runnel} inspect {model}\n      {runnel} serve {pipeline} --bind ipc://runnel.sock")
    return 0


def _step(number: int, text: str) -> None:
    print(f"[{number}/6] {text}", flush=True)


def _sound(source: Path | None, seconds: float) -> tuple[Array, int, str]:
    """Return (samples (n,) float32, rate in Hz, name) of the user's file, or of the demo clip."""
    if source is None:
        samples, rate = clip()
        return samples[: int(seconds * rate)], rate, "the demo clip"
    try:
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UsageError(f"{source}: cannot read it as sound: {error}") from None
    if not len(samples):
        raise UsageError(f"{source}: there is no sound in it")
    if len(samples) > seconds * rate:
        print(f"{source}: listening to the first {seconds:g} of {len(samples) / rate:.0f} s (--seconds)")
    return samples[: int(seconds * rate)].mean(axis=1), rate, source.name


def _hop(rate: int) -> int:
    """Return the number of samples in a microphone's chunk: 32 ms."""
    return max(1, round(rate * silero.FRAMING.hop / silero.RATE))


def _pipeline(out: Path, model: Path, rate: int) -> Path:
    """Write a pipeline file: resampling if the sound needs it, the model, and segments of speech."""
    before = "" if rate == silero.RATE else (
        f"[input]\nrate = {rate}\n\n[[before]]\nuse = \"resample\"\nrate = {silero.RATE}\n\n"
    )  # fmt: skip
    path = out / "vad.toml"
    path.write_text(
        "# Written by `runnel demo`: speech activity from sound, on any number of streams.\n"
        f'{before}[model]\npath = "{model.name}"\n[model.inputs]\nframes = "samples"\n\n'
        f'[[after]]\nuse = "speech_segments"\nthreshold = {_THRESHOLD}\n'
    )
    return path


def _compare(module: silero.SileroVAD, model: Path, samples: Array, rate: int) -> None:
    """Compare our step model with the vendor's graph on the same sound."""
    if rate != silero.RATE:  # the vendor's graph takes 16 kHz only
        samples = clip()[0]
    with Engine.load(model) as engine, engine.open() as stream:
        ours = np.concatenate([stream.feed(samples), stream.flush()])[:, 0]
    same = float(np.abs(ours - probabilities(vendor_graph(module), samples)).max())
    shipped = float(np.abs(ours - probabilities(vendor_graph(), samples)).max())
    if not same <= _AGREE:
        raise RunnelError(
            f"the re-export differs from the vendor's graph by {same:g}; at most {_AGREE:g} is right"
        )
    print(f"      ok    {len(ours)} windows: the probabilities differ by at most {same:.1e}")
    print("      note: this is the vendor's graph holding the weights above. The wheel's ONNX files hold")
    print(f"      those of another training: other probabilities, by up to {shipped:.2f} on this sound")


def _compare_alone(pipeline: Path, live: Microphones) -> None:
    """Compare each microphone's replies from the daemon with its sound run alone in this process."""
    worst, differ = 0.0, []
    with Engine.load(pipeline, max_streams=1) as engine:
        for heard, samples in zip(live.heard, live.sounds, strict=True):
            alone = Heard(heard.name, silero.RATE)
            with engine.open() as stream:
                alone.take(stream.feed({"samples": samples}))
                alone.take(stream.flush())
            wanted, got = np.concatenate(alone.probability), np.concatenate(heard.probability)
            worst = max(worst, float(np.abs(wanted - got).max()))
            if alone.segments != heard.segments:
                differ.append(heard.name)
    if differ or not worst <= _AGREE:
        raise RunnelError(
            f"streams were mixed up: {', '.join(differ) or 'probabilities'} differ by {worst:g}"
        )
    print(f"      ok    each microphone equals its sound run alone: same segments, within {worst:.1e}")


def _watch(live: Microphones) -> None:
    """Print each segment when it is found, and a status line every few seconds, until all have ended."""
    began = reported = time.monotonic()
    playing = len(live.heard)
    while playing:
        try:
            found = live.found.get(timeout=0.1)
        except queue.Empty:
            pass
        else:
            if isinstance(found, Segment):
                print(
                    f"      {found.microphone:<7} speech {found.start:6.2f} – {found.end:6.2f} s", flush=True
                )
            else:
                playing -= 1
        now = time.monotonic()
        if now - reported >= _STATUS_EVERY:
            reported = now
            p50, p99 = live.percentiles()
            print(
                f"      {now - began:5.1f} s  {live.steps / (now - began):5.0f} steps/s  "
                f"p50 {p50:5.2f} ms  p99 {p99:5.2f} ms",
                flush=True,
            )
