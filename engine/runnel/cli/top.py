"""`runnel top`: watch a daemon live."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ..errors import UsageError

if TYPE_CHECKING:
    from ..client.monitor import Watcher, WorkerStatus
    from .panel import Frame

HELP = "watch a daemon live: streams, steps/s, latency, queue, memory, errors"

MAX_INTERVAL: Final = 3600.0  # seconds: an hour
ANSWER_SECONDS: Final = 2.0  # a slower worker is shown as silent
MIN_INTERVAL: Final = 0.1  # seconds: a poll costs a daemon some 100 µs

_EXAMPLE = """examples:
  runnel top ipc:///run/runnel.sock
  runnel top tcp://127.0.0.1:7070 --once
  runnel top tcp://gateway:7070 --keys ops.key
  runnel top ipc:///run/runnel.sock --json --interval 10 >> daemon.jsonl

q or Ctrl-C leaves. Rates and percentiles are of the last interval. fill: streams in a batch, on average.
Latency: from a request's arrival at the daemon until its reply is on its way.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    parser.add_argument("address", help="where a daemon serves: ipc:///path/to.sock, or tcp://host:port")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between two updates (1)"
    )
    parser.add_argument("--keys", metavar="FILE", help="your key file, for a daemon with keys")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="one interval as text, then leave")
    how.add_argument(
        "--json", action="store_true", help="for programs: a JSON document an interval, a line each"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0. Raises UsageError for an invalid address; with --once, TimeoutError for silence."""
    from ..client.monitor import Watcher
    from ..daemon.socketfile import require
    from ..wire.keys import client_keys

    if not MIN_INTERVAL <= args.interval <= MAX_INTERVAL:
        raise UsageError(
            f"--interval: from {MIN_INTERVAL:g} to {MAX_INTERVAL:g} seconds, not {args.interval:g}"
        )
    if not (args.once or args.json) and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("standard input and output are no terminal: use --once, or --json")
    keys = client_keys(args.keys) if args.keys else None
    if args.once:  # without it, wait for the daemon to start, and show that it is missing
        require(args.address)
    with Watcher([args.address], ANSWER_SECONDS, keys) as watcher:
        try:
            if args.once:
                _once(watcher, args.address, args.interval)
            elif args.json:
                _lines(watcher, args.address, args.interval)
            else:
                _live(watcher, args.address, args.interval)
        except KeyboardInterrupt:
            if args.once:  # nothing to show yet
                raise
    return 0


def _once(watcher: Watcher, address: str, interval: float) -> None:
    from ..client.common import silence
    from .panel import frame, render

    before, began = watcher.look(), time.monotonic()
    if not any(seen.alive for seen in before):
        raise silence(address, ANSWER_SECONDS)
    time.sleep(interval)
    after = watcher.look()
    print("\n".join(render(frame(address, before, after, time.monotonic() - began))))


def _lines(watcher: Watcher, address: str, interval: float) -> None:
    from .panel import document

    for shown in _frames(watcher, address, interval):
        print(json.dumps({"time": round(time.time(), 3), **document(shown)}), flush=True)


def _frames(watcher: Watcher, address: str, interval: float) -> Iterator[Frame]:
    """A frame for each interval, without end."""
    polls = _Polls(watcher, address)
    while True:
        time.sleep(interval)
        yield polls.next()


def _live(watcher: Watcher, address: str, interval: float) -> None:
    from .panel import render
    from .terminal import Screen

    with Screen() as screen:
        screen.draw([f"runnel top  {address}"])
        polls = _Polls(watcher, address)
        shown = None
        due = time.monotonic() + interval
        while (key := screen.wait(due - time.monotonic())) not in ("q", "Q"):
            if time.monotonic() >= due:
                shown = polls.next()
                due = time.monotonic() + interval
            if shown and key in ("", "resized"):
                screen.draw(render(shown, *screen.size))


class _Polls:
    """Repeated polls, and the changes between them."""

    def __init__(self, watcher: Watcher, address: str) -> None:
        self._watcher = watcher
        self._address = address
        self._before: Sequence[WorkerStatus] = watcher.look()
        self._when = time.monotonic()
        self._history: Sequence[float] = ()

    def next(self) -> Frame:
        from .panel import frame

        after, when = self._watcher.look(), time.monotonic()
        shown = frame(self._address, self._before, after, when - self._when, self._history)
        self._before, self._when, self._history = after, when, shown.history
        return shown
