"""NumPy files: one array, or records with one field per tensor.

Time is the first axis. The format is NumPy's own (numpy.lib.format, version 1.0); nothing in it is ever
unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from runnel import Signal, Sink, Source, TensorSpec, hookimpl
from runnel.errors import UsageError, nearest
from runnel.files import OutputFile, regular
from runnel.hookspecs import SinkFactory, SourceFactory
from runnel.spec import Array
from runnel.stage import Chunk


class Npy(Source):
    """Read a NumPy array in parts of bounded size; records if the pipeline takes several arrays."""

    def __init__(self, signal: Signal, path: Path) -> None:
        regular(path, "a .npy")
        try:
            with np.errstate(over="ignore"):  # from a shape that no file can have
                array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy evaluates the header as Python source, which fails in many ways
            raise UsageError(f"{path}: not a .npy file of plain numbers: {error!s:.300}") from None
        if not isinstance(array, np.ndarray) or array.ndim < 1:
            raise UsageError(f"{path}: expected one array with time as its first axis")
        self._path, self._signal = path, signal
        self._fields = {t.name: _field(path, array, t, len(signal.tensors) == 1) for t in signal.tensors}
        self.steps = len(array)

    def chunks(self, block: int) -> Iterator[Chunk]:
        for start in range(0, self.steps or 0, block):
            yield {
                t.name: _cast(self._path, t, self._fields[t.name][start : start + block])
                for t in self._signal.tensors
            }


def _cast(path: Path, tensor: TensorSpec, block: Array) -> Array:
    """Convert the block to the pipeline's dtype; UsageError for integers that would overflow."""
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
    try:
        with np.errstate(over="raise"):
            return block.astype(tensor.dtype)
    except FloatingPointError:
        raise UsageError(f"{path}: {tensor.name!r} holds a number that no {tensor.dtype} can hold") from None


def _field(path: Path, array: Array, tensor: TensorSpec, alone: bool) -> Array:
    """Return the array for one input: the file's own, or a field of its records."""
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
    if array.shape[1:] != tensor.shape and array.ndim == 1 and math.prod(tensor.shape) == 1:
        array = array.reshape(-1, *tensor.shape)  # a sequence of numbers, for an input of one number
    if array.shape[1:] != tensor.shape:
        raise UsageError(f"{path}: {tensor.name!r} has shape {array.shape}, but the pipeline takes {tensor}")
    if not np.can_cast(array.dtype, tensor.dtype, "same_kind"):
        raise UsageError(f"{path}: {tensor.name!r} is {array.dtype}, but the pipeline takes {tensor}")
    return array


class NpySink(Sink):
    """Write a NumPy array that grows: one array for one output, else records with one field for each."""

    def __init__(self, signal: Signal, path: Path) -> None:
        self._signal, self._rows = signal, 0
        first = signal.tensors[0]
        self._alone = len(signal.tensors) == 1
        if self._alone:
            self._dtype, self._shape = np.dtype(first.dtype).newbyteorder("<"), first.shape
        else:
            self._dtype = np.dtype(
                [(t.name, np.dtype(t.dtype).newbyteorder("<"), t.shape) for t in signal.tensors]
            )
            self._shape = ()
        self._out = OutputFile(path, seek=True)
        self._header()

    def write(self, chunk: Chunk) -> None:
        rows = len(chunk[self._signal.names[0]])
        if self._alone:
            block = np.ascontiguousarray(chunk[self._signal.names[0]], self._dtype)
        else:
            block = np.empty(rows, self._dtype)
            for name in self._signal.names:
                block[name] = chunk[name]
        self._out.file.write(block.tobytes())
        self._rows += rows

    def close(self, whole: bool) -> None:
        try:
            self._out.file.seek(0)
            self._header()  # with the number of rows: NumPy reserves room for the first axis to grow
        except BaseException:
            self._out.close(False)
            raise
        self._out.close(whole)

    def _header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._shape),
        }
        np.lib.format.write_array_header_1_0(self._out.file, header)


@hookimpl
def runnel_sources() -> Mapping[str, SourceFactory]:
    return {"npy": Npy}


@hookimpl
def runnel_sinks() -> Mapping[str, SinkFactory]:
    return {"npy": NpySink}
