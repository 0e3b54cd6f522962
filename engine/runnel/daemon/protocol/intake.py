"""What was taken and not yet run: bounded in number and in bytes, for each client, for each user, and in all.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from ...errors import LimitError
from ...wire import messages
from .replies import Peer
from .shares import Places
from .transitions import Event

MAX_PENDING: Final = 16 * 1024  # requests taken and not yet run: about a second of work
MAX_PENDING_PER_PEER: Final = 1024  # one client's share: more than any useful window of requests
MAX_PENDING_BYTES: Final = 256 * 2**20  # tensors taken and not yet run
MAX_PEER_BYTES: Final = 2 * messages.MAX_MESSAGE_BYTES  # one client's share of them
ROOM: Final = messages.MAX_BUNDLE - 1  # of these are kept free: a message is taken whole, or waits outside
ROOM_BYTES: Final = messages.MAX_MESSAGE_BYTES - 1
_NONE: Final = (0, 0)


class Pending(Struct, eq=False, gc=False):
    """A request that was taken. Made for each message: so of the cheapest kind there is."""

    peer: Peer
    user: str
    request: messages.Request
    buffers: Sequence[bytes]
    event: Event
    nbytes: int
    arrived: float
    bundled: bool  # then so is its reply
    steps: int = 0  # time steps of a feed, as it states them
    need: int = 0  # bytes of reply that a feed is expected to make
    held: int = 0  # bytes that it takes until it is answered
    digest: int = 0  # of its event and payload, once it is run


class Intake:
    """Counts the requests that wait, and refuses those that are too many."""

    def __init__(self) -> None:
        self.count = 0
        self.nbytes = 0
        self._of: dict[Peer, tuple[int, int]] = {}  # requests and bytes of each client
        self._requests = Places(MAX_PENDING - ROOM)  # what is taken until it is `full`
        self._bytes = Places(MAX_PENDING_BYTES - ROOM_BYTES)
        self._apart = False  # users are counted separately, once there is one with a name

    @property
    def full(self) -> bool:
        """Whether requests of the next message may be refused: time to run, not to receive."""
        return self.count >= MAX_PENDING - ROOM or self.nbytes >= MAX_PENDING_BYTES - ROOM_BYTES

    @property
    def user_part(self) -> tuple[int, int]:
        """Requests and bytes that each user can count on."""
        return self._requests.part, self._bytes.part

    def expect(self, users: int) -> None:
        """So many users may come; each can count on a share."""
        if users > 1:
            self._count_users()
        self._requests.users = self._bytes.users = users

    def of(self, peer: Peer) -> tuple[int, int]:
        """The client's requests that wait, and the bytes of their tensors."""
        return self._of.get(peer, _NONE)

    def take(self, peer: Peer, user: str, nbytes: int) -> None:
        """Count one request more, with `nbytes` of tensors. Raises LimitError if there is no room."""
        if self.count >= MAX_PENDING or self.nbytes >= MAX_PENDING_BYTES:
            raise LimitError(f"{self.count} requests wait already, {self.nbytes} bytes: try later")
        if user or self._apart:
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
        if self._apart:
            self._requests.take(user)
            self._bytes.take(user, nbytes)
        self._of[peer] = waiting + 1, held + nbytes
        self.count += 1
        self.nbytes += nbytes

    def give(self, peer: Peer, user: str, nbytes: int) -> None:
        """Such a request is done."""
        self.count -= 1
        self.nbytes -= nbytes
        if self._apart:
            self._requests.give(user)
            self._bytes.give(user, nbytes)
        waiting, held = self._of[peer]
        if waiting > 1:
            self._of[peer] = waiting - 1, held - nbytes
        else:
            del self._of[peer]

    def _check_user(self, user: str, nbytes: int) -> None:
        """Raise LimitError if the room left is kept free for other users."""
        self._count_users()
        requests, held = self._requests, self._bytes
        if requests.users > 1 and not (requests.room(user) and held.room(user, nbytes)):
            raise LimitError(
                f"{requests.held(user)} requests of this user wait already, {held.held(user)} bytes, "
                "and the room left is kept free for other users: read replies first"
            )

    def _count_users(self) -> None:
        if not self._apart:
            self._apart = True
            self._requests.take("", self.count)
            self._bytes.take("", self.nbytes)
