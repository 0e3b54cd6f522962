"""Where `runnel run` reads from: sound, tables, arrays, and raw numbers on standard input.

A source gives chunks as the pipeline takes them, a bounded block at a time, whatever the file's size.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from ..errors import UsageError, nearest
from ..spec import Array, Signal, TensorSpec
from ..stage import Chunk
from .files import SOUND, TABLE, columns_of, kind_of, soundfile, tensor_columns

STDIN = "-"

_SOUND_DTYPES = ("float32", "float64", "int16", "int32")  # what libsndfile converts to


@dataclass(frozen=True, slots=True)
class Source:
    """An input, opened."""

    chunks: Iterator[Chunk]  # each of 1 to `block` time steps
    steps: int | None = None  # time steps in all, where that is known beforehand
    rate: float | None = None  # Hz, where the file says


@contextmanager
def open_source(
    name: str, signal: Signal, block: int, columns: Sequence[str] | None = None, served: bool = False
) -> Iterator[Source]:
    """Open a file, or standard input for ``-``, as a source of `signal` in chunks of `block` time steps.

    `columns`: which columns of a table, or channels of a sound file (from 1), to take, in that order.
    `served`: the pipeline's file is a daemon's, so that errors do not advise to edit it.
    Raises UsageError for a file that is missing or does not fit the signal. Its chunks raise it for the
    part of the file that cannot be read, and say where that is.
    """
    with ExitStack() as stack:
        yield _open(name, signal, block, columns, served, stack)


def _open(
    name: str, signal: Signal, block: int, columns: Sequence[str] | None, served: bool, stack: ExitStack
) -> Source:
    path = Path(name)
    kind = STDIN if name == STDIN else kind_of(path, [*SOUND, *TABLE, ".npy"], "the kind of input")
    if columns is not None and kind in (STDIN, ".npy"):
        raise UsageError(f"{name}: --columns is for tables and sound files")
    if kind == STDIN:
        return Source(_raw(cast(BufferedReader, sys.stdin.buffer), signal, block))
    try:
        if kind in TABLE:
            text = stack.enter_context(path.open(newline="", encoding="utf-8-sig"))
            return Source(_table(path, text, TABLE[kind], signal, block, columns))
        with path.open("rb"):  # so that a missing file is told in the same words for all kinds
            pass
    except OSError as error:
        raise UsageError(f"{path}: cannot read it: {error.strerror or error}") from None
    if kind in SOUND:
        return _sound(path, signal, block, columns, served, stack)
    return _array(path, signal, block)


# Sound


def _sound(
    path: Path, signal: Signal, block: int, columns: Sequence[str] | None, served: bool, stack: ExitStack
) -> Source:
    library = soundfile(path)
    tensor = _only(str(path), signal)
    if tensor.dtype not in _SOUND_DTYPES or len(tensor.shape) > 1:
        raise UsageError(f"{path}: the pipeline takes {tensor}, which a sound file cannot give")
    try:
        sound = stack.enter_context(library.SoundFile(path))
    except library.LibsndfileError as error:
        raise UsageError(f"{path}: not a sound file that libsndfile reads: {error}") from None
    if tensor.dtype.startswith("int") and sound.subtype in ("FLOAT", "DOUBLE"):
        raise UsageError(f"{path}: holds {sound.subtype} samples in -1..1, but the pipeline takes {tensor}")
    rate = float(sound.samplerate)
    if signal.rate is None:
        print(
            f"runnel: warning: the pipeline states no rate; {path} is {rate:g} Hz: say rate under [model] "
            "(or export with rate=)",
            file=sys.stderr,
        )
    elif rate != signal.rate:
        advice = (
            f"convert the file first, for example sox {path} -r {signal.rate:g} out.wav, or serve a pipeline "
            "with a resample stage"
            if served
            else f"in the pipeline file, write rate = {rate:g} under [input], and under [[before]] "
            f'use = "resample", rate = {signal.rate:g}'
        )
        raise UsageError(f"{path}: {rate:g} Hz, but the pipeline takes {signal.rate:g} Hz: {advice}")
    picked = _channels(path, columns, sound.channels)
    wanted = tensor.shape[0] if tensor.shape else 1
    if sound.channels < wanted:
        raise UsageError(
            f"{path}: the pipeline takes {wanted} numbers a time step ({tensor}), and the file has "
            f"{sound.channels} channel{'s' * (sound.channels > 1)}"
        )
    if len(picked) != wanted:
        raise UsageError(
            f"{path}: {len(picked)} of its {sound.channels} channels are chosen, but the pipeline takes "
            f"{wanted} ({tensor}): choose them with --columns, for example --columns 1"
        )
    return Source(_sound_chunks(sound, tensor, block, picked), sound.frames, rate)


def _channels(path: Path, columns: Sequence[str] | None, channels: int) -> list[int]:
    numbers = [str(n) for n in range(1, channels + 1)]
    for column in columns or ():
        if column not in numbers:
            raise UsageError(f"{path}: no channel {column!r}; it has the channels 1 to {channels}")
    return [int(column) - 1 for column in columns or numbers]


def _sound_chunks(sound: Any, tensor: TensorSpec, block: int, picked: list[int]) -> Iterator[Chunk]:
    while len(frames := sound.read(block, dtype=tensor.dtype, always_2d=True)):
        yield {tensor.name: np.ascontiguousarray(frames[:, picked]).reshape(-1, *tensor.shape)}


# Tables


def _table(
    path: Path, text: TextIO, separator: str, signal: Signal, block: int, columns: Sequence[str] | None
) -> Iterator[Chunk]:
    rows = csv.reader(text, delimiter=separator)
    try:
        header = _header(path, rows, separator, columns if columns is not None else columns_of(signal))
        first = next(rows, None)
        if first is None:
            raise UsageError(f"{path}: has a header and no rows")
        places = _places(path, header, first, signal, columns)
        rest, number = chain([first], rows), 1
        while part := list(islice(rest, block)):
            yield _table_chunk(path, header, part, number, signal, places)
            number += len(part)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a table of text: {error}") from None


def _header(path: Path, rows: Iterator[list[str]], separator: str, wanted: Sequence[str]) -> list[str]:
    """The first row, which names the columns; told apart from data, and from another separator's."""
    row = next(rows, None)
    if row is None:
        raise UsageError(f"{path}: is empty")
    header = [cell.strip() for cell in row]
    if not any(header):
        raise UsageError(f"{path}: its first row is blank: it must hold the names of the columns")
    if not set(header).isdisjoint(wanted):
        return header
    if all(_is_float(cell) for cell in header if cell):
        raise UsageError(f"{path}: its first row holds numbers, not column names: add a header row")
    other = next((mark for mark in ",;\t" if len(header) == 1 and mark in header[0]), None)
    if other:
        kind = {",": "commas", "\t": "tabs"}[separator]
        raise UsageError(f"{path}: its header looks separated by {other!r}: save it with {kind}")
    return header


