"""CURVE on a daemon's socket: which user a message is from, proved by keys.

Seen with libzmq 4.3: CURVE without a ZAP handler lets everyone in, unless a domain is set and enforced; a
message tells the user id that its connection proved, in half a microsecond; a routing id can be taken over
by another key once it is free. So the user is asked of each message, and never of the routing id; and since
replies go to a routing id, nobody may choose one that another could know.
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

MAX_ADMITTED: Final = 64  # handshakes a turn: strangers who knock never keep the admitted from being served
_CHOSEN: Final = 5  # bytes of a routing id that libzmq chose: 0, and a number that began at random
_ENDPOINT: Final = "inproc://zeromq.zap.01"  # where libzmq asks

log = Log("runnel.serve")


def guard_of(settings: Settings) -> Guard | None:
    """Who guards a daemon of these settings; None where they name no keys. Raises as `Guard` does."""
    return Guard(Path(settings.keys), Path(settings.authorised)) if settings.keys else None


class Guard:
    """Lets into a daemon's socket only those who hold an authorised key.

    `keys`: the daemon's own secret key; `authorised`: the file or folder that lists the users. Raises
    UsageError for either. Belongs to the thread of the socket.
    """

    def __init__(self, keys: Path, authorised: Path) -> None:
        self._keys = read_secret(keys)
        self._authorised = authorised
        self._users: Users = read_users(authorised)
        self._zap: zmq.Socket[bytes] | None = None

    def reload(self) -> None:
        """Read the list of users again: holds for new connections and for the next message of old ones.

        Where it cannot be read, that is logged, and it stays as it was.
        """
        try:
            self._users = read_users(self._authorised)
        except UsageError as error:
            log.error("reload failed: the users stay as they were", error=error.message)
        else:
            log.info("users read again", keys=len(self._users))

    @contextmanager
    def at(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> Iterator[None]:
        """Guard `router`, which is not bound yet; from then on nobody gets in unless `answer` is called."""
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
        """Let nobody in any more. Closing twice is allowed."""
        if self._zap is not None:
            self._zap.close()

    @property
    def users(self) -> int:
        """How many users are on the list."""
        return len(set(self._users.values()))

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """Readable when somebody knocks."""
        assert self._zap is not None, "within `at`"
        return self._zap

    def answer(self) -> None:
        """Answer those who have knocked. Never waits."""
        for _ in range(MAX_ADMITTED):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart(admit(frames, self._users))

    def user(self, peer: bytes, frame: zmq.Frame) -> str:
        """Whose message it is, by its routing id and any of its frames.

        Raises AccessError for a key that is not on the list now, and for a routing id of the peer's own.
        """
        try:
            name = self._users.get(bytes.fromhex(str(frame.get("User-Id"))))
        except zmq.ZMQError:  # libzmq knows no user: not met behind an enforced domain
            name = None
        if name is None:
            raise AccessError("this key is not, or no longer, on the daemon's list of users")
        if len(peer) != _CHOSEN or peer[0]:
            raise AccessError("a routing id was set: leave it to the daemon, another user could take it over")
        return name
