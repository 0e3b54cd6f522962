"""Draw success and gradient by distance, with a line for each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .task import CHANCE

Lines = Mapping[str, Sequence[float]]  # by cell: a number for each distance
_COLOURS = {"RNN": "#c0392b", "LSTM": "#2a9d8f", "GRU": "#22313f", "peephole": "#e9a13b"}
# The first line is the widest, so that lines on top of each other stay visible.
_STYLES = {"RNN": (4.5, "-"), "LSTM": (3.5, "-"), "GRU": (2.2, "--"), "peephole": (1.2, "-")}
_SMALLEST = 1e-30  # smallest gradient that is drawn; smaller ones are practically zero


def draw(path: Path, distances: Sequence[int], panels: Sequence[tuple[str, Lines, bool]]) -> None:
    """Write a PNG with a panel for each (title, lines, whether the lines are norms of gradients)."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    for axes, (title, lines, norm) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for cell, values in lines.items():
            width, style = _STYLES[cell]
            drawn = [max(v, _SMALLEST) for v in values] if norm else values
            axes.plot(distances, drawn, style, marker="o", color=_COLOURS[cell], linewidth=width, label=cell)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xscale("log")
        axes.set_xticks(distances, [str(d) for d in distances])
        axes.minorticks_off()
        axes.set_xlabel("distractors between tag and cue")
        if norm:
            axes.set_yscale("log")
        else:
            axes.axhline(CHANCE, color="grey", linewidth=0.8, linestyle=":", label="chance")
            axes.set(ylim=(-0.03, 1.05), ylabel="recalled")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=100)
