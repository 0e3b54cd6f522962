"""A step of the engine beside torch eager, in turns on one thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

import runnel
from tests.bench.measure import Effort, paired

from .case import Built
from .checking import call, examples, time_axis

EFFORT = Effort(rounds=9, turns=3, block_seconds=0.004)


@dataclass(frozen=True)
class Timed:
    """`ratio`: the engine's time for a step divided by torch's."""

    ratio: float
    step_us: float


def measure(engine: runnel.Engine, built: Built, rate: Fraction) -> Timed:
    """Time the smallest chunk that gives a row.

    Torch eager gets a chunk of as many ticks, and keeps no state. If the module needs more ticks than that,
    torch gets the shortest chunk that it takes: what a program without a step model would call.
    """
    step = rate.denominator
    inputs = _shortest(built, step)
    ticks = {name: _chunk(x, built, step) for name, x in examples(built).items()}
    names = [tensor.name for tensor in engine.pipeline.inputs.tensors]
    chunk = {name: ticks.get(name, next(iter(ticks.values()))) for name in names}
    with engine.open() as stream, torch.inference_mode():

        def fed(calls: int) -> None:
            for _ in range(calls):
                stream.feed(chunk)

        def eager(calls: int) -> None:
            for _ in range(calls):
                call(built, inputs)

        found = paired(fed, eager, EFFORT)
    return Timed(found.ratio.median, found.a.median * 1e6)


def _shortest(built: Built, step: int) -> Mapping[str, Tensor]:
    """The inputs cut to `step` ticks, or to the least multiple by two that the module takes."""
    axis = time_axis(built)
    whole = examples(built)
    if axis is None:
        return whole
    length = next(iter(whole.values())).shape[axis]
    while step < length:
        cut = {name: x.narrow(axis, 0, step) for name, x in whole.items()}
        try:
            with torch.inference_mode():
                call(built, cut)
        except (RuntimeError, AssertionError, IndexError, ValueError):
            step *= 2
        else:
            return cut
    return whole


def _chunk(x: Tensor, built: Built, step: int) -> object:
    axis = time_axis(built)
    if axis is None:
        return x[:1].numpy()
    moved = x.movedim(axis, 0)[:, 0]
    return moved.repeat(-(-step // len(moved)), *[1] * (moved.ndim - 1))[:step].contiguous().numpy()
