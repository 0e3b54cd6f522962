"""Convert between the wire's tensors and numpy arrays."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from ..errors import ChunkError, PipelineError
from ..spec import Array, Signal, TensorSpec
from .messages import MAX_LABEL_CHARACTERS, MAX_LABELS, Datatype, TensorInfo, TensorMetadata

DATATYPES: Mapping[str, Datatype] = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
_NAMES = {datatype: name for name, datatype in DATATYPES.items()}
_NATIVE = {datatype: np.dtype(name) for name, datatype in DATATYPES.items()}
_LITTLE = {datatype: dtype.newbyteorder("<") for datatype, dtype in _NATIVE.items()}
_SWAPPED = sys.byteorder == "big"  # then the machine's byte order is not the wire's
_DATATYPE_OF = {dtype: datatype for datatype, dtype in _NATIVE.items()}  # a dtype's name is slow to compute


@lru_cache(maxsize=1024)
def _info(name: str, datatype: Datatype, shape: tuple[int, ...]) -> TensorInfo:
    """Share one description between all chunks of a shape, since many replies are cached."""
    return TensorInfo(name, datatype, list(shape))


def pack(chunk: Mapping[str, Array]) -> tuple[list[TensorInfo], list[bytes]]:
    """Describe the arrays and lay them out: little-endian, C order.

    Raises ChunkError if one is not an array, or has a dtype that the wire lacks.
    """
    infos: list[TensorInfo] = []
    buffers: list[bytes] = []
    for name, array in chunk.items():
        if not isinstance(array, np.ndarray):
            raise ChunkError(f"{name!r} is a {type(array).__name__}; expected a numpy array, time axis first")
        datatype = _DATATYPE_OF.get(array.dtype)
        if datatype is None:  # or it is in the other byte order
            datatype = DATATYPES.get(array.dtype.name)
            if datatype is None:
                raise ChunkError(f"{name!r} is {array.dtype}; expected one of {', '.join(DATATYPES)}")
            array = array.astype(_NATIVE[datatype])
        infos.append(_info(name, datatype, array.shape))
        buffers.append((array.byteswap() if _SWAPPED else array).tobytes())
    return infos, buffers


def unpack(infos: Sequence[TensorInfo], buffers: Sequence[bytes]) -> dict[str, Array]:
    """Make arrays from checked buffers; they are read-only, and mostly views of the buffers.

    Raises ChunkError for a BOOL that is neither 0 nor 1: such a byte is no truth value to numpy.
    """
    if len(infos) == 1 and not _SWAPPED and infos[0].datatype != "BOOL":  # the usual case
        [info] = infos
        return {info.name: np.ndarray(info.shape, _NATIVE[info.datatype], buffers[0])}
    chunk: dict[str, Array] = {}
    for info, buffer in zip(infos, buffers, strict=True):
        if info.datatype == "BOOL":
            raw = np.frombuffer(buffer, np.uint8)
            if (raw > 1).any():
                raise ChunkError(f"{info.name!r} is BOOL, but holds {raw.max()}: a BOOL is 0 or 1")
        if _SWAPPED:
            array = np.frombuffer(buffer, _LITTLE[info.datatype]).astype(_NATIVE[info.datatype])
            array.setflags(write=False)
            chunk[info.name] = array.reshape(info.shape)
        else:
            chunk[info.name] = np.ndarray(info.shape, _NATIVE[info.datatype], buffer)
    return chunk


def describe(signal: Signal) -> list[TensorMetadata]:
    """Describe a signal's tensors for hello. Raises PipelineError for a dtype that the wire lacks."""
    for t in signal.tensors:
        if t.dtype not in DATATYPES:
            raise PipelineError(
                f"{t.name!r} is {t.dtype}, which cannot be served; expected one of {', '.join(DATATYPES)}"
            )
    return [TensorMetadata(t.name, DATATYPES[t.dtype], [-1, *t.shape], _labels(t)) for t in signal.tensors]


def _labels(tensor: TensorSpec) -> list[str]:
    """All labels or none: a part would pass for the whole."""
    labels = tensor.labels
    sendable = len(labels) <= MAX_LABELS and sum(map(len, labels)) <= MAX_LABEL_CHARACTERS
    return list(labels) if sendable else []


def undescribe(tensors: Sequence[TensorMetadata], rate: float) -> Signal:
    """Inverse of `describe`."""
    specs = tuple(
        TensorSpec(t.name, _NAMES[t.datatype], tuple(t.shape[1:]), tuple(t.labels)) for t in tensors
    )
    return Signal(specs, rate or None)
