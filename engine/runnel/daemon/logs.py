"""Structured logs: one line per event, with a rate limit for each kind.

A line is ``key=value`` pairs or JSON.

    log = Log("runnel.serve")
    log.warning("peer dropped", peer=peer, backlog=backlog)

The event is a constant text that names the kind of line; variable parts go into fields. Text from a client is
escaped and cut off, so that a stream's name can neither forge a line nor fill the disk. A thread of its own
writes the lines: if the log is not read, or the disk is full, lines are lost but the daemon goes on. Lost
lines are counted, and reported once lines can be written again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import re
import select
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final, TextIO

MAX_VALUE: Final = 256  # characters of a field's text: the bound of an id on the wire
MAX_REASON: Final = 1000  # of an event or an error: what was given, what was expected, what to do
MAX_TRACE: Final = 4000  # characters of a traceback, from its end, which says most
MAX_KINDS: Final = 256  # kinds of events with a budget of their own; all others share one
BURST: Final = 20  # lines of a kind at once
PER_SECOND: Final = 1.0  # lines of a kind after that
MAX_WAITING: Final = 1024  # lines queued for writing: some MiB at most
LAST_SECONDS: Final = 2.0  # for the last lines, when the process ends


_MOST: Final = {"event": MAX_REASON, "error": MAX_REASON, "why": MAX_REASON, "trace": MAX_TRACE}
_BARE = re.compile(r'[^\s"=\\]+\Z')


class Log:
    """A logger whose events have fields. A field may be any value; its text is made only if it is written."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, /, **fields: object) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, error: BaseException, /, **fields: object) -> None:
        """Log an error with its traceback and that of its cause."""
        self._log(logging.ERROR, event, fields, error)

    def _log(
        self, level: int, event: str, fields: Mapping[str, object], error: BaseException | None = None
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, exc_info=error, extra={"fields": fields})


log = Log("runnel.serve")


def log_health(event: str, stream: str, reason: str) -> None:
    """Log a health event of a stream; see `runnel.insight.health`."""
    if event == "died":
        log.warning("state died", stream=stream, why=reason)
    elif event == "blown_up":
        log.warning("state blown up", stream=stream, why=reason)
    else:
        log.info("state recovered", stream=stream, why=reason)


class Budget:
    """A token bucket for each kind of event: a burst, then a steady rate. Pure.

    Holds at most `MAX_KINDS` kinds; all further kinds share one bucket.
    """

    def __init__(self, burst: float = BURST, per_second: float = PER_SECOND) -> None:
        self._burst = burst
        self._per_second = per_second
        self._kinds: dict[str, tuple[float, float, int]] = {}  # tokens, when, suppressed since the last line

    def spend(self, kind: str, now: float) -> int | None:
        """Take a token for one line. Return how many were suppressed before it; None: suppress it."""
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = ""
        tokens, when, suppressed = self._kinds.get(kind, (self._burst, now, 0))
        tokens = min(self._burst, tokens + max(0.0, now - when) * self._per_second)
        if tokens < 1:
            self._kinds[kind] = tokens, now, suppressed + 1
            return None
        self._kinds[kind] = tokens - 1, now, 0
        return suppressed

    def take_suppressed(self) -> dict[str, int]:
        """Return and clear the counts of suppressed lines that were not yet reported, by kind."""
        owed = {kind: suppressed for kind, (_, _, suppressed) in self._kinds.items() if suppressed}
        self._kinds = {kind: (tokens, when, 0) for kind, (tokens, when, _) in self._kinds.items()}
        return owed


class RateLimit(logging.Filter):
    """Passes a record if its kind has budget, and adds the number of suppressed lines."""

    def __init__(self, budget: Budget | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.budget = budget or Budget()
        self._clock = clock

    def filter(self, record: logging.LogRecord) -> bool:
        suppressed = self.budget.spend(f"{record.levelname} {record.msg}", self._clock())
        if suppressed:
            record.suppressed = suppressed
        return suppressed is not None


class LineFormatter(logging.Formatter):
    """Formats a record's fields as one line. `common`: fields of every line, after the event.

    ``ts=2025-01-31T12:00:00.123Z level=warning event="peer dropped" peer=00ff suppressed=3``; or the same as
    a JSON object, in which numbers stay numbers.
    """

    def __init__(self, format: str, common: Mapping[str, object]) -> None:
        super().__init__()
        self._json = format == "json"
        self._common = common

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: _plain(key, value) for key, value in _fields(record, self._common).items()}
        if self._json:
            return json.dumps(fields)
        return " ".join(f"{_key(key)}={_text(value)}" for key, value in fields.items())


