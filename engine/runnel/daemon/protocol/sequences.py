"""The names that a server knows, and what it remembers of each: where it stands, and its last replies.

Rules of this file: pure (the time is an argument); everything remembered is bounded in number, in bytes
or in time, and each of the orders kept here makes the next thing to forget the first one in it.

Theory: a reply is kept so that a request whose answer was lost can be sent again and be answered without
being done again. The replies that are asked for again are the latest ones. So over the bound the oldest reply
of the user who holds the most goes: no user loses one to another who holds more (see `shares`).
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

KEPT_REPLIES: Final = 64  # a stream's: as many requests as a client may have on their way for one stream
KEPT_SECONDS: Final = 60.0  # longer than any connection takes to come back while its client still waits
MAX_KEPT_BYTES: Final = 64 * 2**20  # of all streams
KEPT_OVERHEAD: Final = 640  # bytes: what Python's objects take around a reply's buffers (seen: 610)
MAX_PARTED: Final = 4096  # closed streams whose end is remembered


class Kept(Struct, eq=False, gc=False):
    """A reply that can be given again.

    Not known to the garbage collector, which would look at each again and again: so it refers to nothing
    that could refer to it.
    """

    key: str  # of its `Named`
    user: str
    digest: int
    infos: list[TensorInfo]
    buffers: Sequence[bytes]
    nbytes: int
    at: float


def digest_of(event: Event, inputs: Sequence[TensorInfo], buffers: Sequence[bytes], steps: int = 0) -> int:
    """A number that two requests share if they ask the same: event, tensors, bytes, steps without input.

    Python's keyed 64-bit hash: it never leaves the process, and chance fools it once in 2**64.
    """
    if not inputs:
        return _bare_digest(event, steps)
    if len(inputs) == 1:
        info = inputs[0]
        return hash((event, info.name, info.datatype, *info.shape, buffers[0]))
    return hash((event, steps, *((t.name, t.datatype, *t.shape) for t in inputs), *buffers))


@lru_cache(maxsize=64)
def _bare_digest(event: Event, steps: int) -> int:
    """One number for all streams that were opened alike: each would keep its own."""
    return hash((event, steps))


class Named:
    """A stream's name on the wire, and all that the server knows of it.

    `stream` is None where none is open: the name then waits for one of its requests, or remembers how the
    last stream of this name ended.
    """

    __slots__ = (
        "applied", "begun", "epoch", "gone", "kept", "key", "name", "peer", "queue", "resumed_from", "stream",
        "used", "user",
    )  # fmt: skip

    def __init__(self, key: str, name: str, user: str = "") -> None:
        self.key = key  # the name and whose it is
        self.name = name
        self.user = user
        self.stream: Stream | None = None
        self.epoch = 0
        self.begun = 0  # the digest of the request that opened the stream
        self.resumed_from = 0  # the epoch stated by a resume that left the choice of this one to the daemon
        self.applied = 0  # the last seq
        self.kept: deque[Kept] | None = None  # in the order of their seqs; the newest is `applied`
        self.queue: deque[Any] | None = None  # requests that wait
        self.peer = b""  # who spoke for it last
        self.used = 0.0  # when
        self.gone = ""  # why there is no stream any more

    @property
    def phase(self) -> Phase:
        if self.stream is None:
            return Phase.ABSENT
        return Phase.ENDED if self.stream.ended else Phase.LIVE

    def judge(self, seq: int, digest: int) -> tuple[Verdict, Kept | None]:
        """How a stated seq stands to what was applied; the reply that is kept of it."""
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
    """All names."""

    def __init__(self) -> None:
        self._paused = 0.0  # seconds that count for no deadline; all times below are less by it
        self._names: dict[str, Named] = {}
        self._open: OrderedDict[Named, None] = OrderedDict()  # least recently used first
        self._parted: Remembered[Named] = Remembered()
        self._kept: Remembered[Kept] = Remembered()  # by bytes

    def __len__(self) -> int:
        return len(self._names)

    @property
    def kept_bytes(self) -> int:
        """Of all replies that are kept."""
        return self._kept.weight

    def find(self, key: str) -> Named | None:
        return self._names.get(key)

    def add(self, key: str, name: str, user: str = "") -> Named:
        named = self._names[key] = Named(key, name, user)
        return named

    def begin(self, named: Named, stream: Stream, epoch: int, applied: int, begun: int) -> None:
        """The request that opens a stream has succeeded: only now is an earlier one of the name forgotten."""
        self._forget_replies(named)
        if named in self._parted:
            self._parted.remove(named.user, named, 1)
        named.stream, named.epoch, named.applied, named.begun = stream, epoch, applied, begun
        named.resumed_from, named.gone = 0, ""
        self._open[named] = None

    def postpone(self, seconds: float) -> None:
        """Put off every deadline. One that was set just before a pause was seen may come later yet."""
        self._paused += seconds

    def touch(self, named: Named, peer: bytes, now: float) -> None:
        """The stream was spoken for."""
        # Without a pause, all streams of a turn share the turn's number.
        named.peer, named.used = peer, now - self._paused if self._paused else now
        if named.stream is not None:
            self._open.move_to_end(named)

    def used_at(self, named: Named, now: float) -> bool:
        """Whether the stream was spoken for at this very time, and not since."""
        return named.used == now - self._paused

    def part(self, named: Named, text: str, now: float) -> Stream:
        """Take the stream from its name, to be closed; its end (`text`) and kept replies stay for a while."""
        assert named.stream is not None
        stream, named.stream = named.stream, None
        named.gone, named.used = text, now - self._paused
        del self._open[named]
        self._parted.add(named.user, named, 1)
        if len(self._parted) > MAX_PARTED:
            self._drop(self._parted.excess())
        return stream

    def settle(self, named: Named) -> None:
        """Forget a name that nothing is known of and nothing waits for."""
        if named.stream is None and named.queue is None and named not in self._parted:
            self._names.pop(named.key, None)

    def keep(
        self, named: Named, digest: int, infos: list[TensorInfo], buffers: Sequence[bytes], now: float
    ) -> None:
        """Keep the reply to the request that was just applied."""
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
        """The open streams unused for so long, and with nothing waiting; the caller parts each."""
        if seconds:
            while self._open:
                named = next(iter(self._open))
                if named.used + seconds + self._paused > now:  # rounded as in `due`
                    return
                if named.queue is not None:  # requests wait, or one is on its way
                    self.touch(named, named.peer, now)
                else:
                    yield named

    def expire(self, now: float) -> None:
        """Let go of what was remembered long enough."""
        paused = self._paused
        while (kept := self._kept.oldest()) is not None and kept.at + KEPT_SECONDS + paused <= now:
            self._let_go(kept)
        while (named := self._parted.oldest()) is not None and named.used + KEPT_SECONDS + paused <= now:
            self._drop(named)

    def due(self, idle_seconds: float) -> float | None:
        """When there is something to do for `idle` or `expire`; None: nothing, as things stand."""
        times = []
        if self._open and idle_seconds:
            times.append(next(iter(self._open)).used + idle_seconds + self._paused)
        if (kept := self._kept.oldest()) is not None:
            times.append(kept.at + KEPT_SECONDS + self._paused)
        if (named := self._parted.oldest()) is not None:
            times.append(named.used + KEPT_SECONDS + self._paused)
        return min(times, default=None)

    def _let_go(self, kept: Kept) -> None:
        """Forget one reply: the oldest of its stream, being the oldest of its user or one too many."""
        named = self._names[kept.key]
        replies = named.kept
        assert replies is not None
        assert replies[0] is kept
        replies.popleft()
        if not replies:
            named.kept = None  # an empty deque takes more memory than all else of an idle stream
        self._kept.remove(kept.user, kept, kept.nbytes)

    def _forget_replies(self, named: Named) -> None:
        while named.kept:
            self._let_go(named.kept[0])

    def _drop(self, named: Named) -> None:
        """Forget how a closed stream ended."""
        self._parted.remove(named.user, named, 1)
        self._forget_replies(named)
        self.settle(named)
