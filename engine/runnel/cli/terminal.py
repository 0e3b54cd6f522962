"""A terminal as a screen: draw frames, read keys, restore everything on exit."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Sequence
from typing import Final, TextIO

from ..shown import bare

_ENTER: Final = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"
_SIZE_CHECK_SECONDS: Final = 0.2  # how often the size is checked: fast enough for the eye


class Screen:
    """``with Screen() as screen:`` draws on the terminal of stdout, and reads keys from stdin.

    Ctrl-Z releases the terminal while the program is stopped. Only for the main thread.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = bare(out or sys.stdout)
        self._keys = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._keys)

    @property
    def size(self) -> tuple[int, int]:
        """Current columns and lines."""
        found = os.get_terminal_size(self._out.fileno())
        return max(1, found.columns), max(1, found.lines)

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the content of the screen."""
        height = self.size[1]
        # Clear each line before writing it. Clearing after the last column would delete the last character.
        body = "\n".join(_REST_OF_LINE + line for line in lines[:height])
        self._out.write(_HOME + body + ("\n" + _REST_OF_SCREEN if len(lines) < height else ""))
        self._out.flush()

    def wait(self, seconds: float) -> str:
        """Wait for a key, a change of size, or the time-out; return the key, "resized", or ""."""
        before, deadline = self.size, time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._keys], [], [], min(left, _SIZE_CHECK_SECONDS))[0]:
                return os.read(self._keys, 1).decode("latin-1") or "q"  # end of input: the terminal is gone
            if self.size != before:
                return "resized"
        return ""

    def __enter__(self) -> Screen:
        self._suspended = signal.signal(signal.SIGTSTP, self._suspend)
        self._enter()
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTSTP, self._suspended)
        self._leave()

    def _enter(self) -> None:
        tty.setcbreak(self._keys)
        self._out.write(_ENTER)
        self._out.flush()

    def _leave(self) -> None:
        self._out.write(_LEAVE)
        self._out.flush()
        termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    def _suspend(self, *_: object) -> None:
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()
