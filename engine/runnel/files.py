"""Input read as it arrives, and output files that appear only when complete.

For authors of sources and sinks. ``-`` as a path, or None, is standard input or output.
"""

from __future__ import annotations

import codecs
import os
import stat
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO, cast

from .errors import UsageError
from .shown import for_data

STDIO: Final = "-"
MAX_LINE: Final = 2**20  # characters: a row of a table with 100,000 columns
_READ: Final = 2**16  # bytes per read: the size of a pipe's buffer


def warn(text: str) -> None:
    """Print a warning on standard error."""
    print(f"runnel: warning: {text}", file=sys.stderr)


def library(name: str, what: str, extra: str) -> Any:
    """Import an optional library that `what` needs; UsageError names the `extra` that installs it."""
    try:
        return import_module(name)
    except (ImportError, OSError) as error:  # OSError: the package is installed, but its C library is not
        package = name.partition(".")[0]
        raise UsageError(
            f"{what} need the package {package} ({error}): pip install 'runnel[{extra}]'"
        ) from None


def is_stdio(path: Path | None) -> bool:
    return path is None or path.name == STDIO


class Input:
    """Bytes of a file, a pipe, a device or standard input, as they arrive.

    `live`: the bytes arrive over time, as from a pipe. Raises UsageError if the input cannot be read.
    """

    def __init__(self, path: Path | None) -> None:
        self.name = "standard input" if is_stdio(path) else str(path)
        self._owned = not is_stdio(path)
        try:
            self.fd = _open(cast(Path, path)) if self._owned else 0
            status = os.fstat(self.fd)
        except OSError as error:
            raise UsageError(f"{self.name}: cannot read it: {error.strerror or error}") from None
        self.live = not stat.S_ISREG(status.st_mode)
        self._size, self._read = status.st_size, 0

    @property
    def share(self) -> float | None:
        """The share that was read, 0 to 1; None if the size is not known."""
        return None if self.live else min(1.0, self._read / max(1, self._size))

    def read(self, most: int) -> bytes:
        """Return 1 to `most` bytes, as soon as any are there; none at the end."""
        try:
            data = os.read(self.fd, most)
        except OSError as error:
            raise UsageError(f"{self.name}: cannot read it: {error.strerror or error}") from None
        self._read += len(data)
        return data

    def close(self) -> None:
        if self._owned:
            os.close(self.fd)


def _open(path: Path) -> int:
    """Open without blocking (a serial port would wait for a carrier); then make reads blocking."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(0, "Is a directory")
    device = os.O_NONBLOCK if stat.S_ISCHR(mode) else 0
    fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC | device)
    os.set_blocking(fd, True)
    return fd


def regular(path: Path, kind: str) -> Path:
    """Return `path` if it is a regular file; else raise UsageError with the `kind`."""
    try:
        odd = not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode)
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror or error}") from None
    if odd:
        raise UsageError(f"{path}: {kind} is read from a file, and this is a pipe or a device")
    Input(path).close()  # a folder or a missing permission: the usual error text
    return path


class Lines(Iterator[str]):
    """Lines of text as they arrive, with their line ends.

    The text is UTF-8, or UTF-16 with a byte order mark. `more`: whether the next line is available without
    waiting. Raises UsageError for a line longer than `MAX_LINE`, and for bytes in another encoding.
    """

    def __init__(self, source: Input) -> None:
        self._source = source
        self._decoder: codecs.IncrementalDecoder | None = None
        self._ready: deque[str] = deque()
        self._rest = ""
        self._count = 0  # lines returned, for errors
        self._ended = False

    @property
    def more(self) -> bool:
        return bool(self._ready) or not self._source.live

    def __next__(self) -> str:
        while not self._ready:
            if self._ended:
                raise StopIteration
            self._fill()
        self._count += 1
        return self._ready.popleft()

    def _fill(self) -> None:
        data = self._source.read(_READ)
        if self._decoder is None:
            while len(data) == 1 and (more := self._source.read(1)):  # the mark may arrive in two parts
                data += more
            kind = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
            self._decoder = codecs.getincrementaldecoder(kind)()
        try:
            text = self._rest + self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise UsageError(self._undecoded(error)) from None
        if not data:
            self._ended, self._rest = True, ""
            self._ready.extend([text] if text else [])
            return
        *lines, self._rest = text.split("\n")
        self._ready.extend(line + "\n" for line in lines)
        if len(self._rest) > MAX_LINE:
            raise UsageError(f"{self._source.name}: a line of more than {MAX_LINE} characters")

    def _undecoded(self, error: UnicodeDecodeError) -> str:
        name = self._source.name
        line = self._count + 1 + bytes(error.object[: error.start]).count(b"\n")
        if error.encoding.startswith("utf-16"):
            return f"{name}: not a text in UTF-16, though it begins with a mark of it: {error.reason}"
        byte = error.object[error.start]
        return (
            f"{name}: not a text in UTF-8: byte 0x{byte:02x} in line {line}. If it was saved as Latin-1 or "
            "Windows-1252, save it as UTF-8: iconv -f windows-1252 -t utf-8 converts it"
        )


class OutputFile:
    """A file that appears under its name only when complete.

    Until then it is hidden beside that name. A previous file of that name stays until then, and stays if the
    run fails. A file that is never closed is removed. A pipe or a device is written directly. Raises
    UsageError if the path cannot be written, or if `seek` is set and the path does not allow seeking.
    """

    def __init__(self, path: Path, seek: bool = False) -> None:
        self.path = path
        try:
            self.device = path.exists() and not path.is_file()
        except OSError as error:
            raise UsageError(f"{path}: cannot write it: {error.strerror or error}") from None
        if self.device and seek:
            raise UsageError(
                f"{path}: this kind of file is finished at its beginning, which a pipe or a device does not "
                "allow: write a table or JSON lines, or to a file"
            )
        self._part = path if self.device else path.with_name(f".{path.name}.{os.getpid()}.part")
        # Before the file is made: a signal may interrupt the caller before it can close this.
        self._remove = weakref.finalize(self, _unlink, None if self.device else self._part)
        try:
            self.file: BinaryIO = self._part.open("wb" if self.device else "xb")
        except OSError as error:
            self._remove.detach()  # the part file belongs to another writer
            raise UsageError(f"{path}: cannot write it: {error.strerror or error}") from None

    def close(self, whole: bool) -> None:
        """Move the file to its name, or remove it.

        Raises OSError if the disk is full; the file is then removed.
        """
        try:
            self.file.close()
            if whole and not self.device:
                os.replace(self._part, self.path)
        finally:
            self._remove()


def _unlink(part: Path | None) -> None:
    if part is not None:
        part.unlink(missing_ok=True)


class OutputText:
    """Text in UTF-8, written to an `OutputFile` or, if `stdio`, to standard output."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if is_stdio(path) else OutputFile(cast(Path, path))
        self.stdio = self._file is None
        self.text: TextIO = (
            for_data(sys.stdout)
            if self._file is None
            else TextIOWrapper(self._file.file, "utf-8", newline="")
        )

    def close(self, whole: bool) -> None:
        """Close as `OutputFile.close`; standard output is only flushed."""
        if self._file is None:
            if whole:
                self.text.flush()
            return
        try:
            cast(TextIOWrapper, self.text).detach()  # this flushes
        except BaseException:
            self._file.close(False)
            raise
        self._file.close(whole)
