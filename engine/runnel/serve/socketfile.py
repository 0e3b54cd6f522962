"""The socket file of an ipc address: taken by one daemon at a time, left behind by none.

libzmq's bind replaces whatever is at the path, a live daemon's socket and a user's file included, and
does not remove the file that it made: seen with libzmq 4.3. So both are done here.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ..errors import UsageError

LOCK_SECONDS: Final = 2.0  # a start holds the folder for milliseconds
_PRIVATE: Final = 0o177  # umask: the owner reads and writes, nobody else connects


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Within it the path is free to bind, and what is bound there is the owner's alone.

    A socket that nobody listens on is removed. Raises UsageError where a live daemon, or something that
    is no socket, is in the way. The folder is locked meanwhile: of two starts at once one is refused.
    """
    folder = _lock(path)
    try:
        _make_way(path)
        before = os.umask(_PRIVATE)
        try:
            yield
        finally:
            os.umask(before)
    finally:
        os.close(folder)


def missing(address: str) -> bool:
    """Whether nothing is where an ipc address says. A tcp address is not looked at."""
    return address.startswith("ipc://") and not _there(Path(address.removeprefix("ipc://")))


def require(address: str) -> None:
    """Raise UsageError if no daemon can be at an ipc address. What is there is not connected to."""
    if not address.startswith("ipc://"):
        return
    path = Path(address.removeprefix("ipc://"))
    if not _there(path):
        raise UsageError(
            f"{address}: there is no socket {path}: is the daemon running there? Its path is `bind` in the "
            "[serve] table, or --bind"
        )
    with suppress(OSError, ValueError):  # not ours to look at, or no path: who connects says what is wrong
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise UsageError(f"{address}: {path} is no socket: expected the path that the daemon binds")


def _there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        pass
    return True


def identity(path: Path) -> tuple[int, int]:
    """Which file it is, whatever its name."""
    found = path.stat()
    return found.st_dev, found.st_ino


def remove(path: Path, ours: tuple[int, int]) -> None:
    """Remove the socket file if it still is the one that we bound."""
    with suppress(FileNotFoundError):
        if identity(path) == ours:
            path.unlink()


def _lock(path: Path) -> int:
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot bind ipc://{path}: {path.parent}: {error.strerror}") from None
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return folder
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(folder)
                raise UsageError(
                    f"cannot bind ipc://{path}: {path.parent} is locked by another start"
                ) from None
            time.sleep(0.01)


def _make_way(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"cannot bind ipc://{path}: a file that is no socket is there; it was left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # left by a daemon that was killed
            return
        except OSError:
            pass  # not allowed to connect, or its backlog is full: somebody is there
    raise UsageError(f"cannot bind ipc://{path}: another daemon is serving there; choose another address")