def _places(
    path: Path, header: list[str], first: list[str], signal: Signal, columns: Sequence[str] | None
) -> list[int]:
    """Which column of the table holds each number of a time step."""
    wanted = columns_of(signal)
    chosen = list(columns) if columns is not None else wanted
    if len(chosen) != len(wanted):
        raise UsageError(
            f"{path}: --columns names {len(chosen)}, but a time step holds {len(wanted)} numbers ({signal})"
        )
    missing = [name for name in chosen if name not in header]
    if not missing:
        return [header.index(name) for name in chosen]
    if columns is None and len(signal.tensors) == 1:
        # One array, named otherwise in the file: the whole table if that fits exactly. Of a table that
        # holds more, no part is guessed: an id is a number too.
        numeric = [name for name, cell in zip(header, first, strict=False) if _number(cell) is not None]
        if len(missing) == len(wanted) == len(header) == len(numeric):
            return list(range(len(header)))
        found = f"; its columns are {', '.join(header)}, {len(numeric)} of them hold numbers"
        choose = f"{len(wanted)} are needed ({signal})"
        if len(numeric) >= len(wanted):
            choose += f": say which, in order, such as --columns {','.join(numeric[: len(wanted)])}"
    else:
        found, choose = "", "Choose with --columns"
    raise UsageError(f"{path}: no column {missing[0]!r}{nearest(missing[0], header)}{found}. {choose}")


def _table_chunk(
    path: Path, header: list[str], rows: list[list[str]], number: int, signal: Signal, places: list[int]
) -> Chunk:
    """Rows of text as a chunk; `number` is the first one's, counted from 1 without the header."""
    chunk: dict[str, Array] = {}
    at = 0
    for tensor in signal.tensors:
        width = len(tensor_columns(tensor))
        whole = np.dtype(tensor.dtype).kind in "iu"
        values = [
            [_cell(path, header, row, place, number + i, whole) for place in places[at : at + width]]
            for i, row in enumerate(rows)
        ]
        try:
            chunk[tensor.name] = np.array(values, tensor.dtype).reshape(-1, *tensor.shape)
        except OverflowError as error:
            last = number + len(rows) - 1
            raise UsageError(f"{path}: rows {number} to {last}: {error} ({tensor})") from None
        at += width
    return chunk


