"""Tables of text with a header: ``.csv`` with commas, ``.tsv`` with tabs. One row per time step.

The numbers of a time step are in columns: ``x`` for a scalar, ``y.0``, ``y.1`` … for an array's numbers in C
order. Numbers are written with the fewest digits that restore them exactly; a bool as 0 or 1.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Final, Literal

import numpy as np

from runnel import Signal, Sink, hookimpl
from runnel.columns import (
    SAMPLE,
    TIME,
    choose_columns,
    columns_of,
    flat,
    is_ordered,
    label_texts,
    other_names,
    pack,
)
from runnel.errors import UsageError, nearest
from runnel.files import Input, Lines, OutputText
from runnel.hookspecs import SinkFactory, SourceFactory
from runnel.stage import Chunk
from runnel.times import Unit
from runnel_plugins.connectors.cells import Missing, Rate, Row, is_number, number, read_cell
from runnel_plugins.connectors.timed import Part, Timed, UnusedTime

_NAMED: Final = {"tab": "\t", "space": " "}
_WITH_COMMA: Final = re.compile(r"\s*[-+]?\d+,\d+([eE][-+]?\d+)?\s*")


class Csv(Timed):
    """Read a table of numbers with a header, separated by commas; from a pipe, rows as they come.

    `columns`: the columns, in the order of the inputs; default: those with the names of the inputs. `time`:
    the column with the time of a row, in `unit` (s, ms, us or ns) or ISO 8601 (UTC without an offset). It
    fills the pipeline's float64 input ``time`` if there is one, sets the pace of ``--realtime``, and is kept
    in a table of outputs. Its rate must be the pipeline's, unless `rate` is any. `missing`: whether an empty
    cell, or nan, is an error or NaN. `sep`: another separator; `decimal`: the decimal mark. Blank lines at
    the end are ignored.
    """

    separator = ","

    def __init__(
        self,
        signal: Signal,
        path: Path | None = None,
        columns: list[str] | None = None,
        time: str | None = None,
        missing: Missing = "refuse",
        unit: Unit = "s",
        rate: Rate = "check",
        sep: str | None = None,
        decimal: Literal[".", ","] = ".",
    ) -> None:
        self._input = Input(path)
        self.name = self._input.name
        self.live = self._input.live
        self._signal, self._columns, self._missing = signal, columns, missing
        self._comma = decimal == ","
        try:
            self._separator = self._checked_separator(sep)
            self._row = Row(self.name, signal, time, unit, rate, self.live)
        except BaseException:
            self._input.close()
            raise

    def _checked_separator(self, sep: str | None) -> str:
        given = self.separator if sep is None else _NAMED.get(sep, sep)
        if len(given) != 1 or given.isalnum() or given in '"\r\n.-+':
            raise UsageError(
                f"{self.name}: sep must be one character, such as ; | tab or space, not {given!r}"
            )
        if self._comma and given == ",":
            raise UsageError(f"{self.name}: decimal=, needs another separator too, such as sep=;")
        return given

    @property
    def share(self) -> float | None:  # type: ignore[override]
        return self._input.share

    def chunks(self, block: int) -> Iterator[Chunk]:
        return self._checked(self._parts(block))

    def _parts(self, block: int) -> Iterator[Part]:
        lines = Lines(self._input)
        reader = csv.reader(lines, delimiter=self._separator)
        try:
            top = next(reader, None)
            rows = self._rows(reader)
            sample = list(islice(rows, 1 if self.live else SAMPLE))
            header = self._header(top, [row for _, row in sample[:1]])
            if not sample:
                raise UsageError(f"{self.name}: has a header and no rows")
            indices = self._indices(header, [row for _, row in sample])
            time = None if self._row.time is None else header.index(self._row.time)
            used = [header[index] for index in indices]
            unused = UnusedTime(self.name, header, used if time is None else header, self._signal, self.live)
            beside = None if unused.column is None else header.index(unused.column)
            held: list[Sequence[float]] = []
            stamps: list[float] = []
            seconds, line = None, 0
            for line, row in chain(sample, rows):
                try:
                    numbers = self._numbers(row, line, header, indices)
                    if time is not None:
                        stamp, seconds = self._when(row, line, header, time)
                        stamps.append(stamp)
                except UsageError:
                    if held and self.live:  # the rows before it were valid, and count
                        yield self._chunk(held, line), stamps[: len(held)], seconds
                    raise
                if unused.column is not None and beside is not None:
                    cell = row[beside] if beside < len(row) else ""
                    unused.take(cell.replace(",", ".") if self._comma else cell)
                held.append(self._row.full(numbers, seconds))
                if len(held) == block or not lines.more:
                    yield self._chunk(held, line), stamps, seconds
                    held, stamps = [], []
            unused.end()
            if held:
                yield self._chunk(held, line), stamps, seconds
        except csv.Error as error:
            raise UsageError(f"{self.name}: not a table of text: {error}") from None

    def close(self) -> None:
        self._input.close()

    def _rows(self, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows under the header with their line numbers.

        Blank lines at the end are left out.
        """
        blank = 0
        for row in reader:
            line: int = reader.line_num  # type: ignore[attr-defined]
            if self._is_blank(row):
                blank = blank or line
                continue
            if blank:
                raise UsageError(
                    f"{self.name}: line {blank} is blank, and line {line} has numbers: take it out; or, "
                    "if a row is missing there, write nan, and say ?missing=nan behind the name"
                )
            yield line, row

    def _is_blank(self, row: list[str]) -> bool:
        """Whether a row is empty.

        A quoted empty text is a cell; so are several cells with ``missing``.
        """
        if row and (row[0].strip() or row == [""]):
            return False
        return not any(cell.strip() for cell in row) and (self._missing == "refuse" or len(row) < 2)

    def _header(self, row: list[str] | None, first: Sequence[list[str]]) -> list[str]:
        """Return the names of the columns from the first row; detect data, and another separator."""
        if row is None:
            raise UsageError(f"{self.name}: is empty")
        header = [cell.strip() for cell in row]
        if not any(header):
            raise UsageError(f"{self.name}: its first row is blank: it must hold the names of the columns")
        wanted = [*self._row.columns, *other_names(self._row.numbers).values()]
        if not set(header).isdisjoint(wanted if self._columns is None else self._columns):
            return header
        if all(is_number(cell.replace(",", ".") if self._comma else cell) for cell in header if cell):
            raise UsageError(f"{self.name}: its first row holds numbers, not column names: add a header row")
        other = next((mark for mark in ";\t|," if len(header) == 1 and mark in header[0]), None)
        if other:
            cells = [cell for row in first for cell in self._separator.join(row).split(other)]
            self._refuse_separator(other, any(_WITH_COMMA.fullmatch(cell) for cell in cells))
        return header

    def _refuse_separator(self, other: str, comma: bool) -> None:
        sep = "tab" if other == "\t" else other
        decimal, too = ("&decimal=,", " with decimal commas") if comma and other != "," else ("", "")
        raise UsageError(
            f"{self.name}: this looks like a table separated by {other!r}{too}: add ?sep={sep}{decimal} "
            f"behind its name, in quotes: '{self.name}?sep={sep}{decimal}'"
        )

    def _indices(self, header: list[str], sample: Sequence[list[str]]) -> list[int]:
        """Return the table's column of each number of a time step."""
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

        def values(name: str) -> list[float | None]:
            index = header.index(name)
            return [self._guessed(row[index]) for row in sample if index < len(row)]

        numeric = [name for name in others if (values(name) or [None])[0] is not None]
        indices = choose_columns(
            self.name,
            others,
            numeric,
            self._row.numbers,
            self._columns,
            lambda name: is_ordered(values(name)),
        )
        return [header.index(others[index]) for index in indices]

    def _numbers(self, row: list[str], line: int, header: list[str], indices: list[int]) -> list[float]:
        made = []
        if any(cell.strip() for cell in row[len(header) :]):
            hint = (
                ""
                if self._comma
                else " (then '?sep=;&decimal=,' behind the name, if ; separates the columns)"
            )
            raise UsageError(
                f"{self.name}: line {line} has {len(row)} cells, but the header {len(header)}: a decimal "
                f"comma{hint}, or a text without quotes?"
            )
        for index, whole in zip(indices, self._row.whole, strict=True):
            try:
                cell = row[index]
                made.append(read_cell(self._pointed(cell) if self._comma else cell, whole, self._missing))
            except IndexError:
                raise UsageError(
                    f"{self._cell(line, header, index)}: the row ends before it, after {len(row)} cells"
                ) from None
            except ValueError as error:
                raise UsageError(
                    f"{self._cell(line, header, index)}: {error}{self._hint(row[index], whole)}"
                ) from None
        return made

    def _hint(self, cell: str, whole: bool) -> str:
        if not cell.strip() and not whole:
            return "; with ?missing=nan behind the file's name it is NaN"
        if "," in cell and not self._comma:
            return "; if that is a decimal comma, add '?sep=;&decimal=,' behind the name"
        return ""

    def _pointed(self, cell: str) -> str:
        """Replace a number's decimal comma by a point. ValueError if it has a point already."""
        if "." in cell:
            raise ValueError(f"{cell!r:.80} has a point, where decimal=, expects a comma")
        return cell.replace(",", ".")

    def _guessed(self, cell: str) -> float | None:
        """Return the number in a cell, or None."""
        return number(cell.replace(",", ".") if self._comma else cell)

    def _when(self, row: list[str], line: int, header: list[str], index: int) -> tuple[float, float]:
        cell = row[index] if index < len(row) else ""
        try:
            pointed = self._comma and _WITH_COMMA.fullmatch(cell)
            return self._row.when(self._pointed(cell) if pointed else cell)
        except ValueError as error:
            raise UsageError(f"{self._cell(line, header, index)}: {error}") from None

    def _cell(self, line: int, header: list[str], index: int) -> str:
        return f"{self.name}: line {line}, column {header[index]!r}"

    def _chunk(self, rows: list[Sequence[float]], line: int) -> Chunk:
        try:
            return pack(rows, self._signal)
        except OverflowError as error:
            raise UsageError(f"{self.name}: {len(rows)} rows up to line {line}: {error}") from None


class Tsv(Csv):
    """Read a table of numbers with a header, separated by tabs; options as for csv."""

    separator = "\t"


class CsvSink(Sink):
    """Write a table with a header, separated by commas: a file, or standard output without a path.

    Numbers with labels are written as their labels; a number without one is an empty cell.
    """

    separator = ","
    keeps_time = True

    def __init__(self, signal: Signal, path: Path | None = None) -> None:
        self._signal = signal
        self._out = OutputText(path)
        self._rows = csv.writer(self._out.text, delimiter=self.separator, lineterminator="\n")
        self._headed = False  # the header is written with the first output: none after a bad input

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
    """Write a table with a header, separated by tabs; as for csv."""

    separator = "\t"


@hookimpl
def runnel_sources() -> Mapping[str, SourceFactory]:
    return {"csv": Csv, "tsv": Tsv}


@hookimpl
def runnel_sinks() -> Mapping[str, SinkFactory]:
    return {"csv": CsvSink, "tsv": TsvSink}
