"""How far an export is: one line, rewritten in place, on a terminal or in a notebook; elsewhere nothing."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

_BAR = 20  # characters
_SOON = 2.0  # seconds before which no time left is shown: the export may be over by then
_KNOWN = 0.25  # of the whole, before which too little has been seen to say how long the rest takes

Say = Callable[[str], None]

LIFTING, RUNNING = "lifting the state out of the module", "running the original"
PROVING, SEALING = "proving the float32 model", "verifying the file as it is written"
PROVING_INT8 = "proving the int8 model"
PROVING_PROBE, SEALING_PROBE = "proving the probe", "verifying the probe as it is written"

# What a stage takes of a typical export, and how many lines it says meanwhile.
_WEIGHTS = {
    LIFTING: (20, 1),
    RUNNING: (50, 4),
    PROVING: (20, 5),
    PROVING_INT8: (20, 5),
    SEALING: (10, 1),
    PROVING_PROBE: (25, 6),
    SEALING_PROBE: (10, 1),
}


def stages(quantize: bool, probe: bool) -> list[str]:
    """The stages of one export, in their order."""
    return [
        LIFTING, RUNNING, PROVING, *([PROVING_INT8] if quantize else []), SEALING,
        *([PROVING_PROBE, SEALING_PROBE] if probe else []),
    ]  # fmt: skip


@contextmanager
def shown(progress: Say | bool | None, plan: Sequence[str]) -> Iterator[Say]:
    """Within it, what is given to the function is shown; afterwards nothing of it is left to see.

    `progress`: a function of one's own; False for none; None or True for a line, if there is a screen for it.
    """
    if callable(progress):
        yield progress
        return
    stream = None if progress is False else _screen()
    if stream is None:
        yield lambda _: None
        return
    line = Line(plan, stream)
    try:
        yield line
    finally:
        line.close()


def _screen() -> TextIO | None:
    """Where a line can be rewritten and somebody sees it."""
    if _in_notebook():
        return sys.stdout  # (what goes to standard error has the colour of a fault there)
    return sys.stderr if sys.stderr is not None and sys.stderr.isatty() else None


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class Line:
    """Percent, what is done now, and the time left as soon as that can be told."""

    def __init__(
        self, plan: Sequence[str], stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._stream, self._clock = list(plan), stream, clock
        self._total = sum(_WEIGHTS[stage][0] for stage in plan)
        self._began = clock()
        self._stage, self._said, self._width = "", 0, 0

    def __call__(self, text: str) -> None:
        if text in self._plan:
            self._stage, self._said = text, 0
        else:
            self._said += 1
        detail = "" if text == self._stage else f": {text}"
        share = self.share
        full = int(share * _BAR)
        bar = f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}"
        # What is cut off in a narrow terminal is the detail.
        self._show(f"{bar}{self._left(share)}  {self._stage}{detail}")

    @property
    def share(self) -> float:
        """What is done of the whole, by the typical weights of the stages."""
        if not self._stage:
            return 0.0
        before = sum(_WEIGHTS[stage][0] for stage in self._plan[: self._plan.index(self._stage)])
        weight, lines = _WEIGHTS[self._stage]
        return (before + weight * min(self._said / lines, 1.0)) / self._total

    def close(self) -> None:
        """Take the line away."""
        self._show("")

    def _left(self, share: float) -> str:
        elapsed = self._clock() - self._began
        if elapsed < _SOON or share < _KNOWN:
            return ""
        return f", about {max(1, round(elapsed * (1 - share) / share))} s left"

    def _show(self, text: str) -> None:
        # Spaces, since a notebook knows no escape sequence that clears a line. It must not wrap.
        text = text[: max(20, shutil.get_terminal_size().columns - 1)]
        self._stream.write(f"\r{text:{self._width}}" + ("" if text else "\r"))
        self._stream.flush()
        self._width = len(text)
