"""Progress of a long run: one rewritten line on a terminal, else occasional lines."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import TextIO

from ..shown import bare

_EVERY_TTY = 0.1  # seconds between two updates: faster would not be seen
_EVERY_LOG = 5.0  # for a file or a pipe: often enough to show that it goes on
_BAR = 30  # characters


def counted(number: int, what: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {what}" + "s" * (number != 1)


class Progress:
    """Count time steps and show them. `total` and `rate` (Hz) add a bar and the speed in real times.

    `share`: how much of the input was read, 0 to 1, or None; for a bar if `total` is unknown.

    `crowded`: the output itself is written to this terminal, line by line: only the last line is shown.
    """

    def __init__(
        self,
        total: int | None,
        rate: float | None,
        quiet: bool = False,
        crowded: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        share: Callable[[], float | None] | None = None,
    ) -> None:
        self.total, self.rate, self.quiet = total, rate, quiet
        self.stream = stream or sys.stderr
        self.clock = clock
        self._share = share
        self.steps = 0
        self._tty = self.stream.isatty()
        self._crowded = crowded and self._tty
        self._began = self._shown = clock()

    def begin(self, text: str) -> None:
        """Show a text on a terminal until the first time step."""
        if self._tty and not self.quiet:
            self._show(text, "\n" if self._crowded else "")

    def add(self, steps: int) -> None:
        self.steps += steps
        now = self.clock()
        if self.quiet or self._crowded or now - self._shown < (_EVERY_TTY if self._tty else _EVERY_LOG):
            return
        self._shown = now
        self._show(self._bar() + self.summary() + self._left(), "" if self._tty else "\n")

    def close(self, text: str = "") -> None:
        """Show the last line: `text`, or nothing if the run was interrupted."""
        if not self.quiet and (text or (self._tty and not self._crowded)):
            self._show(text, "\n" if text else "")

    def summary(self) -> str:
        """``16000 time steps, 0.21 s, 76190 steps/s, 4.8 × real time``."""
        elapsed = max(self.clock() - self._began, 1e-9)
        speed = self.steps / elapsed
        per_second = f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}"
        parts = [counted(self.steps, "time step"), f"{elapsed:.2f} s", f"{per_second} steps/s"]
        if self.rate:
            parts.append(f"{self.steps / self.rate / elapsed:.1f} × real time")
        return ", ".join(parts)

    def _bar(self) -> str:
        share = self._done()
        if share is None:
            return ""
        full = int(share * _BAR)
        return f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}  "

    def _done(self) -> float | None:
        """The completed share, 0 to 1. An input that ends before `total` is complete when it was read."""
        shares = [self._share and self._share(), self.steps / self.total if self.total else None]
        known = [min(1.0, share) for share in shares if share is not None]
        return max(known, default=None)

    def _left(self) -> str:
        """``, 2 m 05 s left``, at the speed so far."""
        share = self._done()
        if not share or share == 1.0:
            return ""
        seconds = math.ceil((self.clock() - self._began) * (1 - share) / share)
        hours, minutes = divmod(seconds // 60, 60)
        if hours:
            return f", {hours} h {minutes:02} m left"
        return f", {minutes} m {seconds % 60:02} s left" if minutes else f", {seconds} s left"

    def _show(self, text: str, end: str) -> None:
        # on a terminal: return to the line's start, and clear the line
        if self._tty:
            bare(self.stream).write("\r\x1b[K")
        self.stream.write(text + end)
        self.stream.flush()
