"""Send on a ROUTER without waiting, with a bound on what libzmq queues for a slow peer.

libzmq bounds a peer's queue by messages, but one reply may have many megabytes. So a large reply is passed to
libzmq without a copy, with a tracker that shows when libzmq has released it. The bytes that libzmq still
holds are thereby known, and bounded. Small replies are bounded by their number.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import zmq

from .protocol.intake import MAX_PENDING_PER_PEER
from .protocol.outbox import Frames, Peer, SendResult

QUEUED_REPLIES: Final = 2 * MAX_PENDING_PER_PEER  # of one peer: more than its possible requests
LARGE: Final = 32 * 1024  # bytes: above it, saving the copy pays for the tracker (seen with pyzmq 27.3)
MAX_HELD: Final = 64 * 2**20  # bytes of large replies that libzmq holds for one peer
_FIRST_SWEEP: Final = 256  # peers with large replies, before the finished ones are removed

_LAST: Final = int(zmq.NOBLOCK)  # plain integers: an IntFlag costs a microsecond each time
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


class Sender:
    """Sends replies on a socket that belongs to the caller's thread."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else an undeliverable reply disappears silently
        router.setsockopt(zmq.SNDHWM, QUEUED_REPLIES)
        router.copy_threshold = 0  # do not copy a tracked frame: a copy is released at once
        self._send = router.send
        self._held: dict[Peer, deque[tuple[int, zmq.MessageTracker]]] = {}
        self._sweep_at = _FIRST_SWEEP

    def __call__(self, peer: Peer, frames: Frames, nbytes: int) -> SendResult:
        """Send one reply completely, or not at all."""
        large = nbytes > LARGE
        if large and self._holds(peer, nbytes) > MAX_HELD:
            return SendResult.FULL
        send = self._send
        try:
            send(peer, _MORE)
        except zmq.ZMQError as error:
            if error.errno == zmq.EAGAIN:
                return SendResult.FULL
            if error.errno == zmq.EHOSTUNREACH:
                return SendResult.GONE
            raise
        for frame in frames[:-1]:  # once libzmq accepted the first frame, it accepts the others
            send(frame, _MORE)
        if large:
            self._held[peer].append((nbytes, send(frames[-1], _LAST, copy=False, track=True)))
        else:
            send(frames[-1], _LAST)
        return SendResult.SENT

    def held(self, peer: Peer) -> int:
        """Bytes of large replies that libzmq still holds for the peer."""
        held = self._held.get(peer)
        while held and held[0][1].done:
            held.popleft()
        return sum(nbytes for nbytes, _ in held) if held else 0

    def _holds(self, peer: Peer, more: int) -> int:
        """Bytes that libzmq would hold for the peer with `more`; 0 if it holds none now.

        So a single reply of any size may pass.
        """
        if len(self._held) >= self._sweep_at:
            self._held = {p: held for p, held in self._held.items() if held and not held[-1][1].done}
            self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._held))
        self._held.setdefault(peer, deque())
        held = self.held(peer)
        return held + more if held else 0
