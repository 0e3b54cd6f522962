"""Reading a whole file that somebody names: a regular file only, and no more bytes than it may have.

A pipe would be waited for, a device read without end, and a folder has nothing to read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import RunnelError

_FLAGS = (
    os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
)  # to open a pipe does not wait for its writer
_AT_ONCE = 2**24  # bytes asked for: a file may be shorter than it says


def read(path: str | Path, most: int, what: str, error: type[RunnelError]) -> bytes:
    """The file's bytes. Raises `error`, which names the path and `what` it should be, for what is no file.

    `most`: bytes that the file may have.
    """
    return read_with_mode(path, most, what, error)[0]


def read_with_mode(path: str | Path, most: int, what: str, error: type[RunnelError]) -> tuple[bytes, int]:
    """The same, and the permissions of the file that was read."""
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
        if len(data) > most:  # it grew meanwhile, or said nothing of its size
            raise error(f"{shown}: {what} has at most {most} bytes")
    return bytes(data)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device"
