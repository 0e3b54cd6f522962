"""Open, step, count and close the server's streams.

Rules of this file: pure. A stream gets its name only after the request that opens it has succeeded. If a
change fails halfway, the stream's position is unknown, so the stream is closed with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...errors import LimitError
from ...stage import as_error
from ..logs import Log
from .admission import Body
from .intake import Pending
from .sequences import Named, Register
from .shares import Places
from .stats import Stats

if TYPE_CHECKING:
    from ...engine import Engine
    from ...stream import Stream

log: Final = Log("runnel.serve")


class Lives:
    """The engine's streams by their names on the wire."""

    def __init__(
        self, engine: Engine, register: Register, stats: Stats, first_epoch: int, user_streams: int
    ) -> None:
        self._engine = engine
        self._register = register
        self._stats = stats
        self._epoch = first_epoch
        self._places = Places(engine.max_streams, user_streams)

    @property
    def user_part(self) -> int:
        """Streams that each user can count on."""
        return self._places.part

    def expect(self, users: int) -> None:
        """Set how many users may come; each can count on a share."""
        self._places.users = users

    def open(self, named: Named, blob: bytes | None = None, checked: bool = False) -> Stream:
        """Open the engine's stream, new or from a snapshot. It has no name yet.

        Raises LimitError if the remaining streams are reserved for other users, and what `Engine.open` and
        `restore` raise.
        """
        self._check(named.user)
        key = named.key
        stream = self._engine.open(key) if blob is None else self._engine.restore(blob, key, checked=checked)
        self._places.take(named.user)
        self._stats.opened += 1
        return stream

    def begin(self, named: Named, pending: Pending, stream: Stream, applied: int, now: float) -> None:
        """Name the stream and begin the epoch that was asked for. If that fails, close the stream."""
        try:
            epoch = pending.request.epoch or self.new_epoch()
            self._register.begin(named, stream, epoch, applied, pending.digest)
            self._register.touch(named, pending.peer, now)
        except Exception as error:
            self._lose(named, stream, error, now)
            raise

    def applied(self, named: Named, stream: Stream, pending: Pending, body: Body, now: float) -> None:
        """Commit a feed: its seq, its cached reply, and the stream that it opened or ended."""
        if pending.request.sequence_start:
            self.begin(named, pending, stream, 0, now)
        try:
            self._register.keep(named, pending.digest, *body, now)
            named.applied += 1
            self._stats.chunks += 1
        except Exception as error:
            self._lose(named, stream, error, now)
            raise
        if pending.request.sequence_end:
            self.part(named, "ended", "was closed: its end was fed", now)

    def part(self, named: Named, reason: str, text: str, now: float) -> None:
        """Close the stream; a later request for it is answered with `text`, the reason."""
        self.discard(named, self._register.part(named, text, now), reason)

    def discard(self, named: Named, stream: Stream, reason: str) -> None:
        """Close a stream that has no name. An error of its stages is logged only."""
        self._places.give(named.user)
        self._stats.closed[reason] += 1
        try:
            stream.close(reason)
        except Exception as error:
            log.exception("stage failed", error, stream=stream.id, error=as_error("engine", error).message)

    def new_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def _lose(self, named: Named, stream: Stream, error: Exception, now: float) -> None:
        if named.stream is stream:
            failed = type(error).__name__
            text = f"was closed: a change of it failed within the daemon ({failed}); open it anew"
            self.part(named, "failed", text, now)
        else:
            self.discard(named, stream, "failed")

    def _check(self, user: str) -> None:
        places = self._places
        if places.users > 1 and not places.room(user) and places.taken < places.places:
            raise LimitError(
                f"{places.held(user)} streams are this user's, and the {places.places - places.taken} "
                "places left are kept free for other users: close some. Each user can count on "
                f"{places.part} of {places.places}: user_streams and max_streams of the daemon"
            )
