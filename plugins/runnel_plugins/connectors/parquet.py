"""Parquet files, by pyarrow: columns of numbers, read and written by row groups.

Columns are named as in a table: ``x`` for a scalar, ``y.0``, ``y.1`` … for an array's numbers in C order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from runnel import Signal, Sink, hookimpl
from runnel.columns import SAMPLE, choose_columns, columns_of, flat, is_ordered, label_texts, tensor_columns
from runnel.errors import UsageError, nearest
from runnel.files import OutputFile, library, regular
from runnel.hookspecs import SinkFactory, SourceFactory
from runnel.spec import Array
from runnel.stage import Chunk
from runnel.times import SECONDS, WINDOW, Unit
from runnel_plugins.connectors.cells import Missing, Rate, Row
from runnel_plugins.connectors.timed import Part, Timed, UnusedTime

MAX_GROUP: Final = 2**30  # bytes of one row group's chosen columns, which are in memory while it is read
ROW_GROUP: Final = 2**16  # rows of a group that we write


class Parquet(Timed):
    """Read columns of a Parquet file, one row per time step, one row group at a time.

    `columns`: the columns, in the order of the inputs; default: those with the names of the inputs. `time`:
    the column with the time of a row: timestamps, or numbers in `unit` (s, ms, us or ns). It fills the
    pipeline's float64 input ``time`` if there is one, sets the pace of ``--realtime``, and is kept in a table
    of outputs. Its rate must be the pipeline's, unless `rate` is any. `missing`: whether null is an error or
    NaN.
    """

    def __init__(
        self,
        signal: Signal,
        path: Path,
        columns: list[str] | None = None,
        time: str | None = None,
        missing: Missing = "refuse",
        unit: Unit = "s",
        rate: Rate = "check",
    ) -> None:
        regular(path, "Parquet")
        pyarrow = library("pyarrow", f"{path}: Parquet files", "parquet")
        library("pyarrow.compute", f"{path}: Parquet files", "parquet")
        parquet = library("pyarrow.parquet", f"{path}: Parquet files", "parquet")
        self._arrow, self._path = pyarrow, path
        self._signal, self._missing = signal, missing
        self._row = Row(str(path), signal, time, unit, rate)
        try:
            self._file = parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UsageError(f"{path}: not a Parquet file: {error!s:.300}") from None
        try:
            self._choose(columns)
        except BaseException:
            self._file.close()
            raise
        self.steps = int(self._file.metadata.num_rows)

    def _choose(self, columns: list[str] | None) -> None:
        types, schema, time = self._arrow.types, self._file.schema_arrow, self._row.time
        header = list(schema.names)
        if len(set(header)) < len(header):
            raise UsageError(f"{self._path}: two of its columns have one name")
        if time is not None and time not in header:
            raise UsageError(f"{self._path}: no time column {time!r}{nearest(time, header)}")
        others = [name for name in header if name != time]
        numeric = [name for name in others if _is_number(types, schema.field(name).type)]
        indices = choose_columns(str(self._path), others, numeric, self._row.numbers, columns, self._rises)
        self._names = [others[index] for index in indices]
        used = self._names if time is None else header
        self._unused = UnusedTime(str(self._path), header, used, self._signal, live=False)
        for name in self._names:
            if name not in numeric:
                raise UsageError(
                    f"{self._path}: column {name!r} holds {schema.field(name).type}, not numbers"
                )
        wanted = {*self._names} | ({time} if time else set())
        metadata = self._file.metadata
        for group in range(metadata.num_row_groups):
            parts = [metadata.row_group(group).column(c) for c in range(metadata.num_columns)]
            size = sum(
                p.total_uncompressed_size for p in parts if p.path_in_schema.split(".list")[0] in wanted
            )
            if size > MAX_GROUP:
                raise UsageError(
                    f"{self._path}: row group {group} holds {size} bytes of these columns, at most "
                    f"{MAX_GROUP} are possible: write it with smaller row groups"
                )

    def _rises(self, name: str) -> bool:
        batch = next(self._file.iter_batches(SAMPLE, columns=[name]), None)
        return batch is not None and is_ordered(batch.column(0).to_pylist())

    def chunks(self, block: int) -> Iterator[Chunk]:
        return self._checked(self._parts(block))

    def _parts(self, block: int) -> Iterator[Part]:
        done, time = 0, self._row.time
        beside = self._unused.column
        names = list(dict.fromkeys([*self._names, *(n for n in (time, beside) if n)]))
        try:
            for batch in self._file.iter_batches(block, columns=names):
                if not batch.num_rows:
                    continue
                columns = {name: batch.column(batch.schema.get_field_index(name)) for name in names}
                stamps = seconds = None
                if time is not None:
                    stamps, seconds = self._stamps(columns[time], done)
                if self._unused.column is not None:
                    for value in columns[self._unused.column].slice(0, WINDOW).to_pylist():
                        self._unused.take(_plain(value))
                last = None if seconds is None else float(seconds[-1])
                yield self._chunk(columns, seconds, done), [] if stamps is None else stamps.tolist(), last
                done += batch.num_rows
            self._unused.end()
        except (self._arrow.ArrowException, OSError) as error:
            raise UsageError(f"{self._path}: damaged, after row {done}: {error!s:.300}") from None

    def close(self) -> None:
        self._file.close()

    def _chunk(self, columns: Mapping[str, Any], seconds: Array | None, done: int) -> Chunk:
        chunk: dict[str, Array] = {}
        names = iter(self._names)
        for tensor in self._signal.tensors:
            if self._row.timed and tensor not in self._row.numbers.tensors:
                chunk[tensor.name] = np.asarray(seconds, np.float64)
                continue
            parts = [self._numbers(next(names), columns, tensor.dtype, done) for _ in tensor_columns(tensor)]
            chunk[tensor.name] = np.stack(parts, axis=1).reshape(-1, *tensor.shape)
        return chunk

    def _numbers(self, name: str, columns: Mapping[str, Any], dtype: str, done: int) -> Array:
        """Return one column in the tensor's dtype."""
        column, kind = columns[name], np.dtype(dtype).kind
        where = f"{self._path}: column {name!r}"
        if column.null_count:
            if self._missing == "refuse" or kind != "f":
                row = done + 1 + column.is_null().to_pylist().index(True)
                raise UsageError(f"{where}, row {row}: null is not a number (missing=nan takes it as NaN)")
            column = column.cast(self._arrow.float64()).fill_null(float("nan"))
        values: Array = column.to_numpy(zero_copy_only=False)
        if kind in "iu":
            limits = np.iinfo(dtype)
            if values.dtype.kind not in "iub" or values.min() < limits.min or values.max() > limits.max:
                raise UsageError(
                    f"{where}: {column.type}, rows {done + 1} to {done + len(values)}: not all are {dtype} "
                    f"({limits.min} to {limits.max})"
                )
        elif self._missing == "refuse" and values.dtype.kind == "f" and not np.isfinite(values).all():
            row = done + 1 + int(np.flatnonzero(~np.isfinite(values))[0])
            raise UsageError(f"{where}, row {row}: {values[row - done - 1]} is not a finite number")
        try:
            with np.errstate(over="raise"):
                return values.astype(dtype)
        except FloatingPointError:
            rows = f"rows {done + 1} to {done + len(values)}"
            raise UsageError(f"{where}, {rows}: a number that no {dtype} can hold") from None

    def _stamps(self, column: Any, done: int) -> tuple[Array, Array]:
        """Return the rows' times as written, and in seconds."""
        where = f"{self._path}: time column {self._row.time!r}"
        if column.null_count:
            raise UsageError(f"{where}, rows {done + 1} to {done + len(column)}: null is not a time")
        types = self._arrow.types
        if types.is_timestamp(column.type):
            micro = column.cast(self._arrow.timestamp("us", column.type.tz), safe=False)
            values = np.asarray(micro.cast(self._arrow.int64()).to_numpy(), np.float64) / 1e6
            seconds = values
        elif _is_number(types, column.type):
            values = np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
            seconds = values * SECONDS[self._row.unit]
        else:
            raise UsageError(f"{where} holds {column.type}, neither timestamps nor numbers")
        if not np.isfinite(values).all():
            raise UsageError(f"{where}, rows {done + 1} to {done + len(column)}: not all are finite")
        if self._row.clock is not None:
            for row, second in enumerate(seconds.tolist(), done + 1):
                try:
                    self._row.clock.follow(second)
                except ValueError as error:
                    raise UsageError(f"{where}, row {row}: {error}") from None
        return values, seconds


