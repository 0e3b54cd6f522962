"""Chunk sizes, pace and end of a run, shared by `runnel run` and `runnel feed`."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from ..errors import UsageError
from ..stage import Chunk

MAX_CHUNK = 2**24  # time steps that one block of input may hold in memory
MAX_SECONDS = 366 * 86400.0  # of --for: a year
_CHUNK_STEPS = 4096  # time steps fed at once: enough for the model's blocks, little memory
_CHUNK_SECONDS = 0.1  # the same for --realtime: as a live client would send
MAX_GENERATED = 2**24  # time steps of --generate: as text, a few thousand pages
_GENERATED_STEPS = 32  # time steps generated at once: a loop is slow, and its output is watched
_LONGEST_SLEEP = 86400.0  # seconds: well below the limits of a clock
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def rows_of(chunk: Chunk) -> int:
    """Number of time steps in a chunk."""
    return len(next(iter(chunk.values())))


def chunk_steps(text: str | None, rate: float | None, realtime: bool) -> int:
    """``--chunk`` as time steps: ``160``, ``20ms``, ``0.1s``, or the default."""
    if text is None:
        return max(1, round(_CHUNK_SECONDS * rate)) if realtime and rate else 1 if realtime else _CHUNK_STEPS
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)?", text)
    if not match:
        raise UsageError(f"--chunk {text!r}: a number of time steps (160) or a time (20ms, 0.1s)")
    value, unit = float(match[1]), match[2]
    if unit and not rate:
        raise UsageError(f"--chunk {text}: the pipeline has no rate: give a number of time steps")
    steps = value * _UNITS[unit] * (rate or 0) if unit else value
    if not 1 <= round(steps) <= MAX_CHUNK or (not unit and steps != int(steps)):
        raise UsageError(
            f"--chunk {text}: that is {steps:g} time steps; 1 to {MAX_CHUNK}, whole, are possible"
        )
    return round(steps)


def seconds_of(text: str | None) -> float | None:
    """``--for`` as seconds: ``10s``, ``500ms``, ``5m``, ``2h``."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if not match or not 0 < (seconds := float(match[1]) * _UNITS[match[2]]) <= MAX_SECONDS:
        raise UsageError(f"--for {text!r}: a time above 0, as 10s, 500ms, 5m or 2h")
    return seconds


def most_steps(steps: int | None, seconds: float | None, rate: float | None, live: bool) -> int | None:
    """``--steps`` and ``--for`` as a number of time steps; None without a bound.

    For a live source, `seconds` are clock time, which `Stopper` bounds.
    """
    if steps is not None and steps < 1:
        raise UsageError(f"--steps {steps}: a whole number of at least 1")
    if seconds is None or live:
        return steps
    if not rate:
        raise UsageError("--for: the pipeline has no rate, nor has the input: say --steps")
    of_time = max(1, round(seconds * rate))
    return of_time if steps is None else min(steps, of_time)


def generated(steps: int) -> list[int]:
    """``--generate`` as small numbers of time steps, so that output appears while it is made."""
    if not 0 <= steps <= MAX_GENERATED:
        raise UsageError(f"--generate {steps}: a whole number, 1 to {MAX_GENERATED}")
    whole, rest = divmod(steps, _GENERATED_STEPS)
    return [_GENERATED_STEPS] * whole + [rest] * bool(rest)


def in_all(given: int | None, most: int | None, generate: int) -> int | None:
    """Total time steps of a run, for the progress; None if unknown. `given`: those of the source."""
    of_source = given if most is None else most if given is None else min(most, given)
    return None if of_source is None else of_source + generate


def limited(chunks: Iterable[Chunk], steps: int | None) -> Iterator[Chunk]:
    """The first `steps` time steps. No chunk beyond them is read."""
    left = steps
    for chunk in chunks:
        if left is None:
            yield chunk
            continue
        yield chunk if rows_of(chunk) <= left else {name: array[:left] for name, array in chunk.items()}
        left -= rows_of(chunk)
        if left <= 0:
            return


def paced(
    chunks: Iterable[Chunk],
    rate: float | None,
    stamp: Callable[[], float | None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Chunk]:
    """Yield each chunk when its last time step would have arrived. A delay is made up, not carried on.

    The due time is that of `stamp`, the recording time in seconds, if the source has one; then the first
    chunk is due at once. Otherwise it follows from the rate.
    """
    began, arrived, first = clock(), 0, None
    for chunk in chunks:
        arrived += rows_of(chunk)
        taken = stamp()
        if taken is not None:
            first = taken if first is None else first
            due = began + taken - first
        elif rate:
            due = began + arrived / rate
        else:
            raise UsageError(
                "--realtime: the pipeline has no rate, nor has the input; say it under [model] or [input]"
            )
        while (wait := due - clock()) > 0:
            sleep(min(wait, _LONGEST_SLEEP))
        yield chunk


class _Stop(Exception):  # noqa: N818 - no error: it ends a wait
    """Raised to end the wait for the next chunk."""


class Stopper:
    """Ends the run of a live source cleanly: ``with Stopper(live, seconds) as stopper``.

    Ctrl-C, SIGTERM and the time limit end `watch`: at once if it waits for the source, else after the current
    chunk. A second signal interrupts as usual. Without `live` it does nothing. Outside the main thread, only
    the time limit ends it, and only between two chunks.
    """

    def __init__(self, live: bool, seconds: float | None) -> None:
        self._live, self._seconds = live, seconds
        self._on = live and threading.current_thread() is threading.main_thread()
        self._waiting = self._stopping = False
        self._deadline = float("inf")
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        if self._live and self._seconds:
            self._deadline = time.monotonic() + self._seconds
        if self._on:
            for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGALRM] if self._seconds else [])):
                if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGALRM:
                    self._before[number] = signal.signal(number, self._on_signal)
            if self._seconds:
                signal.setitimer(signal.ITIMER_REAL, self._seconds)
        return self

    def __exit__(self, *_: object) -> None:
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Yield the chunks until the run is stopped."""
        try:
            while not self._stopping and time.monotonic() < self._deadline:
                self._waiting = True
                chunk = next(chunks, None)
                self._waiting = False
                if chunk is None:
                    return
                yield chunk
        except _Stop:
            return
        finally:
            self._waiting = False

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._stopping and number != signal.SIGALRM:
            raise KeyboardInterrupt
        self._stopping = True
        if self._waiting:
            self._waiting = False
            raise _Stop
