"""The lives of a server's streams: opened, named, stepped, closed; whose they are, and in which epoch.

Rules of this file: pure; a stream has its name only once the request that opens it has succeeded; where a
change cannot be completed, nobody could say where the stream stands, and it is closed with the reason.
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
    """The engine's streams by their names on the wire: opens, counts and closes them."""

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
        """So many users may come; each can count on a share."""
        self._places.users = users

    def open(self, named: Named, blob: bytes | None = None, checked: bool = False) -> Stream:
        """Open the engine's stream, as new or from a snapshot; it has no name yet.

        Raises LimitError where the places that are left are other users', and as `Engine.open` and `restore`.
        """
        self._check(named.user)
        key = named.key
        stream = self._engine.open(key) if blob is None else self._engine.restore(blob, key, checked=checked)
        self._places.take(named.user)
        self._stats.opened += 1
        return stream

    def begin(self, named: Named, pending: Pending, stream: Stream, applied: int, now: float) -> None:
        """The stream has its name, in the epoch that was asked for. It is closed where that fails."""
        try:
            epoch = pending.request.epoch or self.new_epoch()
            self._register.begin(named, stream, epoch, applied, pending.digest)
            self._register.touch(named, pending.peer, now)
        except Exception as error:
            self._lose(named, stream, error, now)
            raise

    def applied(self, named: Named, stream: Stream, pending: Pending, body: Body, now: float) -> None:
        """A feed counts from here on: its seq, its reply, the stream that it opened or ended."""
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
        """Close the stream; `text` says to those who ask for it later why it is gone."""
        self.discard(named, self._register.part(named, text, now), reason)

    def discard(self, named: Named, stream: Stream, reason: str) -> None:
        """Close a stream that has no name. What its stages raise is logged: the stream is gone."""
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
