"""Show the progress of an export: one line, rewritten in place, on a terminal or in a notebook."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

_BAR = 20  # characters
_SOON = 2.0  # seconds without an estimate of the time left: a short export is over by then
_KNOWN = 0.25  # share of the whole that must be done before the time left can be estimated

Say = Callable[[str], None]

LIFTING, RUNNING = "lifting the state out of the module", "running the original"
PROVING, SEALING = "proving the float32 model", "verifying the file as it is written"
PROVING_INT8 = "proving the int8 model"
PROVING_PROBE, SEALING_PROBE = "proving the probe", "verifying the probe as it is written"

# Stage: its share of the time of a typical export (relative), and how many lines it reports.
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
    """Return the stages of one export, in order."""
    return [
        LIFTING, RUNNING, PROVING, *([PROVING_INT8] if quantize else []), SEALING,
        *([PROVING_PROBE, SEALING_PROBE] if probe else []),
    ]  # fmt: skip


@contextmanager
def shown(progress: Say | bool | None, plan: Sequence[str]) -> Iterator[Say]:
    """Yield a function that shows a line of text. On leaving, the line is cleared.

    `progress`: a function to call; False for no output; None or True for a line, if there is a screen.
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
    """Return a stream on which a line can be rewritten and a user sees it; None if there is none."""
    if _in_notebook():
        return sys.stdout  # a notebook shows standard error in the colour of an error
    return sys.stderr if sys.stderr is not None and sys.stderr.isatty() else None


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class Line:
    """One line: percent, the current stage and, once it can be estimated, the time left."""

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
        # The detail comes last, so that a narrow terminal cuts off the detail only.
        self._show(f"{bar}{self._left(share)}  {self._stage}{detail}")

    @property
    def share(self) -> float:
        """Share of the whole that is done, by the typical weights of the stages."""
        if not self._stage:
            return 0.0
        before = sum(_WEIGHTS[stage][0] for stage in self._plan[: self._plan.index(self._stage)])
        weight, lines = _WEIGHTS[self._stage]
        return (before + weight * min(self._said / lines, 1.0)) / self._total

    def close(self) -> None:
        """Clear the line."""
        self._show("")

    def _left(self, share: float) -> str:
        elapsed = self._clock() - self._began
        if elapsed < _SOON or share < _KNOWN:
            return ""
        return f", about {max(1, round(elapsed * (1 - share) / share))} s left"

    def _show(self, text: str) -> None:
        # Clear with spaces: a notebook has no escape sequence for it. The line must not wrap.
        text = text[: max(20, shutil.get_terminal_size().columns - 1)]
        self._stream.write(f"\r{text:{self._width}}" + ("" if text else "\r"))
        self._stream.flush()
        self._width = len(text)
