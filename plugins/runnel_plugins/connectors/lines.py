"""Lines of numbers from a device at a serial port: ``21.5, 40.1``.

The device is a microcontroller, a scale or a meter. One line per time step; the numbers are separated by
commas, semicolons or blanks. Bytes may arrive in any parts: a time step is passed on when its line has ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from runnel import Signal, Source, hookimpl
from runnel.columns import pack
from runnel.errors import UsageError
from runnel.files import Input, warn
from runnel.hookspecs import SourceFactory
from runnel.stage import Chunk
from runnel_plugins.connectors.cells import Row, read_cell

MAX_LINE: Final = 2**16  # bytes: a line with thousands of numbers; a longer line is not one of numbers
_READ: Final = 2**16  # bytes per read
_APART: Final = re.compile(r"\s*[,;]\s*|\s+")
_SHOWN: Final = 60  # characters of a malformed line in the report
_SPEEDS: Final = sorted(int(name[1:]) for name in dir(termios) if re.fullmatch(r"B[1-9]\d*", name))


class LinesSource(Source):
    """Read live lines of numbers from a serial port, a pipe, or standard input without a path.

    Each line has as many numbers as a time step of the pipeline's input, separated by commas, semicolons or
    blanks. `baud`: a serial port's speed. The port is set to 8 bits, no parity, one stop bit; its old input
    is dropped, with the line that is cut there. `malformed`: "skip" leaves malformed lines out, and reports
    their number at the end; "refuse" ends the run. Blank lines are ignored. A pipeline's float64 input
    ``time`` is filled with the arrival time of the line, in seconds since 1970.
    """

    def __init__(
        self,
        signal: Signal,
        path: Path | None = None,
        baud: int | None = None,
        malformed: Literal["skip", "refuse"] = "skip",
    ) -> None:
        self._input = Input(path)
        self.name = self._input.name
        self.live = self._input.live
        self._signal, self._refuse = signal, malformed == "refuse"
        self._row = Row(self.name, signal, "time")
        self._count = self._bad = 0
        self._first_bad = ""
        self._before: list[Any] | None = None
        self._cut = False  # whether the current line began before the port was opened
        try:
            mode = os.fstat(self._input.fd).st_mode
            if path is not None and stat.S_ISCHR(mode) and os.isatty(self._input.fd):
                self._open_port(baud)
            elif baud is not None:
                raise UsageError(f"{self.name}: baud is for a serial port, which this is not")
        except BaseException:
            self.close()
            raise

    def chunks(self, block: int) -> Iterator[Chunk]:
        rest = b""
        overlong = False
        while data := self._read():
            now = time.time()
            *lines, rest = (rest + data).split(b"\n")
            if lines and self._cut:
                self._cut = False
                del lines[0]
            if lines and overlong:
                overlong = False
                self._malformed(lines.pop(0), f"more than {MAX_LINE} bytes")
            if len(rest) > MAX_LINE:
                overlong, rest = True, rest[:_SHOWN]
            yield from self._packed(lines, block, now)
        if rest and not self._cut:
            yield from self._packed([rest], block, time.time())

    def close(self) -> None:
        if self._before is not None:
            with contextlib.suppress(termios.error):  # unplugged
                termios.tcsetattr(self._input.fd, termios.TCSANOW, self._before)
            self._before = None
        self._input.close()
        if self._bad:
            warn(
                f"{self.name}: {self._bad} of {self._count} lines were left out; the first, {self._first_bad}"
            )

    def _read(self) -> bytes:
        """Return the available bytes; none at the end.

        An unplugged port counts as the end, so that the data read so far is not lost.
        """
        why = "hung up"
        try:
            data = os.read(self._input.fd, _READ)
        except OSError as error:
            data, why = b"", error.strerror or str(error)
        if not data and self._before is not None:
            warn(f"{self.name}: it is gone: {why}")
        return data

    def _packed(self, lines: Sequence[bytes], block: int, now: float) -> Iterator[Chunk]:
        rows, refused = [], None
        for line in lines:
            try:
                row = self._numbers(line, now)
            except UsageError as error:  # the rows before it were valid, and count
                refused = error
                break
            if row is not None:
                rows.append(row)
        for start in range(0, len(rows), block):
            self.stamp = now
            try:
                yield pack(rows[start : start + block], self._signal)
            except OverflowError as error:
                raise UsageError(f"{self.name}: up to line {self._count}: {error}") from None
        if refused is not None:
            raise refused

    def _numbers(self, line: bytes, now: float) -> Sequence[float] | None:
        text = line.decode("utf-8", "replace").strip()
        if not text:
            return None
        cells = _APART.split(text.strip(",; "))
        wanted = len(self._row.whole)
        if len(cells) != wanted:
            self._malformed(line, f"{len(cells)} numbers, not {wanted}")
            return None
        try:
            numbers = [read_cell(cell, whole) for cell, whole in zip(cells, self._row.whole, strict=True)]
        except ValueError as error:
            self._malformed(line, str(error))
            return None
        self._count += 1
        return self._row.full(numbers, now)

    def _malformed(self, line: bytes, why: str) -> None:
        self._count += 1
        shown = line[:_SHOWN].decode("utf-8", "replace").strip()
        where = f"line {self._count}: {shown!r}: {why}"
        if self._refuse:
            raise UsageError(f"{self.name}: {where}")
        if not self._bad and self.live:  # now: if all lines are malformed, no other report may come
            warn(f"{self.name}: a line was left out; such lines are counted. {where}")
        self._bad += 1
        self._first_bad = self._first_bad or where

    def _open_port(self, baud: int | None) -> None:
        """Set the port to pass bytes unchanged, as soon as they arrive; `close` restores it."""
        fd = self._input.fd
        try:
            self._before = termios.tcgetattr(fd)
            attributes = termios.tcgetattr(fd)
        except termios.error as error:
            raise UsageError(f"{self.name}: not a serial port: {error}") from None
        iflag, oflag, cflag, lflag, ispeed, ospeed, cc = range(7)
        attributes[iflag] = termios.IGNBRK
        attributes[oflag] = 0
        attributes[lflag] = 0
        attributes[cflag] &= ~(termios.CSIZE | termios.PARENB | termios.CSTOPB)
        attributes[cflag] |= termios.CS8 | termios.CREAD | termios.CLOCAL  # CLOCAL: works without a carrier
        attributes[cc][termios.VMIN], attributes[cc][termios.VTIME] = 1, 0
        if baud is not None:
            if baud not in _SPEEDS:
                near = min(_SPEEDS, key=lambda speed: abs(speed - baud))
                raise UsageError(f"{self.name}: no port has the speed baud = {baud}; the nearest is {near}")
            attributes[ispeed] = attributes[ospeed] = getattr(termios, f"B{baud}")
        try:
            termios.tcsetattr(fd, termios.TCSANOW, attributes)
            termios.tcflush(fd, termios.TCIFLUSH)
        except termios.error as error:
            raise UsageError(f"{self.name}: it cannot be set to that: {error}") from None
        self._cut = True


@hookimpl
def runnel_sources() -> Mapping[str, SourceFactory]:
    return {"lines": LinesSource}
