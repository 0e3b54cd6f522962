"""One-hot vectors of integers: y[t][i] = 1 if i = x[t], else 0.

Latency 0; no unit.
"""

from __future__ import annotations

import math

import numpy as np

import runnel
from runnel.batch import RowStage
from runnel.errors import ChunkError, PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Signal, TensorSpec
from runnel.stage import Chunk

from ._choose import one, with_tensors

MAX_SIZE = 2**20  # numbers of one time step: larger than any vocabulary, and 4 MB


class OneHot(RowStage):
    """Replace each integer by a float32 vector of `size`: 1 at that index, 0 elsewhere.

    Input: one array of integers, shape (...); `of` names it if several arrive. It becomes float32 (...,
    size); other arrays pass. `size` defaults to the number of the array's labels, as after `tokens`.

    A number outside 0..size-1 raises ChunkError with its value and position. Raises PipelineError if no
    array, or no size, is known.
    """

    name = "one_hot"

    def __init__(self, inputs: Signal, size: int | None = None, of: str | None = None) -> None:
        self.tensor = one(
            self.name, inputs, of, lambda t: np.dtype(t.dtype).kind in "iu", "whole numbers (int or uint)"
        )
        size = (len(self.tensor.labels) or None) if size is None else size
        if size is None:
            raise PipelineError(f"one_hot: give size: {self.tensor.name!r} has no labels to count")
        if not 1 <= size * math.prod(self.tensor.shape) <= MAX_SIZE:
            raise PipelineError(
                f"one_hot: size must be at least 1, and a row at most {MAX_SIZE} numbers; {size} for each of "
                f"{self.tensor} is not"
            )
        self.size = size
        made = TensorSpec(self.tensor.name, "float32", (*self.tensor.shape, size), self.tensor.labels)
        self.inputs = inputs
        self.outputs = with_tensors(self.name, inputs, self.tensor, made)

    def rows(self, arrays: Chunk) -> Chunk:
        ids = arrays[self.tensor.name]
        if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < self.size):
            where = tuple(int(i) for i in np.argwhere((ids < 0) | (ids >= self.size))[0])
            raise ChunkError(
                f"one_hot: {self.tensor.name!r} has {ids[where]} at time step {where[0]}"
                + (f", element {where[1:]}" if len(where) > 1 else "")
                + f"; expected 0..{self.size - 1}, since size is {self.size}"
            )
        vectors = np.zeros((*ids.shape, self.size), np.float32)
        # As intp: numpy cannot index with uint64, and every number fits by now.
        vectors.reshape(-1, self.size)[np.arange(ids.size), ids.astype(np.intp).ravel()] = 1
        return {**arrays, self.tensor.name: vectors}


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"one_hot": OneHot}