def _cell(path: Path, header: list[str], row: list[str], place: int, number: int, whole: bool) -> float | int:
    where = f"{path}: row {number}, column {header[place]!r}"
    if place >= len(row):
        raise UsageError(f"{where}: the row ends before it, after {len(row)} cells")
    value = _number(row[place])
    if value is None:
        raise UsageError(f"{where}: {row[place]!r:.80} is not a finite number")
    if not whole:
        return value
    try:
        return int(row[place])  # not by way of a float, which holds 53 bits
    except ValueError:
        raise UsageError(f"{where}: {row[place]!r:.80} is not a whole number") from None


def _is_float(cell: str) -> bool:
    """Whether it is written as a number, be it nan."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str) -> float | None:
    value = float(cell) if _is_float(cell) else math.nan
    return value if math.isfinite(value) else None


# Arrays


def _array(path: Path, signal: Signal, block: int) -> Source:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UsageError(f"{path}: not a .npy file of plain numbers: {error}") from None
    if not isinstance(array, np.ndarray) or array.ndim < 1:
        raise UsageError(f"{path}: expected one array with time as its first axis")
    fields = {t.name: _field(path, array, t, len(signal.tensors) == 1) for t in signal.tensors}
    starts = range(0, len(array), block)
    chunks = ({t.name: _cast(path, t, fields[t.name][i : i + block]) for t in signal.tensors} for i in starts)
    return Source(chunks, len(array))


def _cast(path: Path, tensor: TensorSpec, block: Array) -> Array:
    """The block in the pipeline's dtype; whole numbers that do not fit it would wrap around unseen."""
    if (
        block.size
        and tensor.dtype.lstrip("u").startswith("int")
        and not np.can_cast(block.dtype, tensor.dtype)
    ):
        limits = np.iinfo(tensor.dtype)
        low, high = int(block.min()), int(block.max())
        if low < limits.min or high > limits.max:
            raise UsageError(
                f"{path}: {tensor.name!r} holds {low if low < limits.min else high}, "
                f"which is no {tensor.dtype} ({limits.min} to {limits.max})"
            )
    return block.astype(tensor.dtype)


def _field(path: Path, array: Array, tensor: TensorSpec, alone: bool) -> Array:
    """The array for one input: the file's own, or a field of its records (as our .npy output has)."""
    if array.dtype.names:
        if tensor.name not in array.dtype.names:
            names = list(array.dtype.names)
            raise UsageError(
                f"{path}: its records have no field {tensor.name!r}{nearest(tensor.name, names)}"
            )
        array = array[tensor.name]
    elif not alone:
        raise UsageError(
            f"{path}: one array, but the pipeline has several inputs: a .npy of records holds them"
        )
    if array.shape[1:] != tensor.shape:
        raise UsageError(f"{path}: {tensor.name!r} has shape {array.shape}, but the pipeline takes {tensor}")
    if not np.can_cast(array.dtype, tensor.dtype, "same_kind"):
        raise UsageError(f"{path}: {tensor.name!r} is {array.dtype}, but the pipeline takes {tensor}")
    return array


# Raw numbers


def _raw(stream: BufferedReader, signal: Signal, block: int) -> Iterator[Chunk]:
    """Little-endian numbers in C order, given on as they arrive."""
    tensor = _only("standard input", signal)
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    size = dtype.itemsize * math.prod(tensor.shape)
    held, steps = b"", 0
    while data := stream.read1(block * size - len(held)):  # what is there: it waits for no full block
        held += data
        ready = len(held) // size
        if ready:
            values = np.frombuffer(held, dtype, count=ready * size // dtype.itemsize)
            yield {tensor.name: values.astype(tensor.dtype).reshape(ready, *tensor.shape)}
            held, steps = held[ready * size :], steps + ready
    if held:
        raise UsageError(
            f"standard input ended {len(held)} bytes into time step {steps}, which takes {size}: cut off, or "
            f"not {dtype.name} numbers of shape {tensor.shape} a step"
        )


def _only(where: str, signal: Signal) -> TensorSpec:
    if len(signal.tensors) != 1:
        raise UsageError(
            f"{where}: it holds one array, but the pipeline takes {signal}: use a table or a .npy of records"
        )
    return signal.tensors[0]
