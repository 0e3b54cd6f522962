"""Draw the demo's result: waveform, probability of speech, segments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runnel.spec import Array

from .live import Segment

_INK, _SIGNAL, _SPEECH = "#22313f", "#7f8c8d", "#2a9d8f"
_COLUMNS = 3000  # points of the waveform's envelope: more than the picture has pixels


def draw(
    path: Path, samples: Array, rate: float, probability: Array, hop_seconds: float,
    segments: Sequence[Segment], threshold: float, title: str,
) -> None:  # fmt: skip
    """Write a PNG. `samples` (n,) at `rate` Hz; `probability` (steps,), one every `hop_seconds`."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(14, 6), sharex=True, height_ratios=[3, 2], constrained_layout=True
    )
    times, low, high = envelope(samples, rate)
    top.fill_between(times, low, high, color=_SIGNAL, linewidth=0)
    top.set_ylabel("amplitude")
    top.set_title(title, loc="left", color=_INK)
    bottom.step(
        np.arange(len(probability)) * hop_seconds, probability, where="post", color=_INK, linewidth=1.2
    )
    bottom.axhline(threshold, color=_INK, linewidth=0.8, linestyle=":", label=f"threshold {threshold:g}")
    bottom.set(ylabel="P(speech)", xlabel="seconds", ylim=(-0.02, 1.02), xlim=(0, len(samples) / rate))
    for i, segment in enumerate(segments):
        for axes in (top, bottom):
            label = "speech" if axes is bottom and i == 0 else ""
            axes.axvspan(segment.start, segment.end, color=_SPEECH, alpha=0.22, linewidth=0, label=label)
        top.text(
            (segment.start + segment.end) / 2, 0.97, f"{segment.start:.2f}–\n{segment.end:.2f} s",
            transform=top.get_xaxis_transform(), ha="center", va="top", fontsize=8, color=_INK, clip_on=True,
        )  # fmt: skip
    handles, labels = bottom.get_legend_handles_labels()
    top.legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def envelope(samples: Array, rate: float) -> tuple[Array, Array, Array]:
    """Return (times in s, lowest, highest) for at most 3000 columns of the waveform."""
    width = max(1, -(-len(samples) // _COLUMNS))
    padded = np.concatenate([samples, np.full(-len(samples) % width, samples[-1], samples.dtype)])
    columns = padded.reshape(-1, width)
    return np.arange(len(columns)) * width / rate, columns.min(1), columns.max(1)
