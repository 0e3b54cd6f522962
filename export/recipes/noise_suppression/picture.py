"""Spectrograms of a noisy, a cleaned and a clean sound, and by how much the network is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runnel.spec import Array

from .measuring import KINDS, RATIOS, SETS, Measured, mean
from .network import RATE

_INK, _NETWORK, _OTHER = "#22313f", "#2a9d8f", "#b9c2c9"
_RANGE = 70.0  # dB below the loudest value that are shown
_SIZE, _STEP = 512, 128  # samples of a spectrogram's windows


@dataclass(frozen=True)
class Shown:
    """Three sounds of one mixture, (samples,), and what to call it."""

    title: str
    noisy: Array
    cleaned: Array
    clean: Array


def draw(path: Path, shown: Shown, measured: Sequence[Measured]) -> None:
    """Write a PNG."""
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=[3, 2], squeeze=True)  # type: ignore[misc]
    above.suptitle(shown.title, x=0.01, ha="left", color=_INK, fontsize=12)
    columns = above.subplots(1, 3, sharex=True, sharey=True)
    sounds = {"noisy": shown.noisy, "cleaned, by a stream": shown.cleaned, "clean": shown.clean}
    top = max(_decibels(sound).max() for sound in sounds.values())
    for axes, (name, sound) in zip(columns, sounds.items(), strict=True):
        image = axes.imshow(
            _decibels(sound) - top, origin="lower", aspect="auto", cmap="magma", vmin=-_RANGE, vmax=0,
            extent=(0, len(sound) / RATE, 0, RATE / 2e3),
        )  # fmt: skip
        axes.set_title(name, loc="left", fontsize=10, color=_INK)
        axes.set_xlabel("seconds")
    columns[0].set_ylabel("kHz")
    above.colorbar(image, ax=columns, label="dB", pad=0.01, aspect=30)
    below.suptitle("Improvement of SI-SDR on held-out sounds", x=0.01, ha="left", color=_INK, fontsize=12)
    by_ratio, by_kind = below.subplots(1, 2, sharey=True)
    _bars(by_ratio, {f"{r:g} dB": [m for m in measured if m.ratio == r] for r in RATIOS}, "speech over noise")
    _bars(by_kind, {kind: [m for m in measured if m.kind == kind] for kind in KINDS}, "kind of noise")
    by_ratio.set_ylabel("dB")
    handles, labels = by_kind.get_legend_handles_labels()
    below.legend(handles, labels, frameon=False, loc="outside upper right", ncols=len(labels))
    figure.savefig(path, dpi=100)


def _bars(axes: Axes, groups: Mapping[str, Sequence[Measured]], label: str) -> None:
    """Two bars a group, one for each set of recordings; the classical filter is a line across each."""
    places, width = np.arange(len(groups)), 0.38
    for offset, colour, (name, wide) in zip((-0.5, 0.5), (_NETWORK, _OTHER), SETS.items(), strict=True):
        rows = [[m for m in group if m.wide == wide] for group in groups.values()]
        at = places + offset * width
        axes.bar(at, [mean(r, "better") for r in rows], 0.92 * width, color=colour, label=name)
        classical = [mean(r, "classical") - mean(r, "noisy") for r in rows]
        lines = axes.hlines(classical, at - 0.46 * width, at + 0.46 * width, color=_INK, linewidth=1.6)
    lines.set_label("Wiener filter that knows the noise's spectrum")
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.set_xticks(places, list(groups))
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def _decibels(sound: Array) -> Array:
    frames = np.lib.stride_tricks.sliding_window_view(sound, _SIZE)[::_STEP] * np.hanning(_SIZE)
    power: Array = 20 * np.log10(np.abs(np.fft.rfft(frames)).T + 1e-6)
    return power
