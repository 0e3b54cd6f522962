"""Trials for the laws: cut samples, play streams, compare arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..spec import Array
from ..stage import Arrays, Chunk, Stage, State

STEPS = 256  # length of the random samples, in time steps


class LawBroken(AssertionError):  # noqa: N818 - a test reports it; not an error of the tree
    """A stage breaks a law; `law` is its name in `LAWS`, `found` the observation."""

    def __init__(self, law: str, found: str) -> None:
        super().__init__(f"the law of {law} is broken: {found}")
        self.law, self.found = law, found


@dataclass(frozen=True)
class Trial:
    """The material of a trial. `samples` is one chunk; each law makes its own stages."""

    factory: Callable[[], Stage]
    samples: Chunk
    seed: int
    tolerance: float

    @property
    def steps(self) -> int:
        return len(next(iter(self.samples.values())))

    def part(self, start: int, stop: int) -> dict[str, Array]:
        """Return a copy of the samples from `start` up to `stop`."""
        return {name: array[start:stop].copy() for name, array in self.samples.items()}

    def cuts(self) -> list[dict[str, Array]]:
        """Return the samples as chunks of random length, including empty chunks and single steps."""
        inner = np.random.default_rng(self.seed).integers(0, self.steps + 1, size=max(4, self.steps // 16))
        edges = np.sort(np.concatenate([[0, 0, 1], inner, inner[:2], [self.steps]]))
        return [self.part(a, b) for a, b in itertools.pairwise(edges)]

    def poisoned(self, start: int, value: float = math.nan) -> dict[str, Array]:
        """Return the samples from `start`, with `value` last in each float array."""
        chunk = self.part(start, self.steps)
        for array in chunk.values():
            if array.dtype.kind == "f":
                array[-1] = value
        return chunk


def noise(stage: Stage, seed: int) -> dict[str, Array]:
    """Return `STEPS` time steps for the stage: normal floats; zeros and ones for other dtypes."""
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for t in stage.inputs.tensors:
        shape = (STEPS, *t.shape)
        if np.dtype(t.dtype).kind == "f":
            made[t.name] = rng.standard_normal(shape).astype(t.dtype)
        else:
            made[t.name] = rng.integers(0, 2, shape).astype(t.dtype)
    return made


def play(stage: Stage, chunks: Iterable[Chunk], state: State | None = None) -> Chunk:
    """Return all output of one stream, including the flush, as one chunk."""
    now = stage.open() if state is None else state
    made = []
    for chunk in chunks:
        now, out = stage.step(now, chunk)
        made.append(copied(out))
    made.append(copied(stage.flush(now)[1]))
    return join(made)


def join(chunks: Sequence[Chunk]) -> Chunk:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def copied(arrays: Arrays) -> dict[str, Array]:
    return {name: np.array(value) for name, value in arrays.items()}


def locked(arrays: Arrays) -> Arrays:
    """Make the arrays read-only, as a pipeline does before it passes them to a stage."""
    for value in arrays.values():
        value.setflags(write=False)
    return arrays


def memory(array: Array) -> int:
    """Bytes of the array's base, which stays in memory with it."""
    held: Any = array
    while isinstance(held.base, np.ndarray):
        held = held.base
    return int(held.nbytes)


def described(chunk: Chunk) -> str:
    return "{" + ", ".join(f"{n}: {a.dtype} {a.shape}" for n, a in chunk.items()) + "}"


def same(law: str, left: Arrays, right: Arrays, message: str, tolerance: float = 0.0) -> None:
    """Raise LawBroken unless both are equal; NaN equals NaN.

    Floats may differ by `tolerance` of their peak. `message` describes the two.
    """
    if sorted(left) != sorted(right):
        raise LawBroken(law, f"{message}: {sorted(left)} and {sorted(right)}")
    for name, a in left.items():
        b = right[name]
        if a.dtype != b.dtype or a.shape != b.shape:
            raise LawBroken(law, f"{message}: {name!r} is {a.dtype} {a.shape} and {b.dtype} {b.shape}")
        if a.dtype.kind == "f" and tolerance:
            peak = float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a)))
            close = np.isclose(a, b, rtol=0, atol=tolerance * peak, equal_nan=True)
        else:
            close = np.asarray((a == b) | ((a != a) & (b != b)))
        if not close.all():
            at = tuple(int(i) for i in np.argwhere(~close)[0])
            raise LawBroken(law, f"{message}: {name!r} differs at {at}: {a[at]} and {b[at]}")
