"""The independent check: the engine, fed in random chunks, against torch on the whole sequence.

It shares no code with `runnel_export.certify`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

import runnel

from .case import Built

TOLERANCE = 1e-4  # of the output's peak, in float32 on both sides
Array = np.ndarray[Any, np.dtype[Any]]


class WrongError(Exception):
    """The certified file does not compute what the module computes, or states what is not so."""


@dataclass(frozen=True)
class Checked:
    """`error`: the greatest difference relative to the output's peak."""

    error: float
    rate: Fraction | None
    latency: int


def check(engine: runnel.Engine, built: Built, seed: int) -> Checked:
    """Compare one whole sequence. Raises WrongError."""
    generator = torch.Generator().manual_seed(seed)
    sequence = {name: _drawn(x, built, generator) for name, x in examples(built).items()}
    ticks = _axis_first(next(iter(sequence.values())), built).shape[0]
    with torch.no_grad():
        wanted = _torch_rows(built, sequence, ticks)
    rate, latency = _rate(engine), engine.pipeline.latency
    fed = {name: _axis_first(x, built).numpy() for name, x in sequence.items()}
    given = _streamed(engine, fed, ticks, np.random.default_rng(seed), rate, latency)
    if len(given) > len(wanted):
        raise WrongError(f"{len(given)} outputs, but the module has {len(wanted)}")
    error = max(_difference(*pair) for pair in zip(given, wanted, strict=False))
    if not error <= TOLERANCE:
        raise WrongError(f"differs from torch by {error:.1e} of the peak")
    return Checked(error, rate, latency)


def examples(built: Built) -> Mapping[str, Tensor]:
    """The inputs by name; the only input of a plain tensor has an empty name."""
    return built.example if isinstance(built.example, Mapping) else {"": built.example}


def call(built: Built, inputs: Mapping[str, Tensor], states: Mapping[str, Any] | None = None) -> Any:
    """The module on these inputs."""
    states = built.options.get("state", {}) if states is None else states
    plain = inputs.get("")
    return built.module(plain, **states) if plain is not None else built.module(**inputs, **states)


def time_axis(built: Built) -> int | None:
    axis: int | None = built.options.get("time_axis", 1)
    return axis


def _drawn(example: Tensor, built: Built, generator: torch.Generator) -> Tensor:
    """A longer sequence of one stream, like the example."""
    axis = time_axis(built)
    shape = list(example[:1].shape if axis != 0 else example[:, :1].shape)
    if axis is None:  # ticks of a module that is one step
        shape.insert(1, 50)
    else:
        shape[axis] = built.ticks or 3 * shape[axis] + 5
    if example.is_floating_point():
        return torch.randn(shape, generator=generator) * example.std() + example.mean()
    return torch.randint(int(example.min()), int(example.max()) + 1, shape, generator=generator)


def _axis_first(x: Tensor, built: Built) -> Tensor:
    """(time, ...) of a stream, without the batch axis."""
    axis = time_axis(built)
    moved = x.movedim(1 if axis is None else axis, 0)
    return moved[:, 0]


def _torch_rows(built: Built, sequence: Mapping[str, Tensor], ticks: int) -> list[Array]:
    """The module's outputs over the sequence, as (time, values)."""
    axis = time_axis(built)
    if axis is None:
        return _stepped(built, sequence, ticks)
    if built.last:
        return [_last_rows(built, sequence, axis, ticks)]
    short, found = _tensors(call(built, examples(built))), _tensors(call(built, sequence))
    axes = [_changed(few, y) for few, y in zip(short, found, strict=True)]
    count = next((y.shape[axis] for y, axis in zip(found, axes, strict=True) if axis is not None), 1)
    return [_final(y, count) if axis is None else _rows(y, axis) for y, axis in zip(found, axes, strict=True)]


def _last_rows(built: Built, sequence: Mapping[str, Tensor], axis: int, ticks: int) -> Array:
    """What the module gives after each tick. Rows that it does not give in full are not finite."""
    rows = []
    for t in range(1, ticks + 1):
        try:
            found = _tensors(call(built, {name: x.narrow(axis, 0, t) for name, x in sequence.items()}))
        except RuntimeError:  # too short for the module
            found = [torch.empty(0)]
        rows.append(found[0].reshape(-1))
    size = len(rows[-1])
    return torch.stack([row if len(row) == size else torch.full((size,), math.inf) for row in rows]).numpy()


