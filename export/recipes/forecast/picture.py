"""Draw the forecasts beside the measurements, the alarms of one faulty stream, and the live run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runnel.spec import Array

from .faults import KINDS, SIZE, Fault, Watched
from .live import Seen
from .series import HORIZONS, Series

_INK, _CAME, _MADE, _NEAR, _ALARM = "#22313f", "#7f8c8d", "#2a9d8f", "#e9a03b", "#c0392b"
_SHOWN = (13, 52)  # weeks ahead


def draw(path: Path, series: Series, made: Array, watched: dict[str, Watched], seen: Seen) -> None:
    """Write a PNG. `made` (n, horizons), ppm. The first fault of each kind is shown."""
    figure = Figure(figsize=(13, 10), constrained_layout=True)
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic(
        [["top"] * len(KINDS), [*KINDS], ["live"] * len(KINDS)], height_ratios=[3, 2, 2]
    )
    _forecasts(panels["top"], series, made)
    planted = list(next(iter(watched.values())).alarms)
    for kind in KINDS:
        _alarms(panels[kind], series, watched, next(fault for fault in planted if fault.kind == kind))
    _live(panels["live"], seen)
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _forecasts(axes: Axes, series: Series, made: Array) -> None:
    test = slice(series.test, None)
    axes.plot(series.dates[test], series.values[test], color=_CAME, linewidth=3, label="measured")
    for horizon, colour in zip(_SHOWN, (_NEAR, _MADE), strict=True):
        weeks = np.arange(series.test, len(series.values))
        foretold = made[weeks - horizon, HORIZONS.index(horizon)]
        label = f"as foretold {horizon} weeks before"
        axes.plot(series.dates[test], foretold, color=colour, linewidth=1.1, label=label)
    axes.set_ylabel("CO2, ppm")
    title = "Mauna Loa, the test part: foretold by a stream that was given one week after the other"
    axes.set_title(title, loc="left", color=_INK)
    axes.legend(frameon=False, loc="upper left")


def _alarms(axes: Axes, series: Series, watched: dict[str, Watched], fault: Fault) -> None:
    """Draw the weeks around a fault: measurements, faulty values, and a line of alarms for each pipeline."""
    shown = slice(max(0, fault.at - 20), fault.at + 40)
    dates, values = series.dates[series.test :], series.values[series.test :]
    axes.plot(dates[shown], values[shown], color=_CAME, linewidth=3)
    axes.plot(dates[shown], fault.planted(values)[shown], color=_INK, linewidth=1.2)
    bottom = min(values[shown].min(), fault.planted(values)[shown].min()) - SIZE
    for row, (name, result) in enumerate(watched.items()):
        level = bottom - SIZE * row
        axes.axhline(level, color=_CAME, linewidth=0.4)
        alarms = result.alarms[fault][shown]
        axes.plot(dates[shown][alarms], np.full(alarms.sum(), level), "o", color=_ALARM, markersize=6)
        axes.text(dates[shown][0], level + 0.3, name, fontsize=8, color=_INK)
    axes.set_title(fault.kind, loc="left", fontsize=10, color=_INK)
    axes.tick_params(axis="x", rotation=25, labelsize=8)
    axes.set_ylabel("given, and alarms, ppm" if fault.kind == KINDS[0] else "")


def _live(axes: Axes, seen: Seen) -> None:
    since = seen.time - seen.time[0]
    axes.plot(since, seen.load[:, 0], color=_INK, linewidth=1.4, label="processor, %")
    axes.plot(since, seen.load[:, 1], color=_MADE, linewidth=1.4, label="memory, %")
    odd = seen.unusual[:, 0]
    axes.plot(since[odd], seen.load[odd, 0], "o", color=_ALARM, label="unusual")
    axes.axvspan(
        seen.begin - seen.time[0], seen.end - seen.time[0], color=_NEAR, alpha=0.25, linewidth=0,
        label="the burst",
    )  # fmt: skip
    axes.set(xlabel="seconds", ylabel="%", ylim=(-2, 125), yticks=range(0, 101, 20))
    axes.set_title("This machine, live", loc="left", color=_INK)
    axes.legend(frameon=False, loc="upper left", ncols=4)
