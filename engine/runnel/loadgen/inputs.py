"""Input chunks of a load test, random or from a file, dealt out in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ..errors import UsageError
from ..spec import Array, Signal, TensorSpec
from ..stage import Chunk

MADE: Final = 61  # random chunks: a prime, so that streams and chunks do not stay in step
MOST_BYTES: Final = 256 * 2**20  # for all chunks: an hour of 16 kHz float32

_INTEGERS: Final = 100  # random integers are below it, in the range of every integer dtype


def random_chunks(signal: Signal, steps: int, seed: int = 0, count: int = MADE) -> list[Chunk]:
    """Random chunks of `steps` time steps: standard normal floats, or small integers. Fixed by the seed."""
    rng = np.random.default_rng(seed)
    size = sum(_step_bytes(t) for t in signal.tensors) * steps
    if size * 2 > MOST_BYTES:
        raise UsageError(
            f"--chunk {steps}: one chunk has {size} bytes; at most {MOST_BYTES // 2} are possible"
        )
    count = max(2, min(count, MOST_BYTES // max(size, 1)))
    return [{t.name: _random(rng, t, steps) for t in signal.tensors} for _ in range(count)]


def _step_bytes(tensor: TensorSpec) -> int:
    return int(np.dtype(tensor.dtype).itemsize * np.prod(tensor.shape, dtype=np.int64))


def _random(rng: np.random.Generator, tensor: TensorSpec, steps: int) -> Array:
    shape, dtype = (steps, *tensor.shape), np.dtype(tensor.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    return rng.integers(0, 2 if dtype.kind == "b" else _INTEGERS, shape).astype(dtype)


class Playlist:
    """Deals chunks to streams: each stream cycles through all of them, from its own start."""

    def __init__(self, chunks: Sequence[Chunk], streams: int) -> None:
        self.chunks = chunks
        self._at = [stream * len(chunks) // streams for stream in range(streams)]

    def next_index(self, stream: int) -> int:
        """Index in `chunks` of the stream's next chunk."""
        at = self._at[stream]
        self._at[stream] = (at + 1) % len(self.chunks)
        return at
