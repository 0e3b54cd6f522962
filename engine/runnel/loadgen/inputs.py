"""What the streams of a load are fed: chunks made or read beforehand, dealt out in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from ..errors import UsageError
from ..spec import Array, Signal, TensorSpec
from ..stage import Chunk

MADE: Final = 61  # random chunks: a prime, so that streams and chunks never fall into step
MOST_BYTES: Final = 256 * 2**20  # of all chunks: an hour of 16 kHz float32

_INTEGERS: Final = 100  # random whole numbers are below it: in the range of every integer dtype


def random_chunks(signal: Signal, steps: int, seed: int = 0, count: int = MADE) -> list[Chunk]:
    """Chunks of `steps` time steps each: standard normal, or whole numbers from 0; finite, of one seed."""
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
    """Deals chunks to streams: each goes through all of them, from a place of its own, again and again."""

    def __init__(self, chunks: Sequence[Chunk], streams: int) -> None:
        self.chunks = chunks
        self._at = [stream * len(chunks) // streams for stream in range(streams)]

    def next_index(self, stream: int) -> int:
        """Which of `chunks` is the stream's next."""
        at = self._at[stream]
        self._at[stream] = (at + 1) % len(self.chunks)
        return at
