"""CURVE authentication on a daemon's socket: keys prove which user sent a message.

Seen with libzmq 4.3: CURVE without a ZAP handler admits everyone, unless a domain is set and enforced. Each
message carries the user id that its connection proved; reading it takes half a microsecond. A routing id can
be taken over by another key once it is free. So the user is read from each message, and never derived from
the routing id. Replies are sent to a routing id, so a client may not choose one that others could guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import zmq

from ..errors import AccessError, UsageError
from ..wire.keys import Users, read_secret, read_users
from .logs import Log
from .zap import DOMAIN, admit

if TYPE_CHECKING:
    from .settings import Settings

MAX_ADMITTED: Final = 64  # handshakes a turn: strangers who connect never keep admitted clients waiting
_CHOSEN: Final = 5  # bytes of a routing id chosen by libzmq: 0, then a counter with a random start
_ENDPOINT: Final = "inproc://zeromq.zap.01"  # where libzmq sends ZAP requests

log = Log("runnel.serve")


def authenticator_for(settings: Settings) -> Authenticator | None:
    """The authenticator for these settings; None if they name no keys. Raises as `Authenticator` does."""
    return Authenticator(Path(settings.keys), Path(settings.authorised)) if settings.keys else None


class Authenticator:
    """Admits only clients that hold an authorised key.

    `keys`: the daemon's own secret key. `authorised`: the file or folder that lists the users. Raises
    UsageError for either. Belongs to the thread of the socket.
    """

    def __init__(self, keys: Path, authorised: Path) -> None:
        self._keys = read_secret(keys)
        self._authorised = authorised
        self._users: Users = read_users(authorised)
        self._zap: zmq.Socket[bytes] | None = None

    def reload(self) -> None:
        """Read the list of users again. It applies to new connections, and to the next message of old ones.

        If the list cannot be read, that is logged, and the old list stays in force.
        """
        try:
            self._users = read_users(self._authorised)
        except UsageError as error:
            log.error("reload failed: the users stay as they were", error=error.message)
        else:
            log.info("users read again", keys=len(self._users))

    @contextmanager
    def at(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> Iterator[None]:
        """Authenticate clients of `router`, which is not bound yet.

        No client is admitted until `answer` is called.
        """
        self._zap = context.socket(zmq.REP)
        try:
            self._zap.linger = 0
            self._zap.bind(_ENDPOINT)
            router.curve_server = 1
            router.curve_secretkey = self._keys.secret.encode()
            router.zap_domain = DOMAIN
            router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Admit no more clients. Closing twice is allowed."""
        if self._zap is not None:
            self._zap.close()

    @property
    def users(self) -> int:
        """Number of users on the list."""
        return len(set(self._users.values()))

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """Readable when a handshake waits for an answer."""
        assert self._zap is not None, "within `at`"
        return self._zap

    def answer(self) -> None:
        """Answer the waiting handshakes. Never waits."""
        for _ in range(MAX_ADMITTED):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart(admit(frames, self._users))

    def user(self, peer: bytes, frame: zmq.Frame) -> str:
        """Return the user who sent a message, from its routing id and any of its frames.

        Raises AccessError if the key is not on the current list, or if the peer chose its own routing id.
        """
        try:
            name = self._users.get(bytes.fromhex(str(frame.get("User-Id"))))
        except zmq.ZMQError:  # no user id: never seen behind an enforced domain
            name = None
        if name is None:
            raise AccessError("this key is not, or no longer, on the daemon's list of users")
        if len(peer) != _CHOSEN or peer[0]:
            raise AccessError("a routing id was set: leave it to the daemon, another user could take it over")
        return name
