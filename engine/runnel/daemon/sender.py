"""Sending on a ROUTER without waiting, and with a bound on what libzmq keeps for a peer that does not read.

libzmq bounds a peer's queue by messages, and a reply may have many megabytes. So a large reply is handed
over as it is, not copied, with a tracker that says when libzmq has let go of it: what it still holds of
them is known, and bounded by bytes. Small ones are bounded by their number.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import zmq

from .protocol.intake import MAX_PENDING_PER_PEER
from .protocol.outbox import Fate, Frames, Peer

QUEUED_REPLIES: Final = 2 * MAX_PENDING_PER_PEER  # a peer's: more than it may have requests
LARGE: Final = 32 * 1024  # bytes: above it, not copying pays for the tracker (seen on Linux, pyzmq 27.3)
MAX_HELD: Final = 64 * 2**20  # bytes of large replies that libzmq holds for one peer
_FIRST_SWEEP: Final = 256  # peers remembered for their large replies before those done with are forgotten

_LAST: Final = int(zmq.NOBLOCK)  # plain integers: an IntFlag costs a microsecond each time
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


class Sender:
    """Sends replies on a socket that belongs to the caller's thread."""

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else what cannot be sent vanishes without a word
        router.setsockopt(zmq.SNDHWM, QUEUED_REPLIES)
        router.copy_threshold = 0  # whatever is tracked is not copied: a copy is let go of at once
        self._send = router.send
        self._held: dict[Peer, deque[tuple[int, zmq.MessageTracker]]] = {}
        self._sweep_at = _FIRST_SWEEP

    def __call__(self, peer: Peer, frames: Frames, nbytes: int) -> Fate:
        """Send one reply, or not a byte of it."""
        large = nbytes > LARGE
        if large and self._holds(peer, nbytes) > MAX_HELD:
            return Fate.FULL
        send = self._send
        try:
            send(peer, _MORE)
        except zmq.ZMQError as error:
            if error.errno == zmq.EAGAIN:
                return Fate.FULL
            if error.errno == zmq.EHOSTUNREACH:
                return Fate.GONE
            raise
        for frame in frames[:-1]:  # once the first part has passed, libzmq takes the others
            send(frame, _MORE)
        if large:
            self._held[peer].append((nbytes, send(frames[-1], _LAST, copy=False, track=True)))
        else:
            send(frames[-1], _LAST)
        return Fate.SENT

    def held(self, peer: Peer) -> int:
        """Bytes of large replies that libzmq still holds for the peer."""
        held = self._held.get(peer)
        while held and held[0][1].done:
            held.popleft()
        return sum(nbytes for nbytes, _ in held) if held else 0

    def _holds(self, peer: Peer, more: int) -> int:
        """Bytes of large replies that libzmq would hold for the peer with `more`; any one may pass."""
        if len(self._held) >= self._sweep_at:
            self._held = {p: held for p, held in self._held.items() if held and not held[-1][1].done}
            self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._held))
        self._held.setdefault(peer, deque())
        held = self.held(peer)
        return held + more if held else 0
