"""Tables of what each request does to a stream, by phase and by seq.

Rules of this file: the tables are the only source, and the protocol page prints them as they are. An event
follows from a request's op and flags alone. An error in a table leaves the stream unchanged.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from ...errors import (
    AlreadyAppliedError,
    ConflictError,
    FencedError,
    GapError,
    StreamEndedError,
    StreamError,
    StreamExistsError,
    UnknownStreamError,
    WireError,
)
from ...wire.messages import Request


class _Enum(enum.Enum):
    """Hashed several times a message: enum's own hash is a slow Python function, this one is not."""

    __hash__ = object.__hash__


class Phase(_Enum):
    """Whether a stream is open, and whether it was flushed."""

    ABSENT = "absent"  # never opened, or closed
    LIVE = "live"
    ENDED = "ended"  # flushed


class Event(_Enum):
    """What a request does to a stream. The two flags of a feed make four events."""

    OPEN = "open"
    RESTORE = "restore"
    RESUME = "resume"
    FEED = "feed"
    FEED_FIRST = "feed, start"
    FEED_LAST = "feed, end"
    FEED_ONLY = "feed, start and end"
    FLUSH = "flush"
    RESET = "reset"
    SNAPSHOT = "snapshot"
    CLOSE = "close"


# The phase after success, or the error that leaves everything unchanged. If a feed that opens a stream fails,
# the stream stays absent. If a feed that ends a stream fails, the stream stays live and the chunk is not
# applied. A restored stream is live or ended, as at the time of the snapshot.
TRANSITIONS: Final[Mapping[Phase, Mapping[Event, Phase | type[StreamError]]]] = {
    Phase.ABSENT: {
        Event.OPEN: Phase.LIVE,
        Event.RESTORE: Phase.LIVE,
        Event.RESUME: UnknownStreamError,
        Event.FEED: UnknownStreamError,  # never silently from zeros
        Event.FEED_FIRST: Phase.LIVE,
        Event.FEED_LAST: UnknownStreamError,
        Event.FEED_ONLY: Phase.ABSENT,
        Event.FLUSH: UnknownStreamError,
        Event.RESET: UnknownStreamError,
        Event.SNAPSHOT: UnknownStreamError,
        Event.CLOSE: UnknownStreamError,
    },
    Phase.LIVE: {
        Event.OPEN: StreamExistsError,
        Event.RESTORE: StreamExistsError,
        Event.RESUME: Phase.LIVE,
        Event.FEED: Phase.LIVE,
        Event.FEED_FIRST: StreamExistsError,  # a live stream is never silently restarted either
        Event.FEED_LAST: Phase.ABSENT,
        Event.FEED_ONLY: StreamExistsError,
        Event.FLUSH: Phase.ENDED,
        Event.RESET: Phase.LIVE,
        Event.SNAPSHOT: Phase.LIVE,
        Event.CLOSE: Phase.ABSENT,
    },
    Phase.ENDED: {
        Event.OPEN: StreamExistsError,
        Event.RESTORE: StreamExistsError,
        Event.RESUME: Phase.ENDED,
        Event.FEED: StreamEndedError,
        Event.FEED_FIRST: StreamExistsError,
        Event.FEED_LAST: StreamEndedError,
        Event.FEED_ONLY: StreamExistsError,
        Event.FLUSH: StreamEndedError,
        Event.RESET: Phase.LIVE,
        Event.SNAPSHOT: Phase.ENDED,
        Event.CLOSE: Phase.ABSENT,
    },
}


class Verdict(_Enum):
    """How a stated seq relates to n, the last one applied."""

    NEXT = "n + 1"
    REPEAT = "n or before, its reply kept, the same payload"
    CONFLICT = "n or before, its reply kept, another payload"
    OLD = "n or before, its reply no longer kept"
    GAP = "beyond n + 1"


