"""Random data that looks like the user's example, and can be drawn again without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from runnel.errors import ModelError
from runnel.spec import Array, TensorSpec


@dataclass(frozen=True, slots=True)
class Source:
    """How one input's random data is drawn: `shape` is that of one time step of a chunk.

    Kinds: ``normal`` (mean, spread: its standard deviation), ``positive`` (the same's absolute value,
    for an example with nothing below zero: a magnitude, a power), ``integers`` (low..high, both
    included), ``bool``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    mean: float = 0.0
    spread: float = 1.0
    low: int = 0
    high: int = 1

    def draw(self, rng: np.random.Generator, ticks: int) -> Array:
        """(ticks, \\*shape) of `dtype`."""
        size = (ticks, *self.shape)
        if self.kind == "integers":
            return rng.integers(self.low, self.high, size, endpoint=True).astype(self.dtype)
        if self.kind == "bool":
            return rng.random(size) < 0.5
        values = rng.normal(self.mean, self.spread, size)
        return (np.abs(values) if self.kind == "positive" else values).astype(self.dtype)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str) -> Source:
        try:
            return cls(**{**document, "shape": tuple(document["shape"])})
        except (TypeError, KeyError) as error:
            raise ModelError(f"{where}: its certificate does not say how data is drawn ({error})") from None


def source(tensor: TensorSpec, example: Array) -> Source:
    """The source for one input: normal with the example's mean and spread, or its range of integers."""
    shape = tensor.shape
    if tensor.dtype == "bool":
        return Source(tensor.name, tensor.dtype, shape, "bool")
    if np.dtype(tensor.dtype).kind in "iu":
        low, high = int(example.min()), int(example.max())
        return Source(tensor.name, tensor.dtype, shape, "integers", low=low, high=high)
    finite = example[np.isfinite(example)].astype(np.float64)
    mean, spread = (float(finite.mean()), float(finite.std())) if finite.size else (0.0, 0.0)
    # Zeros or ones, as examples often are, say nothing about the spread.
    spread = spread if spread > 1e-6 * max(1.0, abs(mean)) else 1.0
    positive = bool(finite.size and finite.min() >= 0 and finite.max() > 0)
    return Source(tensor.name, tensor.dtype, shape, "positive" if positive else "normal", mean, spread)


def draw(sources: Iterable[Source], rng: np.random.Generator, ticks: int) -> dict[str, Array]:
    """A chunk of `ticks` time steps of every input."""
    return {s.name: s.draw(rng, ticks) for s in sources}


def weak_spots(sources: Iterable[Source]) -> list[str]:
    """What the example does not exercise, in words for the user."""
    return [
        f"the example's {s.name!r} is {s.low} everywhere, so nothing else was tried: "
        "give an example that spans the range of values"
        for s in sources
        if s.kind == "integers" and s.low == s.high
    ]
