"""Replies that a peer has not read: bounded, told, then dropped, and never in another's way.

Rules of this file: no socket and no clock: what sends is given, and so is the time. Whatever a peer does,
the bounds below hold, in count and in bytes, for one peer and in all.

Theory: a reply that cannot be sent waits in its peer's backlog, and those after it wait behind it. While
there is a backlog the peer's requests are refused, which it is told once it reads. A backlog that does
not shrink for `SLOW_SECONDS`, or passes a bound, is let go, and with it the peer: nothing is sent to it
until a request of its shows, by a refusal that can be sent again, that it reads. Its streams and their
kept replies are still there: it asks again, or resumes from another connection.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..logs import Log
from .intake import MAX_PENDING_PER_PEER
from .stats import Stats

SLOW_SECONDS: Final = 10.0  # without a reply read: longer than a client that lives is busy with itself
MAX_BACKLOG: Final = 2 * MAX_PENDING_PER_PEER  # replies of one peer: all it may ask, and refusals
MAX_BACKLOG_BYTES: Final = 64 * 2**20  # of one peer: some of the largest replies
MAX_BACKLOGS: Final = 16 * 1024  # replies of all peers
MAX_BACKLOGS_BYTES: Final = 256 * 2**20  # of all peers: as much as may wait to be run
MAX_DROPPED: Final = 4096  # peers remembered as dropped; one that is forgotten is dropped again
FIRST_RETRY: Final = 0.005  # seconds
LAST_RETRY: Final = 0.5  # seconds: many peers that do not read cost next to nothing

log = Log("runnel.serve")

Peer = bytes
Frames = Sequence[bytes]


class Fate(enum.Enum):
    """What became of a reply."""

    SENT = "sent"
    FULL = "full"  # the peer has not read enough of what was sent before
    GONE = "gone"  # the peer is no longer connected


@dataclass(slots=True)
class _Backlog:
    since: float  # when it last shrank, or began
    retry: float  # when to try next
    pause: float = FIRST_RETRY  # doubled while nothing can be sent
    nbytes: int = 0
    replies: deque[tuple[Frames, int]] = field(default_factory=deque)


class Outbox:
    """Sends replies, and keeps those that cannot be sent yet.

    `send(peer, frames, nbytes)` never waits. What is dropped is counted in `stats`.
    """

    def __init__(
        self,
        send: Callable[[Peer, Frames, int], Fate],
        stats: Stats,
        held: Callable[[Peer], int] = lambda peer: 0,
    ) -> None:
        """`held`: bytes of large replies that were sent to a peer and that it has not read."""
        self._send = send
        self._held = held
        self._stats = stats
        self._slow: dict[Peer, _Backlog] = {}
        self._deaf: dict[Peer, None] = {}  # dropped peers, the longest first
        self._replies = 0
        self._bytes = 0

    @property
    def waiting(self) -> int:
        """Replies in all backlogs."""
        return self._replies

    @property
    def due(self) -> float | None:
        """When to call `retry` next."""
        return min((backlog.retry for backlog in self._slow.values()), default=None) if self._slow else None

    def unread(self, peer: Peer) -> int:
        """Bytes of replies that the peer has not read, as far as is known: small ones may be on their way."""
        if self._deaf and peer in self._deaf:
            return 0
        backlog = self._slow.get(peer) if self._slow else None
        return self._held(peer) + (backlog.nbytes if backlog is not None else 0)

    def refuses(self, peer: Peer) -> str:
        """Why a request of this peer is not to be run; '' for a peer that reads."""
        if self._slow and peer in self._slow:
            return f"{len(self._slow[peer].replies)} replies wait for this client: read them first"
        if self._deaf and peer in self._deaf:
            return (
                "this client left its replies unread, and they were dropped: ask again with the same seq, "
                "or resume its streams"
            )
        return ""

    def post(self, peer: Peer, frames: Frames, now: float) -> None:
        """Send a reply, now or when its peer can take it; to a peer that was dropped it is not sent."""
        nbytes = sum(map(len, frames))
        if self._deaf and peer in self._deaf:
            self._stats.dropped_replies += 1
            return
        backlog = self._slow.get(peer) if self._slow else None
        if backlog is None:
            fate = self._send(peer, frames, nbytes)
            if fate is Fate.SENT:
                return
            if fate is Fate.GONE:
                self._stats.dropped_replies += 1
                return
            backlog = self._slow[peer] = _Backlog(since=now, retry=now + FIRST_RETRY)
        self._keep(peer, backlog, frames, nbytes)

    def refuse(self, peer: Peer, frames: Frames, now: float) -> None:
        """Send the refusal of a request. A peer that was dropped and can take it, reads again."""
        if peer not in self._deaf:
            self.post(peer, frames, now)
            return
        fate = self._send(peer, frames, sum(map(len, frames)))
        if fate is not Fate.SENT:
            self._stats.dropped_replies += 1
        if fate is not Fate.FULL:
            del self._deaf[peer]

    def postpone(self, seconds: float) -> None:
        """The daemon did not run for so long: in that time no peer could be seen to read."""
        for backlog in self._slow.values():
            backlog.since += seconds

    def retry(self, now: float) -> None:
        """Send of each backlog that is due what can be sent."""
        for peer in [peer for peer, backlog in self._slow.items() if backlog.retry <= now]:
            backlog = self._slow[peer]
            before = len(backlog.replies)
            fate = self._drain(peer, backlog)
            if fate is Fate.SENT:
                del self._slow[peer]
            elif fate is Fate.GONE:
                self._let_go(peer)
            elif len(backlog.replies) < before:
                backlog.since, backlog.pause = now, FIRST_RETRY
                backlog.retry = now + backlog.pause
            elif now - backlog.since >= SLOW_SECONDS:
                self._drop(peer, f"it read nothing for {SLOW_SECONDS:g} s")
            else:
                backlog.pause = min(2 * backlog.pause, LAST_RETRY)
                backlog.retry = now + backlog.pause

    def _keep(self, peer: Peer, backlog: _Backlog, frames: Frames, nbytes: int) -> None:
        backlog.replies.append((frames, nbytes))
        backlog.nbytes += nbytes
        self._replies += 1
        self._bytes += nbytes
        if len(backlog.replies) > MAX_BACKLOG or backlog.nbytes > MAX_BACKLOG_BYTES:
            self._drop(peer, "it left too many replies unread")
        while self._replies > MAX_BACKLOGS or self._bytes > MAX_BACKLOGS_BYTES:
            self._drop(max(self._slow, key=self._share), "of all that do not read it left the most unread")

    def _share(self, peer: Peer) -> float:
        """How much of what backlogs may hold in all is this peer's."""
        backlog = self._slow[peer]
        return max(len(backlog.replies) / MAX_BACKLOGS, backlog.nbytes / MAX_BACKLOGS_BYTES)

    def _drain(self, peer: Peer, backlog: _Backlog) -> Fate:
        while backlog.replies:
            frames, nbytes = backlog.replies[0]
            fate = self._send(peer, frames, nbytes)
            if fate is not Fate.SENT:
                return fate
            backlog.replies.popleft()
            backlog.nbytes -= nbytes
            self._replies -= 1
            self._bytes -= nbytes
        return Fate.SENT

    def _drop(self, peer: Peer, why: str) -> None:
        replies = self._let_go(peer)
        self._deaf[peer] = None
        if len(self._deaf) > MAX_DROPPED:
            del self._deaf[next(iter(self._deaf))]
        self._stats.dropped_peers += 1
        log.warning("peer dropped", peer=peer, replies=replies, why=why)

    def _let_go(self, peer: Peer) -> int:
        backlog = self._slow.pop(peer)
        self._replies -= len(backlog.replies)
        self._bytes -= backlog.nbytes
        self._stats.dropped_replies += len(backlog.replies)
        return len(backlog.replies)
