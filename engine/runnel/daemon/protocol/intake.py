"""Bounds on queued requests, in number and bytes: per client, per user, in total.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from ...errors import LimitError
from ...wire import messages
from .outgoing import Peer
from .shares import Quota
from .transitions import Event

MAX_PENDING: Final = 16 * 1024  # queued requests: about a second of work
MAX_PENDING_PER_PEER: Final = 1024  # of one client: more than any useful window of requests
MAX_PENDING_BYTES: Final = 256 * 2**20  # bytes of all queued tensors
MAX_PEER_BYTES: Final = 2 * messages.MAX_MESSAGE_BYTES  # bytes of one client's queued tensors
# Kept free, so that a bundle is taken whole or waits in the socket.
SPARE_REQUESTS: Final = messages.MAX_BUNDLE - 1
SPARE_BYTES: Final = messages.MAX_MESSAGE_BYTES - 1
_NONE: Final = (0, 0)


class QueuedRequest(Struct, eq=False, gc=False):
    """A queued request. One is made for each message, so the type is the cheapest there is."""

    peer: Peer
    user: str
    request: messages.Request
    buffers: Sequence[bytes]
    event: Event
    nbytes: int
    arrived: float
    bundled: bool  # then the reply travels in a bundle too
    steps: int = 0  # time steps of a feed, as the request states them
    need: int = 0  # bytes of reply that a feed is expected to make
    held: int = 0  # bytes that the feed takes until it is answered
    digest: int = 0  # digest of the event and payload; set when the request is run


class Intake:
    """Counts queued requests, and refuses those above a bound."""

    def __init__(self) -> None:
        self.count = 0
        self.nbytes = 0
        self._of: dict[Peer, tuple[int, int]] = {}  # requests and bytes of each client
        self._requests = Quota(MAX_PENDING - SPARE_REQUESTS)  # the capacity up to `full`
        self._bytes = Quota(MAX_PENDING_BYTES - SPARE_BYTES)
        self._per_user = False  # count each user separately; set by the first user with a name

    @property
    def full(self) -> bool:
        """Whether requests of the next message may be refused: then run before receiving more."""
        return self.count >= MAX_PENDING - SPARE_REQUESTS or self.nbytes >= MAX_PENDING_BYTES - SPARE_BYTES

    @property
    def user_share(self) -> tuple[int, int]:
        """Requests and bytes that each user can count on."""
        return self._requests.part, self._bytes.part

    def expect_users(self, users: int) -> None:
        """Set how many users may come; each can count on a share."""
        if users > 1:
            self._count_users()
        self._requests.users = self._bytes.users = users

    def of(self, peer: Peer) -> tuple[int, int]:
        """Return the number of the client's queued requests, and the bytes of their tensors."""
        return self._of.get(peer, _NONE)

    def take(self, peer: Peer, user: str, nbytes: int) -> None:
        """Count one more request, with `nbytes` of tensors. Raises LimitError if there is no room."""
        if self.count >= MAX_PENDING or self.nbytes >= MAX_PENDING_BYTES:
            raise LimitError(f"{self.count} requests wait already, {self.nbytes} bytes: try later")
        if user or self._per_user:
            self._check_user(user, nbytes)
        waiting, held = self._of.get(peer, _NONE)
        if waiting >= MAX_PENDING_PER_PEER:
            raise LimitError(
                f"{MAX_PENDING_PER_PEER} of this client's requests wait already: read replies first"
            )
        if held and held + nbytes > MAX_PEER_BYTES:
            raise LimitError(
                f"{held} bytes of this client's requests wait already, at most {MAX_PEER_BYTES} may: "
                "read replies first"
            )
        if self._per_user:
            self._requests.take(user)
            self._bytes.take(user, nbytes)
        self._of[peer] = waiting + 1, held + nbytes
        self.count += 1
        self.nbytes += nbytes

    def give(self, peer: Peer, user: str, nbytes: int) -> None:
        """Release the room of a request that is done."""
        self.count -= 1
        self.nbytes -= nbytes
        if self._per_user:
            self._requests.give(user)
            self._bytes.give(user, nbytes)
        waiting, held = self._of[peer]
        if waiting > 1:
            self._of[peer] = waiting - 1, held - nbytes
        else:
            del self._of[peer]

    def _check_user(self, user: str, nbytes: int) -> None:
        """Raise LimitError if the remaining room is reserved for other users."""
        self._count_users()
        requests, held = self._requests, self._bytes
        if requests.users > 1 and not (requests.has_room(user) and held.has_room(user, nbytes)):
            raise LimitError(
                f"{requests.held(user)} requests of this user wait already, {held.held(user)} bytes, "
                "and the room left is kept free for other users: read replies first"
            )

    def _count_users(self) -> None:
        if not self._per_user:
            self._per_user = True
            self._requests.take("", self.count)
            self._bytes.take("", self.nbytes)
