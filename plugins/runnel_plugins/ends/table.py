"""Tables of text with a header: ``.csv`` with commas, ``.tsv`` with tabs. One row a time step.

A time step's numbers stand in columns: ``x`` for a scalar, ``y.0``, ``y.1`` … for an array's numbers in C
order. The shortest digits that give a number back are written; a bool as 0 or 1.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from runnel import Signal, Sink, Source, hookimpl
from runnel.columns import TIME, choose_columns, columns_of, flat, label_texts, pack
from runnel.errors import UsageError, nearest
from runnel.files import Input, Lines, OutputText
from runnel.hookspecs import SinkFactory, SourceFactory
from runnel.stage import Chunk
from runnel_plugins.ends.cells import Row, is_number, number, read_cell, read_time


class Csv(Source):
    """Read a table of numbers with a header, separated by commas; from a pipe, rows as they come.

    `columns`: those to take, in the order of the inputs; else those named as the inputs are. `time`: the
    column that says when a row was taken, in seconds or ISO 8601 (UTC unless it says else). It fills the
    pipeline's float64 input ``time`` where there is one, and sets the pace of ``--realtime``. `missing`:
    whether an empty cell, or one that says nan, is an error or NaN.
    """

    separator = ","

    def __init__(
        self,
        signal: Signal,
        path: Path | None = None,
        columns: list[str] | None = None,
        time: str | None = None,
        missing: Literal["refuse", "nan"] = "refuse",
    ) -> None:
        self._input = Input(path)
        self.name = self._input.name
        self.live = self._input.live
        self._signal, self._columns, self._missing = signal, columns, missing
        self._row = Row(self.name, signal, time)

    def chunks(self, block: int) -> Iterator[Chunk]:
        lines = Lines(self._input)
        rows = csv.reader(lines, delimiter=self.separator)
        try:
            header = self._header(next(rows, None))
            first = next(rows, None)
            if first is None:
                raise UsageError(f"{self.name}: has a header and no rows")
            places = self._places(header, first)
            time = None if self._row.time is None else header.index(self._row.time)
            held: list[Sequence[float]] = []
            count = 0
            for row in chain([first], rows):
                count += 1
                try:
                    numbers = self._numbers(row, count, header, places)
                    stamp = None if time is None else self._time(row, count, header, time)
                except UsageError:
                    if held and self.live:  # those before it came, and count
                        yield self._chunk(held, count)
                    raise
                held.append(self._row.full(numbers, stamp))
                self.stamp = stamp
                if len(held) == block or not lines.more:
                    yield self._chunk(held, count)
                    held = []
            if held:
                yield self._chunk(held, count)
        except csv.Error as error:
            raise UsageError(f"{self.name}: not a table of text: {error}") from None

    def close(self) -> None:
        self._input.close()

    def _header(self, row: list[str] | None) -> list[str]:
        """The first row, which names the columns; told apart from data, and from another separator's."""
        if row is None:
            raise UsageError(f"{self.name}: is empty")
        header = [cell.strip() for cell in row]
        if not any(header):
            raise UsageError(f"{self.name}: its first row is blank: it must hold the names of the columns")
        if not set(header).isdisjoint(self._row.columns if self._columns is None else self._columns):
            return header
        if all(is_number(cell) for cell in header if cell):
            raise UsageError(f"{self.name}: its first row holds numbers, not column names: add a header row")
        other = next((mark for mark in ",;\t" if len(header) == 1 and mark in header[0]), None)
        if other:
            kind = {",": "commas", "\t": "tabs"}[self.separator]
            raise UsageError(f"{self.name}: its header looks separated by {other!r}: save it with {kind}")
        return header

    def _places(self, header: list[str], first: list[str]) -> list[int]:
        """Which column of the table holds each number of a time step."""
        time = self._row.time
        if time is not None and time not in header:
            raise UsageError(f"{self.name}: no time column {time!r}{nearest(time, header)}")
        wanted = self._row.columns if self._columns is None else self._columns
        if time is not None and time in wanted:
            raise UsageError(f"{self.name}: column {time!r} cannot be the time and a number of the input too")
        if time is None and self._columns is None and TIME in wanted and TIME not in header:
            raise UsageError(
                f"{self.name}: the pipeline takes the {TIME} of each row, and no column has that name: say "
                f"which it is, as in {self.name}?time={header[0]}; there are {', '.join(header)}"
            )
        others = [name for name in header if name != time]
        numeric = [
            name
            for name, cell in zip(header, first, strict=False)
            if number(cell) is not None and name != time
        ]
        places = choose_columns(self.name, others, numeric, self._row.numbers, self._columns)
        return [header.index(others[place]) for place in places]

    def _numbers(self, row: list[str], count: int, header: list[str], places: list[int]) -> list[float]:
        made = []
        if any(cell.strip() for cell in row[len(header) :]):
            raise UsageError(
                f"{self.name}: row {count} has {len(row)} cells, but the header {len(header)}: a decimal "
                "comma, or a text without quotes?"
            )
        for place, whole in zip(places, self._row.whole, strict=True):
            try:
                made.append(read_cell(row[place], whole, self._missing))
            except IndexError:
                raise UsageError(
                    f"{self._cell(count, header, place)}: the row ends before it, after {len(row)} cells"
                ) from None
            except ValueError as error:
                empty = not row[place].strip() and not whole
                hint = "; with ?missing=nan behind the file's name it is NaN" if empty else ""
                raise UsageError(f"{self._cell(count, header, place)}: {error}{hint}") from None
        return made

    def _time(self, row: list[str], count: int, header: list[str], place: int) -> float:
        try:
            return read_time(row[place] if place < len(row) else "")
        except ValueError as error:
            raise UsageError(f"{self._cell(count, header, place)}: {error}") from None

    def _cell(self, count: int, header: list[str], place: int) -> str:
        return f"{self.name}: row {count}, column {header[place]!r}"

    def _chunk(self, rows: list[Sequence[float]], count: int) -> Chunk:
        try:
            return pack(rows, self._signal)
        except OverflowError as error:
            raise UsageError(f"{self.name}: rows {count - len(rows) + 1} to {count}: {error}") from None


