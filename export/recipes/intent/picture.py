"""Draw sentences, and the model's probability after each word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from runnel.spec import Array

_INK, _GOOD, _BAD = "#22313f", "#2a9d8f", "#c8553d"


def draw(path: Path, sentences: Sequence[Sequence[str]], answers: Sequence[Array]) -> None:
    """Write a PNG with a row for each sentence: P(positive) after each word, with the words below."""
    figure = Figure(figsize=(13, 2.3 * len(sentences)), layout="constrained")
    figure.suptitle("P(positive) after each word", x=0.01, ha="left", color=_INK)
    every = figure.subplots(len(sentences), 1, squeeze=False)[:, 0]
    longest = max(map(len, sentences))
    for axes, words, heard in zip(every, sentences, answers, strict=True):
        places = list(range(len(words)))
        axes.axhline(0.5, color=_INK, linewidth=0.8, linestyle=":")
        axes.plot(places, heard, color=_INK, linewidth=1.2)
        axes.fill_between(places, 0.5, heard, where=heard >= 0.5, interpolate=True, color=_GOOD, alpha=0.25)
        axes.fill_between(places, 0.5, heard, where=heard <= 0.5, interpolate=True, color=_BAD, alpha=0.25)
        axes.scatter(places, heard, s=26, c=[_GOOD if p > 0.5 else _BAD for p in heard], zorder=3)
        axes.set(xlim=(-0.5, longest - 0.5), ylim=(-0.04, 1.04), yticks=(0, 0.5, 1))
        axes.set_xticks(places, words, rotation=35, ha="right", rotation_mode="anchor", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
