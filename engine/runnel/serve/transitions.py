"""What each request does to a stream, as a table: every pair of a phase and an event is in it.

Rules of this file: the table is the truth, and the protocol page shows it as it is; an event is made of
a request's op and flags alone; an error in the table leaves the stream as it was.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from ..errors import StreamEndedError, StreamError, StreamExistsError, UnknownStreamError, WireError
from .wire import Request


class Phase(enum.Enum):
    """Where a stream stands."""

    ABSENT = "absent"  # not open: never was, or closed
    LIVE = "live"
    ENDED = "ended"  # flushed


class Event(enum.Enum):
    """What a request does to a stream; a feed's two flags make four events of it."""

    OPEN = "open"
    FEED = "feed"
    FEED_FIRST = "feed, start"
    FEED_LAST = "feed, end"
    FEED_ONLY = "feed, start and end"
    FLUSH = "flush"
    RESET = "reset"
    CLOSE = "close"


# The phase after success, or the error that leaves everything as it was. A feed that opens a stream and
# fails leaves it absent; one that ends it and fails leaves it live, the chunk not applied.
TRANSITIONS: Final[Mapping[Phase, Mapping[Event, Phase | type[StreamError]]]] = {
    Phase.ABSENT: {
        Event.OPEN: Phase.LIVE,
        Event.FEED: UnknownStreamError,  # never silently from zeros
        Event.FEED_FIRST: Phase.LIVE,
        Event.FEED_LAST: UnknownStreamError,
        Event.FEED_ONLY: Phase.ABSENT,
        Event.FLUSH: UnknownStreamError,
        Event.RESET: UnknownStreamError,
        Event.CLOSE: UnknownStreamError,
    },
    Phase.LIVE: {
        Event.OPEN: StreamExistsError,
        Event.FEED: Phase.LIVE,
        Event.FEED_FIRST: StreamExistsError,  # nor is a live stream silently restarted
        Event.FEED_LAST: Phase.ABSENT,
        Event.FEED_ONLY: StreamExistsError,
        Event.FLUSH: Phase.ENDED,
        Event.RESET: Phase.LIVE,
        Event.CLOSE: Phase.ABSENT,
    },
    Phase.ENDED: {
        Event.OPEN: StreamExistsError,
        Event.FEED: StreamEndedError,
        Event.FEED_FIRST: StreamExistsError,
        Event.FEED_LAST: StreamEndedError,
        Event.FEED_ONLY: StreamExistsError,
        Event.FLUSH: StreamEndedError,
        Event.RESET: Phase.LIVE,
        Event.CLOSE: Phase.ABSENT,
    },
}

_FEEDS: Final = {
    (False, False): Event.FEED,
    (True, False): Event.FEED_FIRST,
    (False, True): Event.FEED_LAST,
    (True, True): Event.FEED_ONLY,
}
LIKELY: Final[Mapping[type[StreamError], str]] = {
    UnknownStreamError: "is not open: never opened, closed, or lost with a restart of the daemon; open it",
    StreamExistsError: "is open already: choose another id, or close it first",
    StreamEndedError: "was flushed: reset it, or close it",
}


def event_of(request: Request) -> Event:
    """The event that a request stands for; raises WireError where its fields do not go together."""
    start, end = request.sequence_start, request.sequence_end
    if request.op == "feed":
        if not request.sequence_id and not start:
            raise WireError(
                "a feed without sequence_id: it names the stream, unless sequence_start opens one"
            )
        return _FEEDS[start, end]
    if start or end or request.seq or request.inputs:
        raise WireError(
            f"sequence_start, sequence_end, seq and inputs belong to a feed, not to {request.op!r}"
        )
    event = Event(request.op)
    if not request.sequence_id and event is not Event.OPEN:
        raise WireError(f"{request.op!r} without sequence_id: it names the stream")
    return event
