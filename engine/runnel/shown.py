"""What a terminal is shown: text in which nothing can act on the terminal.

Names and messages come from files and from daemons. A control sequence in one of them could set the window's
title, hide a line, or write another one. `guarded` puts a stream that escapes them in place of standard
output and standard error, so that no command can forget it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# Control characters but a tab and the end of a line, marks that turn the direction of text or end a line,
# characters that no terminal shows (tags), and halves of a surrogate pair, which cannot be encoded.
_ACTS = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff"
    "\\ud800-\\udfff\\U000e0000-\\U000e007f]|\\r(?!\\n)"
)
_ENDS = re.compile(r"[\t\r\n]")


def visible(text: str) -> str:
    """The text with whatever could act on a terminal escaped as in JSON: ``\\u001b``."""
    return _ACTS.sub(_escaped, text)


def one_line(text: str) -> str:
    """The same for a text that must not be more than a line: tabs and ends of lines are escaped too."""
    return _ENDS.sub(_escaped, visible(text))


class Guarded:
    """A text stream that makes all that is written to it visible; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.bare = stream

    def write(self, text: str) -> int:
        safe = visible(text)
        encoding = self.bare.encoding or "utf-8"
        # Some terminals have few characters: what they lack is escaped, and ends no command.
        self.bare.write(safe.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)


def bare(stream: TextIO) -> TextIO:
    """The stream without its guard: for a program's own control sequences."""
    return cast(TextIO, getattr(stream, "bare", stream))


def for_data(stream: TextIO) -> TextIO:
    """The stream for a program's results: guarded on a terminal, as they are for another program."""
    return stream if stream.isatty() else bare(stream)


@contextmanager
def guarded() -> Iterator[None]:
    """Within it what is printed on standard output and standard error cannot act on a terminal."""
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
    if code > 0xFFFF:  # as JSON has it: two halves
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"
