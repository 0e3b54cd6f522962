"""The socket file of an ipc address: taken by one daemon at a time, left behind by none.

libzmq's bind replaces whatever is at the path, a live daemon's socket and a user's file included, and
does not remove the file that it made: seen with libzmq 4.3. So both are done here.

A listening socket is bound beside the path, and renamed to it: whoever looks finds the old one or the new
one, never none.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import UsageError

LOCK_SECONDS: Final = 2.0  # a start holds the folder for milliseconds
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PRIVATE: Final = 0o600  # the owner reads and writes, nobody else connects


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Within it the path is free to bind.

    A socket that nobody listens on is removed. Raises UsageError where a live daemon, or something that
    is no socket, is in the way. The folder is locked meanwhile: of two starts at once one is refused.
    """
    folder = _lock(path)
    try:
        _make_way(path)
        yield
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


@dataclass(frozen=True)
class Replaced:
    """A listening socket whose path another one has taken. Both descriptors belong to the caller.

    `name`: the path that it was bound to. `entry` leads to the socket's file, which has no path any more:
    connecting to ``/proc/self/fd/<entry>`` reaches this socket.
    """

    name: str
    descriptor: int
    entry: int


class SocketFile:
    """A listening Unix socket at a path, which only its owner may connect to, and those that follow it there.

    Each is bound under a name of its own beside the path, and then renamed: whoever looks at the path finds
    the old socket or the new one, and never none. A socket at the path that nobody listens on is replaced.
    Raises UsageError if a live daemon, or something that is no socket, is in the way; OSError if the folder
    takes no socket.
    """

    def __init__(self, path: Path, backlog: int) -> None:
        self._path = path
        self._backlog = backlog
        self._name = f".{secrets.token_hex(4)}"
        self._count = itertools.count()
        with claim(path):
            self._folder = os.open(path.parent, _FOLDER)
            try:
                self.public = self._made(None)  # the one that new clients reach
                self._ours = _identity(path.lstat())
            except BaseException:
                os.close(self._folder)
                raise

    def renew(self) -> Replaced:
        """Put another listening socket under the path, with the mode and the owner that the file has now.

        It is the public one from now on. Clients that wait in the queue of the one before stay there. Raises
        OSError; then all is as it was.
        """
        now = self._path.lstat()
        if _identity(now) != self._ours:
            raise FileExistsError(errno.EEXIST, "the file is gone, or another's")
        entry = os.open(self._path, os.O_PATH | os.O_CLOEXEC)
        try:
            made = self._made(now)
        except BaseException:
            os.close(entry)
            raise
        self._ours = _identity(self._path.lstat())
        before, self.public = self.public, made
        return Replaced(before.getsockname(), before.detach(), entry)

    def close(self) -> None:
        """Close the public socket, and remove the file if it still is ours."""
        self.public.close()
        os.close(self._folder)
        with suppress(FileNotFoundError):
            if _identity(self._path.lstat()) == self._ours:
                self._path.unlink()

    def _made(self, like: os.stat_result | None) -> socket.socket:
        # Relative to the folder, however long its path is: a socket's address has room for 107 bytes.
        name = f"{self._name}.{next(self._count)}"
        beside = Path(f"/proc/self/fd/{self._folder}/{name}")
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.bind(str(beside))
            try:
                # Before it listens: until then nobody can connect.
                if like is not None and (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
                    with suppress(OSError):  # an owner that only root could give again
                        os.chown(beside, like.st_uid, like.st_gid)
                beside.chmod(_PRIVATE if like is None else stat.S_IMODE(like.st_mode))
                made.listen(self._backlog)
                beside.rename(self._path)
            except BaseException:
                beside.unlink()
                raise
        except BaseException:
            made.close()
            raise
        return made


def _identity(found: os.stat_result) -> tuple[int, int]:
    """Which file it is, whatever its name."""
    return found.st_dev, found.st_ino


def _lock(path: Path) -> int:
    try:
        folder = os.open(path.parent, _FOLDER)
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


def taken(path: Path) -> bool:
    """Whether somebody serves there. Raises UsageError if no socket can be put there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise UsageError(f"cannot bind ipc://{path}: {path.parent} is no folder") from None
        return False
    except OSError as error:
        raise UsageError(f"cannot bind ipc://{path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"cannot bind ipc://{path}: a file that is no socket is there; it was left alone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False  # left by a daemon that was killed
        except OSError:
            pass  # not allowed to connect, or its backlog is full: somebody is there
    return True


def _make_way(path: Path) -> None:
    if taken(path):
        raise UsageError(f"cannot bind ipc://{path}: another daemon is serving there; choose another address")
    path.unlink(missing_ok=True)
