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
from .intake import QueuedRequest
from .shares import Quota
from .stats import Stats
from .streamtable import StreamRecord, StreamTable

if TYPE_CHECKING:
    from ...engine import Engine
    from ...stream import Stream

log: Final = Log("runnel.serve")


class Streams:
    """The engine's streams by their names on the wire."""

    def __init__(
        self, engine: Engine, table: StreamTable, stats: Stats, first_epoch: int, user_streams: int
    ) -> None:
        self._engine = engine
        self._table = table
        self._stats = stats
        self._epoch = first_epoch
        self._quota = Quota(engine.max_streams, user_streams)

    @property
    def user_share(self) -> int:
        """Streams that each user can count on."""
        return self._quota.part

    def expect_users(self, users: int) -> None:
        """Set how many users may come; each can count on a share."""
        self._quota.users = users

    def open(self, record: StreamRecord, blob: bytes | None = None, checked: bool = False) -> Stream:
        """Open the engine's stream, new or from a snapshot. It has no name yet.

        Raises LimitError if the remaining streams are reserved for other users, and what `Engine.open` and
        `restore` raise.
        """
        self._check(record.user)
        key = record.key
        stream = self._engine.open(key) if blob is None else self._engine.restore(blob, key, checked=checked)
        self._quota.take(record.user)
        self._stats.opened += 1
        return stream

    def begin(
        self, record: StreamRecord, pending: QueuedRequest, stream: Stream, applied: int, now: float
    ) -> None:
        """Name the stream and begin the epoch that was asked for. If that fails, close the stream."""
        try:
            epoch = pending.request.epoch or self.new_epoch()
            self._table.begin(record, stream, epoch, applied, pending.digest)
            self._table.touch(record, pending.peer, now)
        except Exception as error:
            self._lose(record, stream, error, now)
            raise

    def applied(
        self, record: StreamRecord, stream: Stream, pending: QueuedRequest, body: Body, now: float
    ) -> None:
        """Commit a feed: its seq, its cached reply, and the stream that it opened or ended."""
        if pending.request.sequence_start:
            self.begin(record, pending, stream, 0, now)
        try:
            self._table.keep(record, pending.digest, *body, now)
            record.applied += 1
            self._stats.chunks += 1
        except Exception as error:
            self._lose(record, stream, error, now)
            raise
        if pending.request.sequence_end:
            self.close(record, "ended", "was closed: its end was fed", now)

    def close(self, record: StreamRecord, reason: str, text: str, now: float) -> None:
        """Close the stream; a later request for it is answered with `text`, the reason."""
        self.discard(record, self._table.detach(record, text, now), reason)

    def discard(self, record: StreamRecord, stream: Stream, reason: str) -> None:
        """Close a stream that has no name. An error of its stages is logged only."""
        self._quota.give(record.user)
        self._stats.closed[reason] += 1
        try:
            stream.close(reason)
        except Exception as error:
            log.exception("stage failed", error, stream=stream.id, error=as_error("engine", error).message)

    def new_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def _lose(self, record: StreamRecord, stream: Stream, error: Exception, now: float) -> None:
        if record.stream is stream:
            failed = type(error).__name__
            text = f"was closed: a change of it failed within the daemon ({failed}); open it anew"
            self.close(record, "failed", text, now)
        else:
            self.discard(record, stream, "failed")

    def _check(self, user: str) -> None:
        limit = self._quota
        if limit.users > 1 and not limit.has_room(user) and limit.taken < limit.limit:
            raise LimitError(
                f"{limit.held(user)} streams are this user's, and the {limit.limit - limit.taken} "
                "places left are kept free for other users: close some. Each user can count on "
                f"{limit.part} of {limit.limit}: user_streams and max_streams of the daemon"
            )
