"""Interpolation by a whole factor: along time more rows, within a frame more features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..lowering import Lowering
from ..timing import Windows
from ..values import BATCH, TIME, Data, Value
from .along_time import spread, widened, windowed
from .registry import handles
from .shape import index_select


@handles(
    "aten::upsample_nearest1d.vec", "aten::upsample_nearest2d.vec",
    "aten::upsample_nearest1d", "aten::upsample_nearest2d",
    lazy=True, rows="own",
)  # fmt: skip
def nearest(low: Lowering, x: Data, sizes: Sequence[int] | None, *scales: object) -> Value:
    v, factors = _factors(low, x, sizes, scales)
    for axis, factor in factors.items():
        v = repeated(low, v, axis, factor)
    return v


@handles("aten::repeat_interleave.self_int", lazy=True, rows="own")
def repeat_interleave(
    low: Lowering, x: Data, repeats: int, dim: int | None = None, size: int | None = None
) -> Value:
    v = low.value(x)
    if dim is None or v.axes[dim] == BATCH:
        raise low.untranslated("repeat_interleave of the batch, or of all axes as one")
    return repeated(low, v, dim % len(v.axes), repeats)


def repeated(low: Lowering, v: Value, axis: int, times: int) -> Value:
    """Each row, or each feature, `times` times."""
    if times == 1:
        return v
    if v.axes[axis] != TIME:
        size = low.size(v.axes[axis])
        return replace(
            index_select(low, v, axis, torch.arange(size).repeat_interleave(times)), timing=v.timing
        )
    v = low.insert(v, axis + 1)
    v = low.canonical(v, full=True)
    shape = [times if o == axis + 1 else 1 for o in v.order]
    axes = (*v.axes[: axis + 1], times, *v.axes[axis + 2 :])
    return spread(
        low, replace(v, name=low.node("Expand", v.name, low.graph.ints(*shape)), axes=axes), axis + 1
    )


@handles("aten::upsample_linear1d.vec", "aten::upsample_linear1d", lazy=True, rows="own")
def linear(
    low: Lowering, x: Data, sizes: Sequence[int] | None, align_corners: bool, *scales: object
) -> Value:
    v, factors = _factors(low, x, sizes, scales)
    [(axis, factor)] = factors.items()
    if align_corners or v.axes[axis] != TIME:
        raise low.untranslated("linear interpolation with align_corners, or within a frame")
    if factor == 1:
        return v
    # Row p of those between two is src = (p + 1/2) / factor - 1/2 rows from the middle one of three.
    weights = torch.zeros(factor, 3)
    for p in range(factor):
        at = (p + 0.5) / factor - 0.5
        weights[p, 1] = 1 - abs(at)
        weights[p, 0 if at < 0 else 2] = abs(at)
    v = widened(low, v, 1, 1, "replicate")
    windows = Windows.of(v.timing, 2)
    name, at_time = windowed(low, v, windows), v.at(axis)
    shifted = [low.node("Slice", name, *map(low.graph.ints, (k, k - 2 or 2**62, at_time))) for k in range(3)]
    rows = []
    for p in range(factor):
        parts = [
            low.node("Mul", row, low.constant(weights[p, k], v.dtype))
            for k, row in enumerate(shifted)
            if weights[p, k] != 0
        ]
        total = parts[0]
        for part in parts[1:]:
            total = low.node("Add", total, part)
        rows.append(low.node("Unsqueeze", total, low.graph.ints(at_time + 1)))
    made = low.node("Concat", *rows, axis=at_time + 1)
    order = tuple(o + (o > axis) for o in v.order)
    order = (*order[: at_time + 1], axis + 1, *order[at_time + 1 :])
    axes = (*v.axes[: axis + 1], factor, *v.axes[axis + 1 :])
    v = replace(v, name=made, axes=axes, order=order, timing=windows.timing)
    return spread(low, v, axis + 1)


def _factors(
    low: Lowering, x: Data, sizes: Sequence[int] | None, scales: Sequence[object]
) -> tuple[Value, dict[int, int]]:
    """The input, (batch, channels, *sizes), and by which whole factor each of its last axes grows."""
    v = low.value(x)
    last = range(2, len(v.axes))
    if sizes is None:
        given = scales[0]
        assert isinstance(given, list | tuple)
        sizes = [int(low.size(v.axes[i]) * float(f)) for i, f in zip(last, given, strict=True)]
    factors = {}
    for axis, size in zip(last, sizes, strict=True):
        factor, left = divmod(size, low.size(v.axes[axis]))
        if left or not factor:
            raise low.untranslated(f"interpolation from {low.size(v.axes[axis])} to {size}, no whole factor")
        factors[axis] = factor
    return v, factors
