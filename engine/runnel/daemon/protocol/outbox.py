"""Replies waiting for slow clients: bounded, then dropped.

Rules of this file: no socket and no clock; the sending function and the time are arguments. The bounds below
hold for any behaviour of a peer, in count and in bytes, for one peer and in total.

Theory: a reply that cannot be sent waits in its peer's backlog, and later replies wait behind it. While a
peer has a backlog, its requests are refused, so that the peer learns why once it reads. If a backlog does not
shrink for `SLOW_SECONDS`, or exceeds a bound, the outbox drops the peer: it discards the backlog and sends
nothing to that peer. The peer is served again once it makes a request and the refusal can be sent. Its
streams and cached replies still exist: it asks again, or resumes from another connection.
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

SLOW_SECONDS: Final = 10.0  # without a reply read: longer than a live client is busy with other work
MAX_BACKLOG: Final = 2 * MAX_PENDING_PER_PEER  # replies of one peer: all that it may ask for, and refusals
MAX_BACKLOG_BYTES: Final = 64 * 2**20  # bytes of one peer: a few of the largest replies
MAX_BACKLOGS: Final = 16 * 1024  # replies of all peers
MAX_BACKLOGS_BYTES: Final = 256 * 2**20  # bytes for all peers: as much as may be queued
MAX_DROPPED: Final = 4096  # peers remembered as dropped; a peer that is forgotten is dropped again
FIRST_RETRY: Final = 0.005  # seconds
LAST_RETRY: Final = 0.5  # seconds: many peers that do not read then cost next to nothing

log = Log("runnel.serve")

Peer = bytes
Frames = Sequence[bytes]


class SendResult(enum.Enum):
    """Whether a reply was sent, and if not, why."""

    SENT = "sent"
    FULL = "full"  # the peer has not read enough of the earlier replies
    GONE = "gone"  # the peer is no longer connected


@dataclass(slots=True)
class _Backlog:
    since: float  # when the backlog last shrank, or began
    retry: float  # when to try next
    pause: float = FIRST_RETRY  # doubled while nothing can be sent
    nbytes: int = 0
    replies: deque[tuple[Frames, int]] = field(default_factory=deque)


class Outbox:
    """Sends replies, and queues those that cannot be sent yet.

    `send(peer, frames, nbytes)` never waits. Dropped replies and peers are counted in `stats`.
    """

    def __init__(
        self,
        send: Callable[[Peer, Frames, int], SendResult],
        stats: Stats,
        held: Callable[[Peer], int] = lambda peer: 0,
    ) -> None:
        """`held` returns the bytes of large replies that were sent to a peer and that it has not read."""
        self._send = send
        self._held = held
        self._stats = stats
        self._backlogs: dict[Peer, _Backlog] = {}
        self._dropped: dict[Peer, None] = {}  # dropped peers, in the order of dropping
        self._replies = 0
        self._bytes = 0

    @property
    def waiting(self) -> int:
        """Replies in all backlogs."""
        return self._replies

    @property
    def due(self) -> float | None:
        """When to call `retry` next."""
        return (
            min((backlog.retry for backlog in self._backlogs.values()), default=None)
            if self._backlogs
            else None
        )

    def unread(self, peer: Peer) -> int:
        """Known bytes of replies that the peer has not read. Small replies in flight are not counted."""
        if self._dropped and peer in self._dropped:
            return 0
        backlog = self._backlogs.get(peer) if self._backlogs else None
        return self._held(peer) + (backlog.nbytes if backlog is not None else 0)

    def refuses(self, peer: Peer) -> str:
        """Return why a request of this peer must be refused; '' if the peer reads."""
        if self._backlogs and peer in self._backlogs:
            return f"{len(self._backlogs[peer].replies)} replies wait for this client: read them first"
        if self._dropped and peer in self._dropped:
            return (
                "this client left its replies unread, and they were dropped: ask again with the same seq, "
                "or resume its streams"
            )
        return ""

    def post(self, peer: Peer, frames: Frames, now: float) -> None:
        """Send a reply, now or when its peer can take it. If the peer was dropped, discard the reply."""
        nbytes = sum(map(len, frames))
        if self._dropped and peer in self._dropped:
            self._stats.dropped_replies += 1
            return
        backlog = self._backlogs.get(peer) if self._backlogs else None
        if backlog is None:
            fate = self._send(peer, frames, nbytes)
            if fate is SendResult.SENT:
                return
            if fate is SendResult.GONE:
                self._stats.dropped_replies += 1
                return
            backlog = self._backlogs[peer] = _Backlog(since=now, retry=now + FIRST_RETRY)
        self._keep(peer, backlog, frames, nbytes)

    def refuse(self, peer: Peer, frames: Frames, now: float) -> None:
        """Send the refusal of a request. If a dropped peer can take it, serve that peer again."""
        if peer not in self._dropped:
            self.post(peer, frames, now)
            return
        fate = self._send(peer, frames, sum(map(len, frames)))
        if fate is not SendResult.SENT:
            self._stats.dropped_replies += 1
        if fate is not SendResult.FULL:
            del self._dropped[peer]

    def postpone(self, seconds: float) -> None:
        """Extend all deadlines: the daemon was paused, and could not see any peer read."""
        for backlog in self._backlogs.values():
            backlog.since += seconds

    def retry(self, now: float) -> None:
        """Send as much as possible of each backlog that is due."""
        for peer in [peer for peer, backlog in self._backlogs.items() if backlog.retry <= now]:
            backlog = self._backlogs[peer]
            before = len(backlog.replies)
            fate = self._drain(peer, backlog)
            if fate is SendResult.SENT:
                del self._backlogs[peer]
            elif fate is SendResult.GONE:
                self._discard(peer)
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
            self._drop(
                max(self._backlogs, key=self._share), "of all that do not read it left the most unread"
            )

    def _share(self, peer: Peer) -> float:
        """The peer's part of what all backlogs may hold."""
        backlog = self._backlogs[peer]
        return max(len(backlog.replies) / MAX_BACKLOGS, backlog.nbytes / MAX_BACKLOGS_BYTES)

    def _drain(self, peer: Peer, backlog: _Backlog) -> SendResult:
        while backlog.replies:
            frames, nbytes = backlog.replies[0]
            fate = self._send(peer, frames, nbytes)
            if fate is not SendResult.SENT:
                return fate
            backlog.replies.popleft()
            backlog.nbytes -= nbytes
            self._replies -= 1
            self._bytes -= nbytes
        return SendResult.SENT

    def _drop(self, peer: Peer, why: str) -> None:
        replies = self._discard(peer)
        self._dropped[peer] = None
        if len(self._dropped) > MAX_DROPPED:
            del self._dropped[next(iter(self._dropped))]
        self._stats.dropped_peers += 1
        log.warning("peer dropped", peer=peer, replies=replies, why=why)

    def _discard(self, peer: Peer) -> int:
        backlog = self._backlogs.pop(peer)
        self._replies -= len(backlog.replies)
        self._bytes -= backlog.nbytes
        self._stats.dropped_replies += len(backlog.replies)
        return len(backlog.replies)
