"""A live plot of the last seconds in the terminal, by plotext.

Each column has its own panel. If there are more points than dots, each position on the time axis shows the
least and the greatest of its points, so that a peak is never missed. The picture is redrawn at most ten times
per second.
"""

from __future__ import annotations

import math
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

import numpy as np

from runnel import Signal, Sink, hookimpl
from runnel.columns import columns_of, flat
from runnel.errors import UsageError, nearest
from runnel.files import library
from runnel.hookspecs import SinkFactory
from runnel.shown import bare, visible
from runnel.spec import Array
from runnel.stage import Chunk

MAX_PANELS: Final = 8  # per screen; a panel has at least four lines of picture
MAX_POINTS: Final = 2**20  # stored for each column
_ROWS: Final = 500  # stored if the output has no rate
_REDRAW: Final = 0.1  # seconds between two pictures: faster is not visible
_LEAST_HEIGHT, _PLAIN_HEIGHT = 8, 12  # lines of a panel: at least, and if the output is not a terminal
_HOME, _CLEAR, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[2J", "\x1b[K", "\x1b[J"
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


class Plot(Sink):
    """Draw the output in the terminal as it comes; if it is not a terminal, one picture at the end.

    `seconds`: how much of the past is shown; an output without a rate is shown by its last 500 rows.
    `columns`: the columns; default: as many of the first as fit.
    """

    def __init__(self, signal: Signal, seconds: float = 30.0, columns: list[str] | None = None) -> None:
        self._plotext = library("plotext", "plot: pictures in the terminal", "terminal")
        if not hasattr(self._plotext, "figure"):
            raise UsageError("plot: it needs plotext 6 or later: pip install -U 'runnel[terminal]'")
        known = columns_of(signal)
        for name in columns or ():
            if name not in known:
                raise UsageError(f"plot: no column {name!r}{nearest(name, known)}")
        if columns is not None and not 1 <= len(columns) <= MAX_PANELS:
            raise UsageError(f"plot: {len(columns)} columns; 1 to {MAX_PANELS} are possible")
        if not 0 < seconds < math.inf:
            raise UsageError(f"plot: seconds must be above 0, not {seconds:g}")
        self._signal = signal
        self._names = columns if columns is not None else known
        self._indices = [known.index(name) for name in self._names][:MAX_PANELS]
        self._keep = max(2, min(MAX_POINTS, math.ceil(seconds * signal.rate) if signal.rate else _ROWS))
        self._parts: deque[Array] = deque()
        self._kept = self._rows = 0
        self._out: TextIO = bare(sys.stdout)  # unguarded, because it moves the cursor
        self._live = self._out.isatty()
        self._drawn = -math.inf
        self._clock: Callable[[], float] = time.monotonic

    def write(self, chunk: Chunk) -> None:
        columns = [flat(t, chunk[t.name]).astype(np.float64) for t in self._signal.tensors]
        rows = np.concatenate(columns, axis=1)[:, self._indices]
        self._rows += len(rows)
        if not len(rows):
            return
        self._parts.append(rows[-self._keep :])
        self._kept += len(self._parts[-1])
        while self._kept - len(self._parts[0]) >= self._keep:
            self._kept -= len(self._parts.popleft())
        now = self._clock()
        if self._live and now - self._drawn >= _REDRAW:
            self._show(first=self._drawn == -math.inf)
            self._drawn = now

    def close(self, whole: bool) -> None:
        if not self._rows or not (whole or self._live):
            return
        if self._live:
            self._show(first=self._drawn == -math.inf)
        else:
            height = _PLAIN_HEIGHT * min(len(self._indices), MAX_PANELS)
            self._out.write("\n".join(map(visible, self.picture(80, height))) + "\n")
        self._out.flush()

    def _show(self, first: bool) -> None:
        size = shutil.get_terminal_size()
        lines = self.picture(size.columns, size.lines - 1)  # the last line is for the progress
        body = "".join(visible(line) + _REST_OF_LINE + "\n" for line in lines)
        self._out.write((_CLEAR if first else "") + _HOME + body + _REST)
        self._out.flush()

    def picture(self, width: int, height: int) -> list[str]:
        """Return the panels below each other, in `width` columns and at most `height` lines."""
        panels = max(1, min(len(self._indices), height // _LEAST_HEIGHT))
        hidden = len(self._names) - panels
        height -= bool(hidden)
        # The panels before the last are one line shorter: only the last one shows the seconds.
        each = max(4, height // panels)
        kept = np.concatenate(list(self._parts))[-self._keep :]
        lines: list[str] = []
        for i in range(panels):
            lines += self._panel(self._names[i], kept[:, i], width, each)
        if hidden:
            more = ", ".join(self._names[panels:])
            lines.append(f"and {hidden} more, not shown: {more}"[:width])
        return lines

    def _panel(self, name: str, values: Array, width: int, height: int) -> list[str]:
        first = self._rows - len(values)
        rate = self._signal.rate
        at, shown = envelope(values, 2 * width)
        times = (at + first) / rate if rate else at + first
        figure: Any = self._plotext.figure
        figure.clear()
        figure.plot_size(width, height)
        figure.theme("colorless")
        figure.title(f"{name}  {values[-1]:.4g}" + ("  (s)" if rate else "  (rows)"))
        line = figure.signal(times.tolist(), shown.tolist(), marker="braille")
        line.lines()
        figure.draw(line)
        return _COLOUR.sub("", figure.build().string()).rstrip("\n").split("\n")


def envelope(values: Array, bins: int) -> tuple[Array, Array]:
    """Return (index, value) of the finite points of a column; if many, the extremes of each bin."""
    index = np.flatnonzero(np.isfinite(values))
    if len(index) <= 2 * bins:
        return index.astype(np.float64), values[index]
    at, shown = [], []
    for part in np.array_split(index, bins):
        ends = sorted({int(part[np.argmin(values[part])]), int(part[np.argmax(values[part])])})
        at += ends
        shown += [float(values[i]) for i in ends]
    return np.array(at, np.float64), np.array(shown)


@hookimpl
def runnel_sinks() -> Mapping[str, SinkFactory]:
    return {"plot": Plot}
