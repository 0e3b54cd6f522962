"""What happens to streams, told to those who asked: one notice an event, none for a chunk that went well."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Event = Literal[
    "opened", "reset", "idle", "evicted", "failed", "closed", "died", "blown_up", "recovered"
]  # fmt: skip

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
"""Called in the thread that runs the streams, which waits for it: be quick, hand long work to a thread."""


class Notices:
    """Those who listen, each called for every notice. One that raises is logged, and called again."""

    def __init__(self, listeners: Sequence[tuple[str, Listener]] = ()) -> None:
        self._listeners = tuple(listeners)  # (its name, for the log; itself)

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def __call__(self, event: Event, stream: str, seq: int, reason: str = "") -> None:
        if not self._listeners:
            return
        notice = Notice(event, stream, seq, reason)
        for name, listener in self._listeners:
            try:
                listener(notice)
            except Exception as error:  # somebody's listener is not to stop the streams
                _log.error("notice %r failed on %s: %s: %s", name, event, type(error).__name__, error)
