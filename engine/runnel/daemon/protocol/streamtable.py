"""The table of all streams that a server knows, with their cached replies.

Rules of this file: pure; the time is an argument. Everything remembered is bounded in number, in bytes or in
time, and each ordering has the next thing to forget at its front. `replycache` says why replies are cached.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from ...wire.messages import TensorInfo
from .replycache import CACHED_OVERHEAD, CACHED_REPLIES, CACHED_SECONDS, MAX_CACHED_BYTES, CachedReply
from .shares import FairFifo
from .transitions import Phase, Verdict

if TYPE_CHECKING:
    from ...stream import Stream

MAX_CLOSED: Final = 4096  # closed streams whose end is remembered


class StreamRecord:
    """What the server knows of one stream, by its name on the wire.

    `stream` is None if no stream is open: then a request for this name waits, or the record remembers how the
    last stream of this name ended.
    """

    __slots__ = (
        "applied", "begun", "cached", "epoch", "gone", "key", "name", "peer", "queue", "resumed_from",
        "stream", "used", "user",
    )  # fmt: skip

    def __init__(self, key: str, name: str, user: str = "") -> None:
        self.key = key  # the name, qualified by its user
        self.name = name
        self.user = user
        self.stream: Stream | None = None
        self.epoch = 0
        self.begun = 0  # digest of the request that opened the stream
        self.resumed_from = 0  # the epoch stated by a resume for which the daemon chose the new epoch
        self.applied = 0  # the last seq
        self.cached: deque[CachedReply] | None = (
            None  # in the order of their seqs; the newest is that of `applied`
        )
        self.queue: deque[Any] | None = None  # queued requests
        self.peer = b""  # the peer that last used it
        self.used = 0.0  # when
        self.gone = ""  # why the stream is no longer open

    @property
    def phase(self) -> Phase:
        if self.stream is None:
            return Phase.ABSENT
        return Phase.ENDED if self.stream.ended else Phase.LIVE

    def judge(self, seq: int, digest: int) -> tuple[Verdict, CachedReply | None]:
        """Compare a stated seq with the last one applied; return its cached reply too, if there is one."""
        if seq == self.applied + 1:
            return Verdict.NEXT, None
        if seq > self.applied:
            return Verdict.GAP, None
        cached = self.cached
        back = self.applied - seq
        if not cached or back >= len(cached):
            return Verdict.OLD, None
        reply = cached[-1 - back]
        return (Verdict.REPEAT if reply.digest == digest else Verdict.CONFLICT), reply


class StreamTable:
    """All stream records, by key."""

    def __init__(self) -> None:
        self._paused = 0.0  # seconds that count for no deadline; all times below are less by them
        self._names: dict[str, StreamRecord] = {}
        self._open: OrderedDict[StreamRecord, None] = OrderedDict()  # least recently used first
        self._closed: FairFifo[StreamRecord] = FairFifo()
        self._cache: FairFifo[CachedReply] = FairFifo()  # by bytes

    def __len__(self) -> int:
        return len(self._names)

    @property
    def cached_bytes(self) -> int:
        """Bytes of all cached replies."""
        return self._cache.weight

    def find(self, key: str) -> StreamRecord | None:
        return self._names.get(key)

    def add(self, key: str, name: str, user: str = "") -> StreamRecord:
        record = self._names[key] = StreamRecord(key, name, user)
        return record

    def begin(self, record: StreamRecord, stream: Stream, epoch: int, applied: int, begun: int) -> None:
        """Enter a stream whose opening request has succeeded.

        Only now is an earlier stream of that name forgotten.
        """
        self._forget_replies(record)
        if record in self._closed:
            self._closed.remove(record.user, record, 1)
        record.stream, record.epoch, record.applied, record.begun = stream, epoch, applied, begun
        record.resumed_from, record.gone = 0, ""
        self._open[record] = None

    def postpone(self, seconds: float) -> None:
        """Extend every deadline. A deadline set just before the pause was noticed may be extended too far."""
        self._paused += seconds

    def touch(self, record: StreamRecord, peer: bytes, now: float) -> None:
        """Note that a peer used the stream."""
        # Without a pause, all streams of a turn share the turn's float object.
        record.peer, record.used = peer, now - self._paused if self._paused else now
        if record.stream is not None:
            self._open.move_to_end(record)

    def used_at(self, record: StreamRecord, now: float) -> bool:
        """Whether the stream was last used at exactly this time."""
        return record.used == now - self._paused

    def detach(self, record: StreamRecord, text: str, now: float) -> Stream:
        """Remove the open stream from its record, and return it to be closed.

        Its end (`text`) and cached replies are remembered for a while.
        """
        assert record.stream is not None
        stream, record.stream = record.stream, None
        record.gone, record.used = text, now - self._paused
        del self._open[record]
        self._closed.add(record.user, record, 1)
        if len(self._closed) > MAX_CLOSED:
            self._drop(self._closed.excess())
        return stream

    def forget_unused(self, record: StreamRecord) -> None:
        """Forget a record if it has no stream, no queued request and no remembered end."""
        if record.stream is None and record.queue is None and record not in self._closed:
            self._names.pop(record.key, None)

    def keep(
        self, record: StreamRecord, digest: int, infos: list[TensorInfo], buffers: Sequence[bytes], now: float
    ) -> None:
        """Cache the reply to the request that was just applied."""
        nbytes = CACHED_OVERHEAD + (len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers)))
        cached = CachedReply(record.key, record.user, digest, infos, buffers, nbytes, now - self._paused)
        replies = record.cached
        if replies is None:
            replies = record.cached = deque()
        elif len(replies) >= CACHED_REPLIES:
            self._evict(replies[0])
        replies.append(cached)
        self._cache.add(record.user, cached, nbytes)
        while self._cache.weight > MAX_CACHED_BYTES:
            self._evict(self._cache.excess())

    def idle(self, seconds: float, now: float) -> Iterator[StreamRecord]:
        """The open streams unused for `seconds` with no queued request; the caller must `detach` each."""
        if seconds:
            while self._open:
                record = next(iter(self._open))
                if record.used + seconds + self._paused > now:  # rounded as in `due`
                    return
                if record.queue is not None:  # requests are queued, or one is being run
                    self.touch(record, record.peer, now)
                else:
                    yield record

    def expire(self, now: float) -> None:
        """Forget replies and closed streams that were remembered long enough."""
        paused = self._paused
        while (cached := self._cache.oldest()) is not None and cached.at + CACHED_SECONDS + paused <= now:
            self._evict(cached)
        while (record := self._closed.oldest()) is not None and record.used + CACHED_SECONDS + paused <= now:
            self._drop(record)

    def due(self, idle_seconds: float) -> float | None:
        """When `idle` or `expire` next has something to do; None: never, as things stand."""
        times = []
        if self._open and idle_seconds:
            times.append(next(iter(self._open)).used + idle_seconds + self._paused)
        if (cached := self._cache.oldest()) is not None:
            times.append(cached.at + CACHED_SECONDS + self._paused)
        if (record := self._closed.oldest()) is not None:
            times.append(record.used + CACHED_SECONDS + self._paused)
        return min(times, default=None)

    def _evict(self, cached: CachedReply) -> None:
        """Forget one reply: its stream's oldest, because its user or its stream has too many."""
        record = self._names[cached.key]
        replies = record.cached
        assert replies is not None
        assert replies[0] is cached
        replies.popleft()
        if not replies:
            record.cached = None  # an empty deque takes more memory than the rest of an idle stream
        self._cache.remove(cached.user, cached, cached.nbytes)

    def _forget_replies(self, record: StreamRecord) -> None:
        while record.cached:
            self._evict(record.cached[0])

    def _drop(self, record: StreamRecord) -> None:
        """Forget how a closed stream ended."""
        self._closed.remove(record.user, record, 1)
        self._forget_replies(record)
        self.forget_unused(record)