def _stepped(built: Built, sequence: Mapping[str, Tensor], ticks: int) -> list[Array]:
    """A module that is one step, called tick by tick with the states that it returned."""
    states = dict(built.options.get("state", {}))
    rows = []
    for t in range(ticks):
        made = call(built, {name: x[:, t] for name, x in sequence.items()}, states)
        if isinstance(made, tuple | list) and states:
            rows.append(made[0])
            states = dict(zip(states, made[-len(states) :], strict=True))
        elif isinstance(made, Mapping):
            rows.append(next(y for name, y in made.items() if name not in states))
            states = {name: made[name] for name in states}
        else:
            rows.append(made)
    return [torch.stack([row.reshape(-1) for row in rows]).numpy()]


def _tensors(made: Any) -> list[Tensor]:
    if isinstance(made, Tensor):
        return [made]
    parts = made.values() if isinstance(made, Mapping) else made if isinstance(made, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _changed(few: Tensor, y: Tensor) -> int | None:
    """The axis of time: the one whose length follows the sequence's. None for a final state."""
    return next((axis for axis in range(y.ndim) if few.shape[axis] != y.shape[axis]), None)


def _final(y: Tensor, count: int) -> Array:
    """A final state: it is known after the last tick alone. Rows that are not known are not finite."""
    rows = torch.full((count, y.numel()), math.inf)
    rows[-1] = y.reshape(-1)
    return rows.numpy()


def _rows(y: Tensor, axis: int) -> Array:
    """(time, values) of an output. A complex number is two values."""
    y = torch.view_as_real(y) if y.is_complex() else y
    return y.movedim(axis, 0).reshape(y.shape[axis], -1).numpy()


def _rate(engine: runnel.Engine) -> Fraction | None:
    """Output rows per input tick, as the engine's stages state it."""
    rate = Fraction(1)
    for stage in engine.pipeline.stages:
        if stage.ratio is None:
            return None
        rate *= Fraction(*stage.ratio)
    return rate


def _streamed(
    engine: runnel.Engine,
    fed: Mapping[str, Array],
    ticks: int,
    rng: np.random.Generator,
    rate: Fraction | None,
    latency: int,
) -> list[Array]:
    """The outputs of one stream, fed in random chunks and flushed."""
    names = [tensor.name for tensor in engine.pipeline.inputs.tensors]
    arrays = {name: fed.get(name, next(iter(fed.values()))) for name in names}
    out = [[np.zeros((0, *t.shape), t.dtype)] for t in engine.pipeline.outputs.tensors]
    longest = max(8, 3 * (rate.denominator if rate else 1))
    with engine.open() as stream:
        at = 0
        while at < ticks:
            size = int(rng.integers(1, longest + 1))
            made = stream.feed({name: x[at : at + size] for name, x in arrays.items()})
            at = min(ticks, at + size)
            _gather(out, made)
            if rate is not None and sum(map(len, out[0])) < rows_due(at, rate, latency):
                raise WrongError(f"a row comes later than the latency of {latency} ticks says")
        _gather(out, stream.flush())
    return [np.concatenate(rows).reshape(sum(map(len, rows)), -1) for rows in out]


def rows_due(ticks: int, rate: Fraction, latency: int) -> int:
    """How many rows must have come after so many ticks: a step takes as many ticks as a row of it needs."""
    step = rate.denominator
    return max(0, math.floor((ticks // step * step - latency) * rate))


def _gather(out: list[list[Array]], made: Any) -> None:
    for rows, new in zip(out, made.values() if isinstance(made, Mapping) else [made], strict=True):
        rows.append(new)


def _difference(given: Array, wanted: Array) -> float:
    full = np.isfinite(wanted).all(axis=1)
    if len(given) == full.sum() < len(wanted):
        wanted, full = wanted[full], full[full]
    if given.shape != wanted.shape:
        raise WrongError(f"{_size(given)}, but the module gives {_size(wanted)}")
    if not full.any():
        raise WrongError("torch gives no finite row")
    peak = float(np.abs(wanted[full]).max())
    return float(np.abs(given[full].astype(np.float64) - wanted[full]).max()) / peak if peak else 0.0


def _size(rows: Array) -> str:
    return f"{len(rows)} rows of {rows.shape[1]} values"
