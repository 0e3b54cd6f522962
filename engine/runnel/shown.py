"""Text that is safe to show on a terminal.

Names and messages come from files and from daemons. A control sequence in one of them could set the window's
title, hide a line, or write another one. `guarded` replaces standard output and standard error by streams
that escape control sequences, so that every command is protected.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# Control characters except a tab and line ends, marks that change the direction of text or end a line,
# invisible characters (tags), and lone surrogates, which cannot be encoded.
_ACTS = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff"
    "\\ud800-\\udfff\\U000e0000-\\U000e007f]|\\r(?!\\n)"
)
_ENDS = re.compile(r"[\t\r\n]")


def visible(text: str) -> str:
    """Escape characters that can act on a terminal, as in JSON: ``\\u001b``."""
    return _ACTS.sub(_escaped, text)


def one_line(text: str) -> str:
    """Escape the same characters, and also tabs and line ends."""
    return _ENDS.sub(_escaped, visible(text))


class Guarded:
    """A text stream that escapes what is written; every other attribute is the wrapped stream's."""

    def __init__(self, stream: TextIO) -> None:
        self.bare = stream

    def write(self, text: str) -> int:
        safe = visible(text)
        encoding = self.bare.encoding or "utf-8"
        # If the terminal's encoding lacks a character, it is escaped; a command never fails for it.
        self.bare.write(safe.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)


def bare(stream: TextIO) -> TextIO:
    """Return the unguarded stream, for a program's own control sequences."""
    return cast(TextIO, getattr(stream, "bare", stream))


def for_data(stream: TextIO) -> TextIO:
    """Return the stream for a program's results: guarded only if it is a terminal."""
    return stream if stream.isatty() else bare(stream)


@contextmanager
def guarded() -> Iterator[None]:
    """Escape all that is printed on standard output and standard error within the block."""
    before = sys.stdout, sys.stderr
    if sys.stdout is not None:
        sys.stdout = cast(TextIO, Guarded(bare(sys.stdout)))
    if sys.stderr is not None:
        sys.stderr = cast(TextIO, Guarded(bare(sys.stderr)))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code > 0xFFFF:  # JSON writes two halves
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"
