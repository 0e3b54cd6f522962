"""The table of all streams that a server knows, and the reply cache.

Rules of this file: pure; the time is an argument. Everything remembered is bounded in number, in bytes or in
time, and each ordering has the next thing to forget at its front.

Theory: a cached reply lets a client repeat a request whose reply was lost: the request is answered again but
not done again. Clients repeat their latest requests, so above the bound the oldest reply is evicted, from the
user who holds the most: no user loses a reply to another who holds more (see `shares`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ...wire.messages import TensorInfo
from .shares import Remembered
from .transitions import Event, Phase, Verdict

if TYPE_CHECKING:
    from ...stream import Stream

KEPT_REPLIES: Final = 64  # replies per stream: as many requests as a client may have in flight for it
KEPT_SECONDS: Final = 60.0  # longer than a connection takes to come back while its client still waits
MAX_KEPT_BYTES: Final = 64 * 2**20  # bytes, for all streams
KEPT_OVERHEAD: Final = 640  # bytes: Python's objects around a reply's buffers (seen: 610)
MAX_PARTED: Final = 4096  # closed streams whose end is remembered


class Kept(Struct, eq=False, gc=False):
    """A cached reply.

    The garbage collector does not track it, which saves repeated scans. So it must not refer to anything that
    could refer back to it.
    """

    key: str  # of its `Named`
    user: str
    digest: int
    infos: list[TensorInfo]
    buffers: Sequence[bytes]
    nbytes: int
    at: float


def digest_of(event: Event, inputs: Sequence[TensorInfo], buffers: Sequence[bytes], steps: int = 0) -> int:
    """Hash of a request's event, tensors, bytes, and steps without input, to recognise a repeat.

    Python's keyed 64-bit hash: it never leaves the process, and two requests collide once in 2**64.
    """
    if not inputs:
        return _bare_digest(event, steps)
    if len(inputs) == 1:
        info = inputs[0]
        return hash((event, info.name, info.datatype, *info.shape, buffers[0]))
    return hash((event, steps, *((t.name, t.datatype, *t.shape) for t in inputs), *buffers))


@lru_cache(maxsize=64)
def _bare_digest(event: Event, steps: int) -> int:
    """Share one number between all streams that were opened alike, to save memory."""
    return hash((event, steps))


class Named:
    """What the server knows of one stream, by its name on the wire.

    `stream` is None if no stream is open: then a request for this name waits, or the record remembers how the
    last stream of this name ended.
    """

    __slots__ = (
        "applied", "begun", "epoch", "gone", "kept", "key", "name", "peer", "queue", "resumed_from", "stream",
        "used", "user",
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
        self.kept: deque[Kept] | None = None  # in the order of their seqs; the newest is that of `applied`
        self.queue: deque[Any] | None = None  # queued requests
        self.peer = b""  # the peer that last used it
        self.used = 0.0  # when
        self.gone = ""  # why the stream is no longer open

    @property
    def phase(self) -> Phase:
        if self.stream is None:
            return Phase.ABSENT
        return Phase.ENDED if self.stream.ended else Phase.LIVE

    def judge(self, seq: int, digest: int) -> tuple[Verdict, Kept | None]:
        """Compare a stated seq with the last one applied; return its cached reply too, if there is one."""
        if seq == self.applied + 1:
            return Verdict.NEXT, None
        if seq > self.applied:
            return Verdict.GAP, None
        kept = self.kept
        back = self.applied - seq
        if not kept or back >= len(kept):
            return Verdict.OLD, None
        reply = kept[-1 - back]
        return (Verdict.REPEAT if reply.digest == digest else Verdict.CONFLICT), reply


class Register:
    """All stream records, by key."""

    def __init__(self) -> None:
        self._paused = 0.0  # seconds that count for no deadline; all times below are less by them
        self._names: dict[str, Named] = {}
        self._open: OrderedDict[Named, None] = OrderedDict()  # least recently used first
        self._parted: Remembered[Named] = Remembered()
        self._kept: Remembered[Kept] = Remembered()  # by bytes

    def __len__(self) -> int:
        return len(self._names)

    @property
    def kept_bytes(self) -> int:
        """Bytes of all cached replies."""
        return self._kept.weight

    def find(self, key: str) -> Named | None:
        return self._names.get(key)

    def add(self, key: str, name: str, user: str = "") -> Named:
        named = self._names[key] = Named(key, name, user)
        return named

    def begin(self, named: Named, stream: Stream, epoch: int, applied: int, begun: int) -> None:
        """Enter a stream whose opening request has succeeded. Only now is an earlier one of that name
        forgotten.
        """
        self._forget_replies(named)
        if named in self._parted:
            self._parted.remove(named.user, named, 1)
        named.stream, named.epoch, named.applied, named.begun = stream, epoch, applied, begun
        named.resumed_from, named.gone = 0, ""
        self._open[named] = None

    def postpone(self, seconds: float) -> None:
        """Extend every deadline. A deadline set just before the pause was noticed may be extended too far."""
        self._paused += seconds

    def touch(self, named: Named, peer: bytes, now: float) -> None:
        """Note that a peer used the stream."""
        # Without a pause, all streams of a turn share the turn's float object.
        named.peer, named.used = peer, now - self._paused if self._paused else now
        if named.stream is not None:
            self._open.move_to_end(named)

    def used_at(self, named: Named, now: float) -> bool:
        """Whether the stream was last used at exactly this time."""
        return named.used == now - self._paused

    def part(self, named: Named, text: str, now: float) -> Stream:
        """Remove the open stream from its record, and return it to be closed.

        Its end (`text`) and cached replies are remembered for a while.
        """
        assert named.stream is not None
        stream, named.stream = named.stream, None
        named.gone, named.used = text, now - self._paused
        del self._open[named]
        self._parted.add(named.user, named, 1)
        if len(self._parted) > MAX_PARTED:
            self._drop(self._parted.excess())
        return stream

    def settle(self, named: Named) -> None:
        """Forget a record if it has no stream, no queued request and no remembered end."""
        if named.stream is None and named.queue is None and named not in self._parted:
            self._names.pop(named.key, None)

    def keep(
        self, named: Named, digest: int, infos: list[TensorInfo], buffers: Sequence[bytes], now: float
    ) -> None:
        """Cache the reply to the request that was just applied."""
        nbytes = KEPT_OVERHEAD + (len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers)))
        kept = Kept(named.key, named.user, digest, infos, buffers, nbytes, now - self._paused)
        replies = named.kept
        if replies is None:
            replies = named.kept = deque()
        elif len(replies) >= KEPT_REPLIES:
            self._let_go(replies[0])
        replies.append(kept)
        self._kept.add(named.user, kept, nbytes)
        while self._kept.weight > MAX_KEPT_BYTES:
            self._let_go(self._kept.excess())

    def idle(self, seconds: float, now: float) -> Iterator[Named]:
        """The open streams unused for `seconds` with no queued request; the caller must `part` each."""
        if seconds:
            while self._open:
                named = next(iter(self._open))
                if named.used + seconds + self._paused > now:  # rounded as in `due`
                    return
                if named.queue is not None:  # requests are queued, or one is being run
                    self.touch(named, named.peer, now)
                else:
                    yield named

    def expire(self, now: float) -> None:
        """Forget replies and closed streams that were remembered long enough."""
        paused = self._paused
        while (kept := self._kept.oldest()) is not None and kept.at + KEPT_SECONDS + paused <= now:
            self._let_go(kept)
        while (named := self._parted.oldest()) is not None and named.used + KEPT_SECONDS + paused <= now:
            self._drop(named)

    def due(self, idle_seconds: float) -> float | None:
        """When `idle` or `expire` next has something to do; None: never, as things stand."""
        times = []
        if self._open and idle_seconds:
            times.append(next(iter(self._open)).used + idle_seconds + self._paused)
        if (kept := self._kept.oldest()) is not None:
            times.append(kept.at + KEPT_SECONDS + self._paused)
        if (named := self._parted.oldest()) is not None:
            times.append(named.used + KEPT_SECONDS + self._paused)
        return min(times, default=None)

    def _let_go(self, kept: Kept) -> None:
        """Forget one reply: its stream's oldest, because its user or its stream has too many."""
        named = self._names[kept.key]
        replies = named.kept
        assert replies is not None
        assert replies[0] is kept
        replies.popleft()
        if not replies:
            named.kept = None  # an empty deque takes more memory than the rest of an idle stream
        self._kept.remove(kept.user, kept, kept.nbytes)

    def _forget_replies(self, named: Named) -> None:
        while named.kept:
            self._let_go(named.kept[0])

    def _drop(self, named: Named) -> None:
        """Forget how a closed stream ended."""
        self._parted.remove(named.user, named, 1)
        self._forget_replies(named)
        self.settle(named)
