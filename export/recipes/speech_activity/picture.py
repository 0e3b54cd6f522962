"""Draw one recording with the vendor's segments and ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from runnel.spec import Array
from runnel_export.demo import silero
from runnel_export.demo.picture import envelope

from .vendor import Found

_INK, _SIGNAL, _OURS, _THEIRS = "#22313f", "#7f8c8d", "#2a9d8f", "#c8883d"
_THRESHOLD = 0.5


def draw(path: Path, title: str, samples: Array, ours: Found, theirs: Found) -> None:
    """Write a PNG with the waveform of `samples` (n,) at 16 kHz, both results, and P(speech)."""
    figure = Figure(figsize=(14, 6.5), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[4, 1.3, 3])
    times, low, high = envelope(samples, silero.RATE)
    top.fill_between(times, low, high, color=_SIGNAL, linewidth=0)
    top.set_ylabel("amplitude")
    top.set_title(title, loc="left", color=_INK)
    for lane, found, colour in ((1, ours, _OURS), (0, theirs, _THEIRS)):
        spans = [(start / silero.RATE, (end - start) / silero.RATE) for start, end in found.segments]
        middle.broken_barh(spans, (lane - 0.35, 0.7), color=colour)
    middle.set(ylim=(-0.6, 1.6), yticks=(0, 1), yticklabels=("vendor", "streamed"))
    hop = silero.FRAMING.hop / silero.RATE
    starts = np.arange(len(ours.probability)) * hop
    bottom.step(
        starts, theirs.probability, where="post", color=_THEIRS, linewidth=3, alpha=0.5, label="vendor"
    )
    bottom.step(starts, ours.probability, where="post", color=_OURS, linewidth=1)
    bottom.axhline(_THRESHOLD, color=_INK, linewidth=0.8, linestyle=":")
    bottom.set(ylabel="P(speech)", xlabel="seconds", ylim=(-0.02, 1.02), xlim=(0, len(samples) / silero.RATE))
    for axes in (top, middle, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