def _plain(value: Any) -> Any:
    """Return a time as text or as a number."""
    return value.isoformat() if hasattr(value, "isoformat") else value


def _is_number(types: Any, kind: Any) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


class ParquetSink(Sink):
    """Write columns of a Parquet file, one row per time step; numbers with labels as text."""

    keeps_time = True

    def __init__(self, signal: Signal, path: Path) -> None:
        arrow = library("pyarrow", f"{path}: Parquet files", "parquet")
        parquet = library("pyarrow.parquet", f"{path}: Parquet files", "parquet")
        self._arrow, self._signal = arrow, signal
        kinds = [
            arrow.string()
            if label_texts(tensor) is not None
            else arrow.from_numpy_dtype(np.dtype(tensor.dtype))
            for tensor in signal.tensors
            for _ in tensor_columns(tensor)
        ]
        self._schema = arrow.schema(list(zip(columns_of(signal), kinds, strict=True)))
        self._out = OutputFile(path)
        self._writer = parquet.ParquetWriter(self._out.file, self._schema)
        self._held: list[Any] = []
        self._rows = 0

    def write(self, chunk: Chunk) -> None:
        columns: list[Any] = []
        for tensor in self._signal.tensors:
            values, labels = flat(tensor, chunk[tensor.name]), label_texts(tensor)
            for column in values.T:
                if labels is not None:
                    columns.append(
                        self._arrow.array([labels.get(n) for n in column.tolist()], self._arrow.string())
                    )
                else:
                    columns.append(self._arrow.array(np.ascontiguousarray(column)))
        table = self._arrow.Table.from_arrays(columns, schema=self._schema)
        self._held.append(table)
        self._rows += table.num_rows
        if self._rows >= ROW_GROUP:
            self._write_group()

    def close(self, whole: bool) -> None:
        try:
            if whole:
                self._write_group()
            self._writer.close()
        except BaseException:
            self._out.close(False)
            raise
        self._out.close(whole)

    def _write_group(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.concat_tables(self._held), row_group_size=ROW_GROUP)
        self._held, self._rows = [], 0


@hookimpl
def runnel_sources() -> Mapping[str, SourceFactory]:
    return {"parquet": Parquet}


@hookimpl
def runnel_sinks() -> Mapping[str, SinkFactory]:
    return {"parquet": ParquetSink}
