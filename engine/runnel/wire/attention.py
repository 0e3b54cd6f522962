"""Whether a loop that watches deadlines ran all the while.

Rules of this file: pure; the times are arguments.

Theory: a process can be stopped, its container frozen, its machine moved. Its clock goes on meanwhile, so
everybody looks silent afterwards, though what they sent lies in the kernel and libzmq has not read it yet. So
a loop says how long it is going to wait, and when it looks again: what lies between and was neither
waited for nor worked is a pause. Nobody's silence counts during a pause, and a moment longer, in which what
has arrived can be read.

A pause that ends before the wait does cannot be seen. So the loop does not wait until a deadline at once: it
looks once more `SHORTLY` before it. What had arrived by then is read in the time that is left.
"""

from __future__ import annotations

import math
from typing import Final

LATE: Final = 0.5  # seconds: longer than a busy machine lets a thread wait that has something to do
SHORTLY: Final = 1.0  # seconds before a deadline, and after a pause: for libzmq to read what the kernel holds


class Attention:
    """Of one loop. `now`: a monotonic clock; `ran`: the processor time of the loop's thread; seconds."""

    def __init__(self, now: float, ran: float = 0.0) -> None:
        self._looked = self._asked = now
        self._ran = ran

    def until(self, due: float | None, now: float) -> float | None:
        """When to look next, so as to do at `due` what is due then; None: not before something arrives."""
        if due is None:
            self._asked = math.inf
            return None
        before = due - SHORTLY
        self._asked = max(now, before if now < before else due)
        return self._asked

    def look(self, now: float, ran: float) -> float:
        """Look again; returns by how many seconds all deadlines are to be put off, 0.0 without a pause."""
        looked, self._looked = self._looked, now
        worked, self._ran = ran - self._ran, ran
        asked, self._asked = self._asked, now
        return now - looked + SHORTLY if now - asked - worked > LATE else 0.0


def overslept(deadline: float, now: float) -> float:
    """The deadline of a wait that is over, once more: later if the process was paused beyond it."""
    return now + SHORTLY if now - deadline > LATE else deadline
