"""JSON lines: one object per time step, ``{"y": [0.1, 0.2], "peak": 0.2}``; arrays as nested lists.

As a listener, one object per event of a stream: ``{"time": 1790000000.1, "event": "closed", "stream":
"mic-1", "seq": 250, "reason": "idle"}``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from runnel import Notice, Signal, Sink, TensorSpec, hookimpl
from runnel.columns import label_texts, pack
from runnel.errors import UsageError
from runnel.files import Input, Lines, OutputText
from runnel.hookspecs import ListenerFactory, SinkFactory, SourceFactory
from runnel.notices import Listener
from runnel.spec import Array
from runnel.stage import Chunk
from runnel.times import Unit
from runnel_plugins.connectors.cells import Json, Missing, Rate, Row
from runnel_plugins.connectors.timed import Part, Timed, UnusedTime


class JsonLines(Timed):
    """Read JSON lines, one object per time step; from a pipe, lines as they come.

    A tensor is found under its name, or its numbers under ``x.0``, ``x.1`` …; if the pipeline takes one
    tensor, its value may stand alone. `columns`: other keys to use instead, one per number, in the order of
    the inputs. `time`: the key of the time, in `unit` (s, ms, us or ns) or ISO 8601; it fills the pipeline's
    float64 input ``time`` if there is one, sets the pace of ``--realtime``, and is kept in a table of
    outputs. Its rate must be the pipeline's, unless `rate` is any. `missing`: whether null is an error or
    NaN.
    """

    def __init__(
        self,
        signal: Signal,
        path: Path | None = None,
        columns: list[str] | None = None,
        time: str | None = None,
        missing: Missing = "refuse",
        unit: Unit = "s",
        rate: Rate = "check",
    ) -> None:
        self._input = Input(path)
        self.name = self._input.name
        self.live = self._input.live
        self._signal = signal
        try:
            self._row = Row(self.name, signal, time, unit, rate, self.live)
            self._json = Json(self.name, self._row, columns, missing)
        except BaseException:
            self._input.close()
            raise

    @property
    def share(self) -> float | None:  # type: ignore[override]
        return self._input.share

    def chunks(self, block: int) -> Iterator[Chunk]:
        return self._checked(self._parts(block))

    def _parts(self, block: int) -> Iterator[Part]:
        lines = Lines(self._input)
        held: list[Sequence[float]] = []
        stamps: list[float] = []
        unused: UnusedTime | None = None
        count, seconds = 0, None
        for line in lines:
            count += 1
            if line.strip():
                try:
                    value = json.loads(line)
                    row, when = self._json.read(value)
                except (ValueError, RecursionError, UsageError) as error:
                    if held and self.live:  # the rows before it were valid, and count
                        yield self._chunk(held, count), stamps, seconds
                    if isinstance(error, UsageError):
                        raise
                    raise UsageError(f"{self.name}: line {count}: {error}") from None
                if when is not None:
                    stamps.append(when[0])
                    seconds = when[1]
                unused = unused or self._unused(value)
                if unused.column is not None:
                    unused.take(value.get(unused.column))
                held.append(row)
            if held and (len(held) == block or not lines.more):
                yield self._chunk(held, count), stamps, seconds
                held, stamps = [], []
        if unused is not None:
            unused.end()
        if held:
            yield self._chunk(held, count), stamps, seconds

    def close(self) -> None:
        self._input.close()

    def _unused(self, value: Any) -> UnusedTime:
        """Make the check for an unused time among the first line's keys."""
        header = list(value) if isinstance(value, dict) and self._row.time is None else []
        return UnusedTime(self.name, header, self._json.used, self._signal, self.live)

    def _chunk(self, rows: list[Sequence[float]], count: int) -> Chunk:
        try:
            return pack(rows, self._signal)
        except OverflowError as error:
            raise UsageError(f"{self.name}: up to line {count}: {error}") from None


class JsonLinesSink(Sink):
    """Write JSON lines, one object per time step: a file, or standard output without a path.

    A number that is not finite is written as null, because JSON has none. Numbers with labels are written as
    their labels; a number without one is null.
    """

    keeps_time = True

    def __init__(self, signal: Signal, path: Path | None = None) -> None:
        self._signal = signal
        self._out = OutputText(path)

    def write(self, chunk: Chunk) -> None:
        for row in rows_as_json(self._signal, chunk):
            self._out.text.write(row + "\n")
        self._out.text.flush()

    def close(self, whole: bool) -> None:
        self._out.close(whole)


def rows_as_json(signal: Signal, chunk: Chunk) -> Iterator[str]:
    """Yield each time step of a chunk as one line of JSON."""
    names = signal.names
    columns = [_plain(tensor, chunk[tensor.name]) for tensor in signal.tensors]
    for row in zip(*columns, strict=True):
        yield json.dumps(dict(zip(names, row, strict=True)), allow_nan=False)


def _plain(tensor: TensorSpec, array: Array) -> list[Any]:
    labels = label_texts(tensor)

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if labels is not None:
            return labels.get(value)
        return None if isinstance(value, float) and not math.isfinite(value) else value

    made: list[Any] = plain(array.tolist())
    return made


Kind = Literal[
    "opened", "reset", "idle", "evicted", "failed", "closed", "died", "blown_up", "recovered"
]  # fmt: skip


def journal(path: Path, events: list[Kind] | None = None) -> Listener:
    """Append the events of streams to a file of JSON lines, one object per event.

    `events`: only these, of opened, reset, idle, evicted, failed, closed, died, blown_up and recovered.
    `time` is in seconds since 1970. The file is opened for each line, so that it can be moved and begun anew.
    Raises UsageError if it cannot be written.
    """
    wanted = None if events is None else frozenset(events)
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise UsageError(f"{path}: cannot write it: {error.strerror or error}") from None

    def listen(notice: Notice) -> None:
        if wanted is not None and notice.event not in wanted:
            return
        record = {
            "time": round(time.time(), 6), "event": notice.event, "stream": notice.stream,
            "seq": notice.seq, "reason": notice.reason,
        }  # fmt: skip
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    return listen


@hookimpl
def runnel_notices() -> Mapping[str, ListenerFactory]:
    return {"jsonl": journal}


@hookimpl
def runnel_sources() -> Mapping[str, SourceFactory]:
    return {"jsonl": JsonLines}


@hookimpl
def runnel_sinks() -> Mapping[str, SinkFactory]:
    return {"jsonl": JsonLinesSink}
