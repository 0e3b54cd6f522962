"""What happens to streams, told to those who asked: one notice an event, none for a chunk that went well."""

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

MAX_NESTED: Final = (
    10_000  # notices of what listeners do themselves, in one delivery: more is an endless loop
)

_log = logging.getLogger("runnel.notices")


@dataclass(frozen=True, slots=True)
class Notice:
    """One event of one stream.

    - ``opened``: made, new or from a snapshot; `reason` is "new" or "restored";
    - ``reset``: back in its initial state;
    - ``failed``: a chunk was refused, or a stage failed on it; the stream is as before. `reason`: the error;
    - ``idle``: nothing was asked of it for so long that it is about to be closed; then comes ``closed``;
    - ``evicted``: it must make way though its client is there; then comes ``closed``. `reason`: for what;
    - ``died``, ``blown_up``: a state of it no longer answers what goes in, or is beyond all bounds, as
      health.py defines it; its chunks go on being applied. `reason`: which state, and what was seen;
    - ``recovered``: that is over. `reason`: which it was. A reset, or the stream's end, tells itself only;
    - ``closed``: gone, with its state. `reason`: "closed" by its owner, "ended" after a flush, "idle", …
    """

    event: Event
    stream: str  # its id
    seq: int  # chunks applied to it by then
    reason: str = ""


Listener = Callable[[Notice], None]
"""Called in the thread that runs the streams, which waits for it: be quick, hand long work to a thread.

It is called when the engine is at rest, just before the call in which the event came returns or raises. So it
may open, feed, reset and close streams; notices of that follow after those that wait already.
"""


class Notices:
    """The listeners, each called for every notice. A listener that raises is logged, and called again."""

    __slots__ = ("_delivering", "_listeners", "waiting")

    def __init__(self, listeners: Sequence[tuple[str, Listener]] = ()) -> None:
        self._listeners = tuple(listeners)  # (its name, for the log; itself)
        self.waiting: deque[Callable[[], None]] = deque()
        self._delivering = False

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def __call__(self, event: Event, stream: str, seq: int, reason: str = "") -> None:
        """Notify at once, of what happened outside of an engine's calls."""
        self.queue(event, stream, seq, reason)
        self.deliver()

    def queue(self, event: Event, stream: str, seq: int, reason: str = "") -> None:
        """Let a notice wait until the call that is inside of the engine ends."""
        if self._listeners:
            self.waiting.append(partial(self._notify, Notice(event, stream, seq, reason)))

    def later(self, call: Callable[[], None]) -> None:
        """Let a callback wait as a notice does, in its turn."""
        self.waiting.append(call)

    def deliver(self) -> None:
        """Deliver what waits, in order. Within a delivery it does nothing: the outer one goes on."""
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
