"""Events of streams, and the listeners to them. A chunk that succeeds causes no notice."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

Event = Literal[
    "opened", "reset", "idle", "evicted", "failed", "closed", "died", "blown_up", "recovered"
]  # fmt: skip

MAX_NESTED: Final = 10_000  # notices caused by listeners in one delivery: more is an endless loop

_log = logging.getLogger("runnel.notices")


@dataclass(frozen=True, slots=True)
class Notice:
    """One event of one stream.

    - ``opened``: new or from a snapshot. `reason` is "new" or "restored".
    - ``reset``: back in its initial state.
    - ``failed``: a chunk was refused, or a stage failed on it; the stream is unchanged. `reason`: the error.
    - ``idle``: the stream was not used for the idle time and is about to be closed. ``closed`` follows.
    - ``evicted``: the stream must be closed although its client is connected. ``closed`` follows. `reason`:
      the cause.
    - ``died``, ``blown_up``: a state no longer responds to the input, or has grown beyond its bound, as
      defined in health.py. Chunks are still applied. `reason`: which state, and what was measured.
    - ``recovered``: the state is healthy again. `reason`: which problem ended. No ``recovered`` follows a
      reset or the end of the stream.
    - ``closed``: the stream and its state are gone. `reason`: "closed" by its owner, "ended" after a flush,
      "idle", …
    """

    event: Event
    stream: str  # the stream's id
    seq: int  # chunks applied before the event
    reason: str = ""


Listener = Callable[[Notice], None]
"""Called in the thread that runs the streams, which waits: be quick, and pass long work to a thread.

A listener is called when the engine is at rest, just before the call that caused the event returns or raises.
It may therefore open, feed, reset and close streams. Notices of these events are delivered after those that
are waiting already.
"""


class Notices:
    """The listeners, each called for every notice.

    An error of a listener is logged; it stays registered.
    """

    __slots__ = ("_delivering", "_listeners", "waiting")

    def __init__(self, listeners: Sequence[tuple[str, Listener]] = ()) -> None:
        self._listeners = tuple(listeners)  # (name for the log, listener)
        self.waiting: deque[Callable[[], None]] = deque()
        self._delivering = False

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def __call__(self, event: Event, stream: str, seq: int, reason: str = "") -> None:
        """Notify at once of an event outside the engine's calls."""
        self.queue(event, stream, seq, reason)
        self.deliver()

    def queue(self, event: Event, stream: str, seq: int, reason: str = "") -> None:
        """Queue a notice until the current call of the engine ends."""
        if self._listeners:
            self.waiting.append(partial(self._notify, Notice(event, stream, seq, reason)))

    def later(self, call: Callable[[], None]) -> None:
        """Queue a callback among the notices."""
        self.waiting.append(call)

    def deliver(self) -> None:
        """Deliver the queue in order. Within a delivery it does nothing: the outer delivery continues."""
        if self._delivering:
            return
        self._delivering = True
        try:
            left = len(self.waiting) + MAX_NESTED
            while self.waiting:
                if not left:
                    _log.error(
                        "listeners made more than %d notices by what they do themselves: %d are dropped",
                        MAX_NESTED, len(self.waiting),
                    )  # fmt: skip
                    self.waiting.clear()
                    break
                left -= 1
                self.waiting.popleft()()
        finally:
            self._delivering = False

    def _notify(self, notice: Notice) -> None:
        for name, listener in self._listeners:
            try:
                listener(notice)
            except Exception as error:  # a listener's failure must not stop the streams
                _log.error("notice %r failed on %s: %s: %s", name, notice.event, type(error).__name__, error)
