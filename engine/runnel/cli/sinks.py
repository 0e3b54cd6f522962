"""Where `runnel run` writes to: tables, arrays, sound, JSON lines. A file appears only when it is whole."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np

from ..errors import UsageError
from ..spec import Signal
from ..stage import Chunk
from .files import SOUND, TABLE, columns_of, kind_of, soundfile

STDOUT = "-"

Write = Callable[[Chunk], None]


@contextmanager
def open_sink(name: str, signal: Signal) -> Iterator[Write]:
    """A function that writes chunks of `signal` to a file, or as a table to standard output for ``-``.

    The rows go to a file beside the named one, which takes its name when the block ends; if the block
    raises, it is removed, and what stood under the name before stands there still. Raises UsageError for
    a kind of file that is unknown or cannot hold the signal.
    """
    if name == STDOUT:
        yield _table(sys.stdout, ",", signal)
        sys.stdout.flush()
        return
    path = Path(name)
    kind = kind_of(path, [*TABLE, ".npy", ".jsonl", *SOUND], "the kind of output")
    device = path.exists() and not path.is_file()  # a pipe, say: written as it is, never replaced
    part = path if device else path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        file = part.open("wb" if device else "xb")
    except OSError as error:
        raise UsageError(f"{path}: cannot write it: {error.strerror or error}") from None
    try:
        with file, _writer(path, kind, file, signal) as write:
            yield write
        if not device:
            os.replace(part, path)
    except BaseException as error:  # Ctrl-C too: no half file
        if device:
            raise
        part.unlink(missing_ok=True)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt("nothing written") from error
        raise


@contextmanager
def _writer(path: Path, kind: str, file: IO[bytes], signal: Signal) -> Iterator[Write]:
    if kind in SOUND:
        with _sound(path, kind, file, signal) as sound:
            (tensor,) = signal.tensors
            yield lambda chunk: sound.write(chunk[tensor.name])
    elif kind == ".npy":
        array = _ArrayFile(file, signal)
        yield array.write
        array.finish()
    else:
        text = TextIOWrapper(file, "utf-8", newline="")
        try:
            yield _json_lines(text) if kind == ".jsonl" else _table(text, TABLE[kind], signal)
        finally:
            text.detach()  # flushes; the file is the caller's to close


def _table(text: TextIO, separator: str, signal: Signal) -> Write:
    """A header, then one row a time step: the shortest digits that give the number back; bools as 0 and 1."""
    rows = csv.writer(text, delimiter=separator, lineterminator="\n")
    header = [columns_of(signal)]  # until it is written, with the first output: a bad input leaves none

    def write(chunk: Chunk) -> None:
        while header:
            rows.writerow(header.pop())
        columns = []
        for tensor in signal.tensors:
            values = chunk[tensor.name]
            flat = values.reshape(len(values), math.prod(tensor.shape))
            columns.append((flat.astype(np.int8) if flat.dtype == bool else flat).astype(str))
        rows.writerows(np.concatenate(columns, axis=1).tolist())

    return write


def _json_lines(text: TextIO) -> Write:
    """One object a time step. A number that is not finite, which JSON does not have, is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def write(chunk: Chunk) -> None:
        columns = [plain(array.tolist()) for array in chunk.values()]
        for row in zip(*columns, strict=True):
            json.dump(dict(zip(chunk, row, strict=True)), text, allow_nan=False)
            text.write("\n")

    return write


class _ArrayFile:
    """A .npy that grows: one array where the signal has one, else records with a field for each."""

    def __init__(self, file: IO[bytes], signal: Signal) -> None:
        self.file, self.signal, self.rows = file, signal, 0
        first = signal.tensors[0]
        self.alone = len(signal.tensors) == 1
        if self.alone:
            self.dtype, self.shape = np.dtype(first.dtype).newbyteorder("<"), first.shape
        else:
            self.dtype = np.dtype(
                [(t.name, np.dtype(t.dtype).newbyteorder("<"), t.shape) for t in signal.tensors]
            )
            self.shape = ()
        self._header()

    def write(self, chunk: Chunk) -> None:
        rows = len(chunk[self.signal.names[0]])
        if self.alone:
            block = np.ascontiguousarray(chunk[self.signal.names[0]], self.dtype)
        else:
            block = np.empty(rows, self.dtype)
            for name in self.signal.names:
                block[name] = chunk[name]
        self.file.write(block.tobytes())
        self.rows += rows

    def finish(self) -> None:
        """Write the true number of rows: NumPy leaves room in a header for its first axis to grow."""
        end = self.file.tell()
        self.file.seek(0)
        self._header()
        self.file.seek(end)

    def _header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.rows, *self.shape),
        }
        np.lib.format.write_array_header_1_0(self.file, header)


def _sound(path: Path, kind: str, file: IO[bytes], signal: Signal) -> Any:
    library = soundfile(path)
    tensor = signal.tensors[0]
    if len(signal.tensors) != 1 or tensor.dtype not in ("float32", "int16") or len(tensor.shape) > 1:
        raise UsageError(
            f"{path}: a sound file holds one float32 or int16 array of one or more channels, but the "
            f"pipeline gives {signal}: write a table or a .npy"
        )
    if not signal.rate or signal.rate != int(signal.rate):
        raise UsageError(
            f"{path}: a sound file needs a whole sample rate, but the pipeline's output has "
            f"{f'{signal.rate:g} Hz' if signal.rate else 'none'}: write a table or a .npy"
        )
    channels = tensor.shape[0] if tensor.shape else 1
    subtype = "FLOAT" if tensor.dtype == "float32" and kind in (".wav", ".aiff") else None
    return library.SoundFile(file, "w", int(signal.rate), channels, subtype, format=SOUND[kind])
