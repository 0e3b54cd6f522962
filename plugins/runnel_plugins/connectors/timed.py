"""Sources with times: the times are checked before the rows are passed on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from runnel import Signal, Source
from runnel.columns import is_time_name, time_of
from runnel.files import warn
from runnel.stage import Chunk
from runnel.times import FIRST, SECONDS, WINDOW, pace
from runnel_plugins.connectors.cells import Row, read_time

Part = tuple[Chunk, Sequence[float], float | None]
"""A chunk, the times of its rows as written, and the last row's time in seconds; none without times."""


class Timed(Source):
    """A source with times: a subclass sets `_row`, and passes its parts through `_checked`."""

    _row: Row

    @property
    def stamped(self) -> str | None:  # type: ignore[override]
        return self._row.time

    def _checked(self, parts: Iterator[Part]) -> Iterator[Chunk]:
        """Yield the chunks; a file's only after its first times are checked. UsageError as `RowClock`."""
        clock, waiting = self._row.clock, deque[Part]()
        for part in parts:
            waiting.append(part)
            while waiting and (clock is None or clock.ready):
                yield self._give(waiting.popleft())
        if clock is not None:
            clock.end()
            if warning := clock.warning():
                warn(warning)
        while waiting:
            yield self._give(waiting.popleft())

    def _give(self, part: Part) -> Chunk:
        chunk, stamps, self.stamp = part
        if self._row.time is not None:
            self.stamps = np.array(stamps, np.float64)
        return chunk


class UnusedTime:
    """The warning about a time column that is not used.

    `column` is None if there is no such column, or if it is used. The warning comes once, after enough rows
    to know their rate.
    """

    def __init__(
        self, where: str, header: Sequence[str], used: Sequence[str], signal: Signal, live: bool
    ) -> None:
        self.column = None
        if time_of(signal) is None:
            self.column = next((n for n in header if is_time_name(n) and n not in used), None)
        self._where, self._rate = where, signal.rate
        self._stamps: list[float] = []
        self._due = FIRST if live else WINDOW

    def take(self, cell: object) -> None:
        """Add the next row's value in the column."""
        try:
            self._stamps.append(read_time(cell)[0])
        except ValueError:
            self._stamps.clear()
            self.end()
            return
        if len(self._stamps) == self._due:
            self.end()

    def end(self) -> None:
        """Issue the warning, if it has not been issued."""
        if self.column is None:
            return
        taken = f", its rows are taken as {self._rate:g} Hz" if self._rate else ""
        warn(
            f"{self._where}: the column {self.column!r} is not used{taken}{self._found()}; with "
            f"?time={self.column} behind the name (in quotes) the times are checked and kept"
        )
        self.column = None

    def _found(self) -> str:
        """Return a note if the rows come at another rate in every unit."""
        found = pace(np.array(self._stamps)) if self._rate and len(self._stamps) > 1 else None
        if found is None or not self._rate:
            return ""
        if found.period <= 0 or any(found.fits(1 / self._rate / seconds) for seconds in SECONDS.values()):
            return ""
        return f", though by that column, in seconds, they come at {found.rate:.4g} Hz"
