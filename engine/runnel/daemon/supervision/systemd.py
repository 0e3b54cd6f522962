"""What systemd is told of a service: sd_notify(3), by hand.

Messages are made by pure functions. `Notifier` sends them, and nothing where no systemd listens. It never
waits: a service that hangs because its supervisor does not read would be the wrong one to suffer.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

from ...errors import UsageError

MAX_STATUS: Final = 200  # characters of a status: one line of `systemctl status`

READY: Final = b"READY=1"
STOPPING: Final = b"STOPPING=1"
WATCHDOG: Final = b"WATCHDOG=1"


def status(text: str) -> bytes:
    """What `systemctl status` shows: one line."""
    return b"STATUS=" + " ".join(text.split())[:MAX_STATUS].encode()


def reloading(now: float) -> bytes:
    """Settings are being read again; READY follows. `now`: seconds of CLOCK_MONOTONIC."""
    return b"RELOADING=1\nMONOTONIC_USEC=%d" % int(now * 1e6)


def joined(*messages: bytes) -> bytes:
    return b"\n".join(messages)


class Notifier:
    """The way to systemd that the environment names, taken out of it: children are not the service.

    `watchdog_seconds`: how often WATCHDOG is expected, half of what systemd waits for; 0.0 for never.
    Raises UsageError for a NOTIFY_SOCKET or WATCHDOG_USEC that cannot be meant.
    """

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        taken = os.environ if environment is None else environment
        self._to = _address(taken.pop("NOTIFY_SOCKET", ""))
        self.watchdog_seconds = _watchdog(taken.pop("WATCHDOG_USEC", ""), taken.pop("WATCHDOG_PID", ""))
        self._socket = None
        if self._to:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def send(self, *messages: bytes) -> None:
        """One datagram. It is lost where systemd is gone, or does not read: the service goes on."""
        if self._socket:
            with suppress(OSError):
                self._socket.sendto(joined(*messages), self._to)

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Notifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _address(text: str) -> str:
    """The socket's address; that of an abstract socket is written with an @."""
    if text and text[0] not in "/@":
        raise UsageError(
            f"NOTIFY_SOCKET={text!r}: expected the path of a socket, or @name of an abstract one; "
            "unset it where no systemd waits for the service"
        )
    return f"\0{text[1:]}" if text.startswith("@") else text


def _watchdog(usec: str, pid: str) -> float:
    if not usec or (pid and pid != str(os.getpid())):  # meant for another process
        return 0.0
    if not usec.isascii() or not usec.isdigit() or not int(usec):
        raise UsageError(f"WATCHDOG_USEC={usec!r}: expected a number of microseconds")
    return int(usec) / 1e6 / 2