VERDICTS: Final[Mapping[Verdict, str | type[StreamError]]] = {
    Verdict.NEXT: "done; state, seq and reply are committed together",
    Verdict.REPEAT: "the kept reply again, nothing is done",
    Verdict.CONFLICT: ConflictError,
    Verdict.OLD: AlreadyAppliedError,
    Verdict.GAP: GapError,
}

VERDICT_TEXTS: Final[Mapping[Verdict, str]] = {
    Verdict.CONFLICT: "seq {seq} was applied with another payload; {n} is the last applied",
    Verdict.OLD: "seq {seq} was applied, and its reply is no longer kept; {n} is the last applied",
    Verdict.GAP: "expects seq {n} + 1, not {seq}: nothing was applied",
}

HINTS: Final[Mapping[type[StreamError], str]] = {
    UnknownStreamError: "is not open: never opened, closed, or lost with a restart of the daemon; open it",
    StreamExistsError: "is open already: choose another id, close it first, or resume it",
    StreamEndedError: "was flushed: reset it, or close it",
    FencedError: "is in another epoch than the one stated: it was resumed elsewhere, or opened anew",
}

OPENS: Final = frozenset({Event.OPEN, Event.RESTORE, Event.FEED_FIRST, Event.FEED_ONLY})
"""Events that open a stream and begin an epoch."""

FEEDS: Final = frozenset({Event.FEED, Event.FEED_FIRST, Event.FEED_LAST, Event.FEED_ONLY})
"""Events that step a stream."""

RETURNS_STATE: Final = frozenset({Event.SNAPSHOT, Event.FLUSH})
"""Events whose replies are as large as the stream's state."""

CHANGES: Final = frozenset(
    {Event.FEED, Event.FEED_FIRST, Event.FEED_LAST, Event.FEED_ONLY, Event.FLUSH, Event.RESET, Event.CLOSE}
)
"""Events that take a seq."""

_FEEDS: Final = {
    (False, False): Event.FEED,
    (True, False): Event.FEED_FIRST,
    (False, True): Event.FEED_LAST,
    (True, True): Event.FEED_ONLY,
}
_OPS: Final = {op: Event(op) for op in ("open", "restore", "resume", "flush", "reset", "snapshot", "close")}


def event_of(request: Request) -> Event:
    """The event of a request. Raises WireError if its fields do not fit together."""
    op = request.op
    if request.steps and (op != "feed" or request.inputs):
        raise WireError("steps belong to a feed without inputs: so many time steps, of what it feeds itself")
    start, end = request.sequence_start, request.sequence_end
    if op == "feed":
        if not request.sequence_id and not start:
            raise WireError(
                "a feed without sequence_id: it names the stream, unless sequence_start opens one"
            )
        if request.new_epoch:
            raise WireError("new_epoch belongs to resume, not to 'feed'")
        if start and request.seq > 1:
            raise WireError(f"a feed that opens its stream is seq 1, not {request.seq}")
        return _FEEDS[start, end]
    event = _OPS[op]
    if request.new_epoch and (event is not Event.RESUME or request.new_epoch == request.epoch):
        raise WireError("new_epoch belongs to resume, and is another than epoch: take it at random")
    if start or end:
        raise WireError(f"sequence_start and sequence_end belong to a feed, not to {op!r}")
    if request.seq and event not in CHANGES:
        raise WireError(f"seq belongs to feed, flush, reset and close, not to {op!r}")
    if event is Event.RESTORE:
        given = [(t.name, t.datatype, len(t.shape)) for t in request.inputs]
        if not given or given != [("snapshot", "UINT8", 1), ("snapshot.1", "UINT8", 1)][: len(given)]:
            raise WireError(
                "restore takes the snapshot's bytes as 'snapshot', UINT8 of shape (bytes); what a tensor "
                "cannot hold follows as 'snapshot.1'"
            )
    elif request.inputs:
        raise WireError(f"inputs belong to feed and restore, not to {op!r}")
    if not request.sequence_id and event not in OPENS:
        raise WireError(f"{op!r} without sequence_id: it names the stream")
    return event
