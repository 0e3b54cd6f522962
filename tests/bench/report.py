"""What a benchmark is, what came of it, and the page that says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .measure import Loop, Spread

if TYPE_CHECKING:
    from .kit import Kit


class SkipRow(Exception):  # noqa: N818 - not an error: the row cannot be measured here
    """The reason why a row is not measured on this machine."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A row's figure, in its unit, and what stands beside it."""

    figure: Spread
    beside: Sequence[tuple[str, str]] = ()  # (what, figure with its unit)
    profile: Loop | None = None  # what to look into where the bar is missed
    hot: Sequence[str] = ()  # the same, looked into already: what is measured may be gone afterwards


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    how: str  # a sentence or two: what is timed on either side
    run: Callable[[Kit], Measured]
    bar: float | None = None  # at most; None: only to inform
    unit: str = ""  # none for a ratio
    digits: int = 3  # decimals of the figure
    least: bool = False  # the bar is at least: more is better


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row's result, or why there is none."""

    row: Row
    measured: Measured | None = None
    skipped: str = ""
    failed: str = ""
    hot: Sequence[str] = field(default=())  # where the time goes, for a bar that was missed

    @property
    def missed(self) -> bool:
        if self.measured is None or self.row.bar is None:
            return False
        median = self.measured.figure.median
        return median < self.row.bar if self.row.least else median > self.row.bar

    @property
    def verdict(self) -> str:
        if self.failed:
            return "**failed**"
        if self.skipped:
            return "skipped"
        if self.row.bar is None:
            return ""
        return "**no**" if self.missed else "yes"

    @property
    def figure(self) -> str:
        """The figure and its quartiles; nothing for a row without one."""
        if self.measured is None:
            return ""
        row, spread = self.row, self.measured.figure
        median, low, high = (f"{v:.{row.digits}f}" for v in (spread.median, spread.low, spread.high))
        return f"{median}{' ' * bool(row.unit)}{row.unit} ({low}–{high})"

    @property
    def bar(self) -> str:
        if self.row.bar is None:
            return ""
        sign = "≥" if self.row.least else "≤"
        return f"{sign} {self.row.bar:g}{' ' * bool(self.row.unit)}{self.row.unit}"


def micros(spread: Spread) -> str:
    """Seconds as microseconds with quartiles."""
    return f"{_sig(spread.median * 1e6)} µs ({_sig(spread.low * 1e6)}–{_sig(spread.high * 1e6)})"


def _sig(value: float) -> str:
    """Three significant digits, no exponent."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(digits, 0)}f}"


def page(machine: Sequence[tuple[str, str]], outcomes: Sequence[Outcome]) -> str:
    """The whole of RESULTS.md."""
    lines = [
        "# Benchmark results",
        "",
        "Written by `make bench`; not edited by hand. How it is measured: [README.md](README.md).",
        "",
        *(f"- {what}: {value}" for what, value in machine),
        "",
        "A figure is the median over the rounds of one run, with the quartiles in brackets.",
        "",
        "| what | bar | measured | met |",
        "|---|---|---|---|",
        *map(_line, outcomes),
        "",
        "## Absolute figures and how each is measured",
    ]
    for outcome in outcomes:
        lines += ["", f"**{outcome.row.what}** (`{outcome.row.name}`). {outcome.row.how}"]
        if outcome.measured and outcome.measured.beside:
            lines += ["", *(f"- {what}: {figure}" for what, figure in outcome.measured.beside)]
        if outcome.skipped:
            lines += ["", f"Skipped: {outcome.skipped}"]
        if outcome.failed:
            lines += ["", f"Failed: {outcome.failed}"]
    missed = [o for o in outcomes if o.missed]
    if missed:
        lines += [
            "",
            "## Where the time goes",
            "",
            "For each bar that was missed: the functions with the most time of their own under cProfile, "
            "which makes small Python functions look dearer than they are.",
        ]
        for outcome in missed:
            lines += ["", f"**{outcome.row.what}**", "", *(outcome.hot or ["- no profile for this row"])]
    return "\n".join(lines) + "\n"


def _line(outcome: Outcome) -> str:
    return f"| {outcome.row.what} | {outcome.bar} | {outcome.figure} | {outcome.verdict} |"
