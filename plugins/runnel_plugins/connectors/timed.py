"""Sources whose rows may say when they were taken: the times are checked before the rows are given on."""

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
"""A chunk, the times of its rows as they are written, and the last row's in seconds; none without a time."""


class Timed(Source):
    """A subclass sets `_row`, and gives its parts through `_checked`."""

    _row: Row

    @property
    def stamped(self) -> str | None:  # type: ignore[override]
        return self._row.time

    def _checked(self, parts: Iterator[Part]) -> Iterator[Chunk]:
        """The chunks of `parts`; of a file, once the first times were judged. UsageError as `RowClock`."""
        clock, waiting = self._row.clock, deque[Part]()
        for part in parts:
            waiting.append(part)
            while waiting and (clock is None or clock.settled):
                yield self._give(waiting.popleft())
        if clock is not None:
            clock.end()
            if told := clock.told():
                warn(told)
        while waiting:
            yield self._give(waiting.popleft())

    def _give(self, part: Part) -> Chunk:
        chunk, stamps, self.stamp = part
        if self._row.time is not None:
            self.stamps = np.array(stamps, np.float64)
        return chunk


class UnusedTime:
    """The notice that a table has a time column which nobody asked for.

    `column` is None if there is no such column, or if it is used. The notice comes once, when enough rows
    were taken to know their rate.
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
        """The next row's value in the column."""
        try:
            self._stamps.append(read_time(cell)[0])
        except ValueError:
            self._stamps.clear()
            self.end()
            return
        if len(self._stamps) == self._due:
            self.end()

    def end(self) -> None:
        """Give the notice, if it was not given."""
        if self.column is None:
            return
        taken = f", its rows are taken as {self._rate:g} Hz" if self._rate else ""
        warn(
            f"{self._where}: the column {self.column!r} is not used{taken}{self._found()}; with "
            f"?time={self.column} behind the name (in quotes) the times are checked and kept"
        )
        self.column = None

    def _found(self) -> str:
        """That the rows come at another rate, in whatever unit the times are."""
        found = pace(np.array(self._stamps)) if self._rate and len(self._stamps) > 1 else None
        if found is None or not self._rate:
            return ""
        if found.period <= 0 or any(found.fits(1 / self._rate / seconds) for seconds in SECONDS.values()):
            return ""
        return f", though by that column, in seconds, they come at {found.rate:.4g} Hz"
