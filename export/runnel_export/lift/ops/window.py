"""``x.unfold(time, size, step)``: rows with the rows that follow them, as one more axis."""

from __future__ import annotations

from dataclasses import replace

from ..lowering import Lowering
from ..timing import Windows
from ..values import TIME, Data, Value
from .along_time import windowed
from .registry import handles


@handles("aten::unfold", lazy=True, rows="own")
def unfold(low: Lowering, x: Data, dim: int, size: int, step: int) -> Value:
    v = low.value(x)
    dim %= len(v.axes)
    if v.axes[dim] != TIME:
        raise low.untranslated("unfold of another axis than time")
    return in_windows(low, v, size, step)


def in_windows(low: Lowering, v: Value, size: int, step: int) -> Value:
    """Windows of `size` rows, `step` apart; a last axis has a window's rows."""
    at, windows = v.at(v.time), Windows.of(v.timing, size - 1, step)
    if size == 1 and step == 1:
        return low.insert(v, len(v.axes))
    name = windowed(low, v, windows)
    # Row i of the index holds the places of window i's rows.
    ints = low.graph.ints
    count = low.node("Squeeze", low.node("Shape", v.name, start=at, end=at + 1), ints(0))
    starts = low.node("Range", low.constant(0), count, low.constant(step))
    index = low.node("Add", low.node("Unsqueeze", starts, ints(1)), ints(*range(size)))
    order = (*v.order[: at + 1], len(v.axes), *v.order[at + 1 :])
    made = low.node("Gather", name, index, axis=at)
    return replace(v, name=made, axes=(*v.axes, size), order=order, timing=windows.timing)
