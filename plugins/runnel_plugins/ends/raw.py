"""Bytes as they are: little-endian numbers in C order (``raw``), or a text's bytes (``txt``)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from runnel import Signal, Source, hookimpl
from runnel.columns import only_tensor
from runnel.errors import UsageError
from runnel.files import Input
from runnel.hookspecs import SourceFactory
from runnel.stage import Chunk


class Raw(Source):
    """Read little-endian numbers of the input's dtype and shape, as they come; no path: standard input."""

    def __init__(self, signal: Signal, path: Path | None = None) -> None:
        self._input = Input(path)
        self._tensor = only_tensor(self._input.name, signal)
        self.live = self._input.live

    def chunks(self, block: int) -> Iterator[Chunk]:
        tensor = self._tensor
        dtype = np.dtype(tensor.dtype).newbyteorder("<")
        size = dtype.itemsize * math.prod(tensor.shape)
        held, steps = b"", 0
        while data := self._input.read(block * size - len(held)):  # what is there: it waits for no full block
            held += data
            ready = len(held) // size
            if ready:
                values = np.frombuffer(held, dtype, count=ready * size // dtype.itemsize)
                yield {tensor.name: values.astype(tensor.dtype).reshape(ready, *tensor.shape)}
                held, steps = held[ready * size :], steps + ready
        if held:
            raise UsageError(
                f"{self._input.name} ended {len(held)} bytes into time step {steps}, which takes {size}: cut "
                f"off, or not {dtype.name} numbers of shape {tensor.shape} a step"
            )

    def close(self) -> None:
        self._input.close()


class Text(Raw):
    """Read a text, a byte a time step, for a pipeline that takes uint8 (and begins with `tokens`, say)."""

    def __init__(self, signal: Signal, path: Path | None = None) -> None:
        super().__init__(signal, path)
        if (self._tensor.dtype, self._tensor.shape) != ("uint8", ()):
            self.close()
            raise UsageError(
                f"{self._input.name}: a text is a byte a time step (uint8), but the pipeline takes "
                f"{self._tensor}; for numbers in lines of text: lines:PATH"
            )


@hookimpl
def runnel_sources() -> Mapping[str, SourceFactory]:
    return {"raw": Raw, "txt": Text}
