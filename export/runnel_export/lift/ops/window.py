"""``x.unfold(time, size, 1)``: each tick with the ticks before it, as one more axis; those are state."""

from __future__ import annotations

from ..lowering import Lowering
from ..values import BATCH, TIME, Data, Span, Value, axes_of
from .registry import handles
from .span import with_past


@handles("aten::unfold", lazy=True)
def unfold(low: Lowering, x: Data, dim: int, size: int, step: int) -> Value:
    axes = axes_of(x)
    dim %= len(axes)
    is_time = dim == x.axis if isinstance(x, Span) else axes[dim] == TIME
    if not is_time:
        raise low.untranslated("unfold of another axis than time")
    span = x if isinstance(x, Span) else Span(low.value(x), dim, 0, low.size(TIME))
    ticks, base = low.size(TIME), span.base
    if step != 1 or span.length - size + 1 != ticks or span.offset + size - 1 > 0:
        raise low.refusal(
            f"windows of {size} ticks, {step} apart, over a sequence of {span.length - ticks:+d} ticks",
            f"one window a tick, of what was before: F.pad(x, (0, 0, {size - 1}, 0)).unfold(1, {size}, 1)",
        )
    if span.filter or BATCH not in base.axes:
        raise low.untranslated("unfold of a convolution that was not cut yet, or of merged batch and time")
    past, at = -span.offset, base.at(span.axis)
    if past == 0:
        return low.insert(base, len(base.axes))
    longer = with_past(low, base, span.axis, past, span.fill or 0.0, low.path)
    # Row t of the index holds t, t + 1 … t + size - 1: the window that ends in tick t.
    ints = low.graph.ints
    count = low.node("Squeeze", low.node("Shape", base.name, start=at, end=at + 1), ints(0))
    starts = low.node("Range", low.constant(0), count, low.constant(1))
    index = low.node("Add", low.node("Unsqueeze", starts, ints(1)), ints(*range(size)))
    order = (*base.order[: at + 1], len(base.axes), *base.order[at + 1 :])
    return Value(low.node("Gather", longer, index, axis=at), (*base.axes, size), order, base.dtype)
