"""Notifications to systemd, as sd_notify(3) defines them.

Pure functions make the messages. `Notifier` sends them, or does nothing without systemd. It never waits: a
service must not hang because its supervisor does not read.
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
    """The status line that `systemctl status` shows."""
    return b"STATUS=" + " ".join(text.split())[:MAX_STATUS].encode()


def reloading(now: float) -> bytes:
    """Settings are being read again; READY must follow. `now`: seconds of CLOCK_MONOTONIC."""
    return b"RELOADING=1\nMONOTONIC_USEC=%d" % int(now * 1e6)


def joined(*messages: bytes) -> bytes:
    return b"\n".join(messages)


class Notifier:
    """The socket to systemd, named by the environment.

    Its variables are removed from the environment, since child processes are not the service.

    `watchdog_seconds`: how often WATCHDOG must be sent, half of systemd's time-out; 0.0 for never. Raises
    UsageError for an invalid NOTIFY_SOCKET or WATCHDOG_USEC.
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
        """Send one datagram. It is lost if systemd is gone or does not read; the service continues."""
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
    """The socket's address; that of an abstract socket begins with an @."""
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