class Writer(logging.Handler):
    """Writes records to a stream from a thread of its own; `emit` never waits.

    At most `MAX_WAITING` lines are queued. Lines beyond that, and lines that cannot be written, are lost;
    `lost` counts them. If `stream` is None, every line is lost. If the stream has a descriptor, only the
    descriptor is written to: a thread that hangs in a Python stream's write would hold that stream's lock.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._refused = 0  # Lines lost. Each counter has one writer: emitting threads, under a lock ...
        self._failed = 0  # ... and the writing thread
        self._reported = 0  # lost lines that were reported
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="runnel-log", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Number of lines that were not written."""
        return self._refused + self._failed

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() >= MAX_WAITING:
            self._refused += 1
            return
        try:
            self._lines.put(self.format(record))
        except Exception:  # a field whose text cannot be made
            self._refused += 1

    def close(self) -> None:
        """Write the queued lines, for at most `LAST_SECONDS`, even if the reader is stuck."""
        if self._thread.is_alive():
            self._lines.put(None)
            self._thread.join(LAST_SECONDS)
            if self._thread.is_alive() and self._descriptor is not None:
                # At exit the interpreter or a library may write to it, and would hang forever.
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._descriptor)
                os.close(nowhere)
        super().close()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            lost = self.lost - self._reported
            if lost and self._write(self.format(_lost(lost))):
                self._reported += lost
            if not self._write(line):
                self._failed += 1
        if (lost := self.lost - self._reported) and self._write(self.format(_lost(lost))):
            self._reported += lost

    def _write(self, line: str) -> bool:
        """Return whether the line was written."""
        try:
            if self._descriptor is not None:
                _write_whole(self._descriptor, f"{line}\n".encode(errors="backslashreplace"))
            elif self._stream is not None:
                self._stream.write(f"{line}\n")
                self._stream.flush()
            else:
                return False
        except (OSError, ValueError):  # full, gone, or closed
            return False
        return True


def lost_lines() -> int:
    """Number of lines that this process could not write."""
    return sum(handler.lost for handler in logging.getLogger().handlers if isinstance(handler, Writer))


def _descriptor(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None


def _write_whole(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # another process made the descriptor non-blocking
            select.select([], [descriptor], [])


def _lost(lines: int) -> logging.LogRecord:
    extra = {"fields": {"lines": lines}}
    return logging.getLogger().makeRecord(
        "runnel", logging.WARNING, "", 0, "log lines were lost", (), None, extra=extra
    )


@contextmanager
def written(
    stream: TextIO | None, format: str = "text", level: str = "info", **common: object
) -> Iterator[None]:
    """Log everything to `stream` within the context. On exit, report what was suppressed.

    `format`: `text` or `json`; `common`: fields of every line. `level` applies to runnel's own loggers. From
    other loggers, and from Python's warnings, only warnings and worse are written.
    """
    root = logging.getLogger()
    handler = Writer(stream)
    handler.setFormatter(LineFormatter(format, common))
    limit = RateLimit()
    handler.addFilter(limit)
    before = logging.getLogger("runnel").level
    root.addHandler(handler)
    set_level(level)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for kind, owed in limit.budget.take_suppressed().items():
            fields = {"fields": {"kind": kind, "suppressed": owed}}
            handler.emit(root.makeRecord("runnel", logging.INFO, "", 0, "suppressed", (), None, extra=fields))
        root.removeHandler(handler)
        logging.getLogger("runnel").setLevel(before)
        handler.close()


def set_level(level: str) -> None:
    """Set the least severe level to log: `debug`, `info`, `warning` or `error`."""
    logging.getLogger("runnel").setLevel(level.upper())


def _fields(record: logging.LogRecord, common: Mapping[str, object]) -> dict[str, object]:
    """The fields of a line, in order."""
    fields: dict[str, object] = {
        "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
        "level": record.levelname.lower(),
        "event": record.getMessage(),
        **common,
    }
    for key, value in getattr(record, "fields", {}).items():
        fields.setdefault(key, value)  # an event's field never replaces a standard one
    if hasattr(record, "suppressed"):
        fields["suppressed"] = record.suppressed
    if record.exc_info:
        fields["trace"] = "".join(traceback.format_exception(*record.exc_info))[-MAX_TRACE:]
    return fields


def _plain(key: str, value: object) -> object:
    """As JSON has it: numbers, true, false, null; everything else as bounded text."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, bytes):
        value = value[:MAX_VALUE].hex()
    text = str(value)
    most = _MOST.get(key, MAX_VALUE)
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(plain: object) -> str:
    """A value in logfmt: bare if that is unambiguous, else quoted and escaped."""
    if isinstance(plain, float):
        return f"{plain:.6g}"
    if not isinstance(plain, str):
        return json.dumps(plain)
    if plain.isprintable() and _BARE.match(plain):
        return plain
    return '"' + "".join(map(_escaped, plain)) + '"'


def _escaped(character: str) -> str:
    """Escape a character for logfmt: line ends, control and bidirectional marks as in JSON."""
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else json.dumps(character)[1:-1]


def _key(name: str) -> str:
    return name if _BARE.match(name) and name.isprintable() else "_"
