"""Read a whole regular file with a bounded size.

Other kinds are refused: a pipe would block, a device has no end, and a folder has no content.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import RunnelError

# O_NONBLOCK: opening a pipe does not wait for its writer.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_AT_ONCE = 2**24  # bytes per read: a file may be shorter than its stated size


def read(path: str | Path, most: int, what: str, error: type[RunnelError]) -> bytes:
    """Return the file's bytes.

    `most`: the largest size allowed, in bytes. Raises `error`, which names the path and `what` it should be,
    if the path is not such a file.
    """
    return read_with_mode(path, most, what, error)[0]


def read_with_mode(path: str | Path, most: int, what: str, error: type[RunnelError]) -> tuple[bytes, int]:
    """Return the bytes and the permissions of the file that was read."""
    shown = str(path) if str(path).isprintable() else repr(str(path))
    try:
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError) as found:  # ValueError: a path that no file can have
        raise error(f"{shown}: cannot read {what}: {getattr(found, 'strerror', None) or found}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{shown}: {what} is read from a file, and this is {_kind(status.st_mode)}")
        if status.st_size > most:
            raise error(f"{shown}: {status.st_size} bytes; {what} has at most {most}")
        return _read(descriptor, most, shown, what, error), stat.S_IMODE(status.st_mode)
    except OSError as found:
        raise error(f"{shown}: cannot read {what}: {found.strerror or found}") from None
    finally:
        os.close(descriptor)


def _read(descriptor: int, most: int, shown: str, what: str, error: type[RunnelError]) -> bytes:
    data = bytearray()
    while part := os.read(descriptor, min(_AT_ONCE, most + 1 - len(data))):
        data += part
        if len(data) > most:  # the file grew, or its stated size was wrong
            raise error(f"{shown}: {what} has at most {most} bytes")
    return bytes(data)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device"
