"""Detect pauses of the process, for a loop that watches deadlines.

Rules of this file: pure; the times are arguments.

Theory: a process can be stopped, its container frozen, its machine moved. Its clock runs on, so that every
peer seems to have been silent, though its messages lie in the kernel, not yet read by libzmq. So the loop
says until when it is going to wait, and reports when it continues. Of the time between two such reports it
has waited a part, as it said, and the processor was at work for another part. The rest was a pause, wherever
in the turn it fell. A pause, and a moment after it for reading what has arrived, extends all deadlines.

A pause that ends before the wait does cannot be seen. So the loop wakes `SHORTLY` before each deadline, which
leaves time to read what had arrived by then.
"""

from __future__ import annotations

import math
from typing import Final

LATE: Final = 0.5  # seconds: longer than a busy machine delays a thread that is ready
SHORTLY: Final = 1.0  # seconds before a deadline, and after a pause: for libzmq to read what the kernel holds


class PauseDetector:
    """The pauses of one loop. `now`: a monotonic clock; `ran`: the thread's processor time; seconds."""

    def __init__(self, now: float, ran: float = 0.0) -> None:
        self._woke = self._asked = self._planned = now
        self._ran = ran

    def wake_at(self, due: float | None, now: float) -> float | None:
        """When to wake next, for a deadline at `due`; None if there is no deadline."""
        self._asked = now
        if due is None:
            self._planned = math.inf
            return None
        before = due - SHORTLY
        self._planned = max(now, before if now < before else due)
        return self._planned

    def paused_for(self, now: float, ran: float) -> float:
        """Return the seconds by which to extend all deadlines, 0.0 without a pause."""
        waited = max(0.0, min(now, self._planned) - self._asked)
        woke, self._woke = self._woke, now
        worked, self._ran = ran - self._ran, ran
        self._asked = self._planned = now
        return now - woke + SHORTLY if now - woke - waited - worked > LATE else 0.0


def extended(deadline: float, now: float) -> float:
    """Return a later deadline if the process was paused past the given one, else the same."""
    return now + SHORTLY if now - deadline > LATE else deadline