class Tsv(Csv):
    """Read a table of numbers with a header, separated by tabs; as csv."""

    separator = "\t"


class CsvSink(Sink):
    """Write a table with a header, separated by commas: a file, or standard output without a path.

    An output whose numbers have labels is written as those; a number without one is an empty cell.
    """

    separator = ","

    def __init__(self, signal: Signal, path: Path | None = None) -> None:
        self._signal = signal
        self._out = OutputText(path)
        self._rows = csv.writer(self._out.text, delimiter=self.separator, lineterminator="\n")
        self._headed = False  # until it is, with the first output: a bad input leaves none

    def write(self, chunk: Chunk) -> None:
        if not self._headed:
            self._rows.writerow(columns_of(self._signal))
            self._headed = True
        columns = []
        for tensor in self._signal.tensors:
            values = flat(tensor, chunk[tensor.name])
            labels = label_texts(tensor)
            if labels is not None:
                cells = np.array([labels.get(n, "") for n in values.ravel().tolist()], object)
                columns.append(cells.reshape(values.shape))
            else:
                columns.append((values.astype(np.int8) if values.dtype == bool else values).astype(str))
        self._rows.writerows(np.concatenate(columns, axis=1).tolist())
        self._out.text.flush()

    def close(self, whole: bool) -> None:
        self._out.close(whole)


class TsvSink(CsvSink):
    """Write a table with a header, separated by tabs; as csv."""

    separator = "\t"


@hookimpl
def runnel_sources() -> Mapping[str, SourceFactory]:
    return {"csv": Csv, "tsv": Tsv}


@hookimpl
def runnel_sinks() -> Mapping[str, SinkFactory]:
    return {"csv": CsvSink, "tsv": TsvSink}
