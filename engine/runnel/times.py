"""Check the times of a table's rows against the pipeline's rate.

For authors of sources. A model learns at one rate. Rows at another rate give plausible but wrong numbers,
like sound at a wrong rate.

The period is the mean step between rows. It is estimated twice: over all steps, and without the gaps, which
are steps longer than GAP times the median step. The rate fits if either estimate fits. Time stamps are
rounded, and rows come a little early or late; an estimate over n steps is off by at most 1/n of that. So the
tolerance is

    period * (TOLERANCE + END / n) + (longest step - shortest step, without the gaps) / n

which accepts jitter and stamps in whole milliseconds or seconds, and distinguishes 25 Hz from 100 Hz by two
rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from .errors import UsageError
from .spec import Array

Unit = Literal["s", "ms", "us", "ns"]
SECONDS: Final[dict[Unit, float]] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}

TOLERANCE: Final = 0.02  # of the period: the error of a microcontroller's RC oscillator
END: Final = 0.5  # of a period: the times of the first and last row are rounded too
GAP: Final = 2.5  # median steps: at least two rows are missing
WINDOW: Final = 1024  # rows that are judged together: seconds of most sensors, and 8 KiB
FIRST: Final = 32  # rows of a live source before the first check: few, because they are used at once
STILL: Final = 1.0  # seconds: time stamps are rarely rounded to more than whole seconds


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of rows, in seconds. `period`: without gaps, `mean`: with gaps."""

    period: float
    mean: float
    spread: float  # the longest step minus the shortest, without the gaps
    steps: int  # the number of steps in `period`
    gaps: int
    longest: float  # the longest gap; 0 if there are none

    @property
    def rate(self) -> float:
        return 1 / self.period

    def fits(self, period: float) -> bool:
        """Whether rows with this period can have these times."""
        allowed = period * (TOLERANCE + END / self.steps) + self.spread / self.steps
        return min(abs(self.period - period), abs(self.mean - period)) <= allowed


def pace(stamps: Array) -> Pace | None:
    """Return the pace of ascending times in seconds; None if no time passes."""
    steps = np.diff(stamps)
    moving = steps[steps > 0]
    if not len(moving):
        return None
    far = steps > GAP * np.median(moving)
    near, gaps = steps[~far], steps[far]
    mean = float(steps.mean())
    return Pace(
        float(near.mean()) or mean, mean, float(np.ptp(near)), len(near), len(gaps),
        float(gaps.max(initial=0.0)),
    )  # fmt: skip


class RowClock:
    """The times of one run's rows, in the order of the rows.

    `name` and `column` name the input and its time column in errors. `rate`: the pipeline's, in Hz; if None,
    only the order is checked. `live`: rows are used at once, so the first check comes early.
    """

    def __init__(self, name: str, column: str, rate: float | None, live: bool, unit: Unit = "s") -> None:
        self._name, self._column, self._unit = name, column, unit
        self._rate = rate
        self._window: list[float] = []
        self._due = FIRST if live else WINDOW
        self._gaps, self._longest = 0, 0.0
        self._live, self._judged = live, False

    @property
    def ready(self) -> bool:
        """Whether the rows so far may be used."""
        return self._live or self._judged

    def follow(self, seconds: float) -> None:
        """Add the next row's time.

        Raises ValueError if time runs backwards, UsageError at a wrong rate.
        """
        if self._window and seconds < self._window[-1]:
            raise ValueError(
                f"time runs backwards, from {self._window[-1]!r} to {seconds!r} s: sort the rows, or give "
                "each recording a run of its own"
            )
        self._window.append(seconds)
        if len(self._window) >= self._due:
            self._judge()
            self._due = min(2 * self._due, WINDOW)
            if len(self._window) >= WINDOW:
                self._close()

    def end(self) -> None:
        """End after the last row. Raises UsageError as `follow` does."""
        if not self._judged or len(self._window) >= FIRST:
            self._judge()
        self._close()

    def warning(self) -> str:
        """Return a warning about the gaps; "" if there are none."""
        if not self._gaps or self._rate is None:
            return ""
        return (
            f"{self._name}: column {self._column!r} has gaps, {self._gaps} in all, the longest of "
            f"{self._longest:g} s: the rows around a gap were taken as neighbours; a tick stage would fill it"
        )

    def _judge(self) -> None:
        rows = len(self._window)
        found = pace(np.array(self._window))
        self._judged = True
        if found is None:
            expected = rows / self._rate if self._rate else (rows >= WINDOW) * 2 * STILL
            if rows > 1 and expected > STILL:
                raise UsageError(
                    f"{self._name}: column {self._column!r} stands still: {rows} rows at "
                    f"{self._window[0]!r} s; is it the time of a row?"
                )
            return
        if self._rate is not None and not found.fits(1 / self._rate):
            raise UsageError(wrong_rate(self._name, self._column, found, self._rate, self._unit))

    def _close(self) -> None:
        """Start the next window at the last row."""
        found = pace(np.array(self._window)) if len(self._window) > 1 else None
        if found is not None:
            self._gaps += found.gaps
            self._longest = max(self._longest, found.longest)
        self._window = self._window[-1:]


def wrong_rate(name: str, column: str, found: Pace, rate: float, unit: Unit) -> str:
    """Return the error text for rows at another rate than the pipeline's, with the remedies."""
    period, seconds = 1 / rate, SECONDS[unit]
    other = next((u for u in SECONDS if u != unit and found.fits(period * seconds / SECONDS[u])), None)
    asked = f"?time={column}"
    mistaken = f" (read in {other} the rate would fit: say {asked}&unit={other})" if other else ""
    return (
        f"{name}: by its column {column!r} the rows come at {found.rate:.4g} Hz, but the pipeline takes "
        f"{rate:g} Hz{mistaken}. Let a pipeline file convert them: rate = {found.rate:.4g} under [input] "
        f'and, under [[before]], use = "resample", rate = {rate:g}; or, for rows at irregular times, '
        f'use = "tick", rate = {rate:g} with a float64 input time under [input.tensors]. If the model '
        f"is meant to take these rows as they are: {asked}&rate=any"
    )
