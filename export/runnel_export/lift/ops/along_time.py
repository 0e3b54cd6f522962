"""Along the time axis: the rows before a call, the edges of a sequence, delays, windows of rows.

Every operator that moves rows in time is written with what is here; `timing` says by how much it moves them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..lowering import Lowering, State
from ..timing import TICKS, Edge, Length, Timing, Windows
from ..values import BATCH, HIDDEN, MERGED, TIME, Value
from ..writer import ShortTraceError

END = 2**62  # torch writes "to the end" as a very large index


def take_tick(v: Value, axis: int, tick: int, keep: bool) -> Value:
    """One time slice; `keep` leaves an axis of size 1. No node: see `Value.tick`."""
    order = tuple(HIDDEN if o == axis else o for o in v.order)
    axes = tuple(1 if i == axis else a for i, a in enumerate(v.axes))
    taken = replace(v, axes=axes, order=order, tick=tick)
    return taken if keep else Lowering.forget(taken, axis)


# ------------------------------------------------------------------ edges


def widened(
    low: Lowering,
    v: Value,
    left: int,
    right: int,
    mode: str = "constant",
    fill: float = 0.0,
    length: Length | None = None,
) -> Value:
    """With rows put before and behind, or cut off if negative. Nothing is written: see `timing.Edge`.

    `length`: of the result, if the number of rows behind depends on the number of ticks; `right` is the most.
    """
    if left < 0 or right < 0:
        v = replace(v, timing=v.timing.cut(max(0, -left), max(0, -right)), shift=v.shift + min(0, left))
        left, right = max(0, left), max(0, right)
    if not left and not right:
        return v
    before = v.timing.edge
    if before is not None and (mode, before.mode, before.fill) != ("constant", "constant", fill):
        v, before = settled(low, v), None
    if right and (before is None or not before.back):  # where the rows end must be known when they are read
        v = delayed(low, v, v.timing.uncertain(low.step))
    before = before or Edge()
    end = (before.end if before.back else v.timing.length).then(plus=left)
    length = length or v.timing.length.then(plus=left + right)
    back = before.back + right
    edge = Edge(before.front + left, back, mode, fill, end if back else TICKS)
    return replace(v, timing=v.timing.padded(left, length, edge), shift=v.shift + left)


def settled(low: Lowering, v: Value) -> Value:
    """With the rows of its edge filled in."""
    if v.timing.edge is None:
        return v
    moved = Windows.of(v.timing, 0)
    return replace(v, name=windowed(low, v, moved), timing=moved.timing)


def _filled(low: Lowering, v: Value) -> Value:
    """With the constant of its edge in the edge's rows, as far as a call computes these rows."""
    edge, timing = v.timing.edge, v.timing
    if edge is None or edge.mode != "constant":
        return v
    front = edge.front if timing.delay + edge.front > 0 else 0
    low.clocked |= front > 0
    if low.clock is None or not (front or edge.back):
        return v
    name = v.name
    if front:
        outside = low.node("Less", _numbers(low, timing), low.constant(front, torch.int64))
        name = low.node("Where", _like(low, v, outside), _row(low, v, 0), name)
    if edge.back:
        outside = low.node("GreaterOrEqual", _numbers(low, timing), length(low, edge.end))
        last = timing.length(low.whole) - 1
        name = low.node("Where", _like(low, v, outside), _row(low, v, last), name)
    return replace(v, name=name)


def _row(low: Lowering, v: Value, number: int) -> str:
    """A constant row of a value, which broadcasts against it."""
    edge = v.timing.edge
    if edge is not None and edge.fill is not None:
        return low.constant(edge.fill, v.dtype)
    row = _known(low, v, number, number + 1).squeeze(0)
    sizes = iter(row.shape)
    return low.constant(row.reshape([next(sizes) if o in _features(v) else 1 for o in v.order]))


def _features(v: Value) -> list[int]:
    """The torch axes that are neither time nor batch."""
    return [i for i, a in enumerate(v.axes) if isinstance(a, int)]


def _known(low: Lowering, v: Value, start: int, stop: int) -> Tensor:
    """Rows that are the same whatever the stream is: what the module gives for them.

    Time first, then the features in the order of the ONNX tensor.
    """
    edge, features = v.timing.edge, _features(v)
    present = [o for o in v.order if o in features]
    sizes = [low.size(v.axes[o]) for o in present]
    filled = 0  # rows of the edge that its constant is known of
    if edge is not None and edge.mode == "constant" and edge.fill is not None:
        filled = max(0, min(stop, edge.front) - start)
    rows = torch.full((filled, *sizes), edge.fill if edge and edge.fill else 0.0, dtype=v.dtype)
    if filled == stop - start:
        return rows
    batch = next((i for i, a in enumerate(v.axes) if a == BATCH), None)
    if v.time == HIDDEN or batch is None or low.run is None or not v.node:
        raise low.untranslated("a beginning that is padded, of merged batch and time or of single ticks")
    whole = low.run(v.node)
    whole = torch.view_as_real(whole) if whole.is_complex() else whole
    if whole.dim() != len(v.axes):  # axes of size 1 came or went since
        whole = whole.reshape([-1 if a == TIME else low.size(a) for a in v.axes])
    absent = [i for i in features if i not in present]  # of size 1
    whole = whole.permute(v.time, batch, *present, *absent)
    if len(whole) < stop - v.shift:
        raise ShortTraceError(f"{low.where}: the sequence that was traced is shorter than its padding")
    part = whole[start + filled - v.shift : stop - v.shift].reshape(stop - start - filled, -1, *sizes)
    if not torch.equal(part, part[:, :1].expand_as(part)):
        raise low.untranslated("a beginning that is padded, and that depends on the input")
    return torch.cat([rows, part[:, 0].to(v.dtype)])


# ------------------------------------------------------------------ where a call is


def length(low: Lowering, rows: Length) -> str:
    """The number of a sequence's rows, (slot,); far beyond any row while more ticks may come."""
    assert low.clock is not None
    name = low.clock.total
    for times, plus, over in rows.chain:
        name = name if times == 1 else low.node("Mul", name, low.constant(times, torch.int64))
        name = name if plus == 0 else low.node("Add", name, low.constant(plus, torch.int64))
        name = low.node("Max", name, low.constant(0, torch.int64)) if plus < 0 else name
        name = name if over == 1 else low.node("Div", name, low.constant(over, torch.int64))
    return name


def first_row(low: Lowering, timing: Timing) -> str:
    """The number of the first row that a call computes, (slot,)."""
    assert low.clock is not None
    name, rate = low.clock.begin, timing.rate
    if rate.numerator != 1:
        name = low.node("Mul", name, low.constant(rate.numerator, torch.int64))
    if rate.denominator != 1:
        name = low.node("Div", name, low.constant(rate.denominator, torch.int64))
    return low.node("Sub", name, low.constant(timing.delay, torch.int64)) if timing.delay else name


def _numbers(low: Lowering, timing: Timing) -> str:
    """The numbers of the rows that a call computes, (time, slot)."""
    count = low.node("Squeeze", low.rows(timing.rate), low.graph.ints(0))
    steps = low.node("Range", low.constant(0), count, low.constant(1))
    return low.node("Add", low.node("Unsqueeze", steps, low.graph.ints(1)), first_row(low, timing))


def _like(low: Lowering, v: Value, name: str) -> str:
    """(time, slot) as it broadcasts against a value."""
    time, slot = v.at(v.time), v.at(next(i for i, a in enumerate(v.axes) if a == BATCH or a in MERGED))
    if slot < time:
        name = low.node("Transpose", name, perm=(1, 0))
    others = [i for i in range(len(v.order)) if i not in (time, slot)]
    return low.node("Unsqueeze", name, low.graph.ints(*others)) if others else name


# ------------------------------------------------------------------ rows from before a call


def with_past(low: Lowering, v: Value, past: int, hint: str = "cache") -> str:
    """`v` with the `past` rows before it, which are state. Returns the longer sequence's name."""
    if not any(a == BATCH for a in v.axes) and HIDDEN not in v.order:
        raise low.untranslated("a delay of merged batch and time")
    at = v.at(v.time)
    dims = tuple(
        past if o == v.time else "slot" if v.axes[o] == BATCH or v.axes[o] in MERGED else low.size(v.axes[o])
        for o in v.order
    )
    initial = _before(low, v, past)
    known = (v.name, at, past, hint, initial.numpy().tobytes())
    if hint == "delay" and known in low.delays:
        return low.delays[known]
    name = low.graph.fresh(f"{low.path}.{hint}" if low.path else hint)
    longer = low.delays[known] = low.node("Concat", name, v.name, axis=at)
    # Where a call is a window, the past goes on from the block's end: tick n is row n + past.
    ends = (low.blocks.ticks, low.blocks.ticks + past) if low.blocks else (-past, END)
    last = low.node("Slice", longer, *map(low.graph.ints, (*ends, at)))
    ticks = math.ceil(past / v.timing.rate)
    low.states[name] = State(name, v.dtype, dims, initial.numpy(), last, past=ticks)
    return longer


def _before(low: Lowering, v: Value, past: int) -> Tensor:
    """The rows before the first call's, in the layout of `v` without the slots."""
    edge, stop = v.timing.edge, -v.timing.delay
    features = [o for o in v.order if o in _features(v)]
    fill = edge.fill if edge is not None and edge.mode == "constant" and edge.fill is not None else 0.0
    rows = torch.full((past, *[low.size(v.axes[o]) for o in features]), fill, dtype=v.dtype)
    repeated = edge.front if edge is not None and edge.mode != "constant" else 0  # from rows that come later
    start = max(stop - past, repeated)
    if start < stop:
        rows[start - stop :] = _known(low, v, start, stop)
    kept = [o for o in v.order if o == v.time or o in features]
    return rows.movedim(0, kept.index(v.time)).contiguous()


def delayed(low: Lowering, v: Value, rows: int, like: Value | None = None) -> Value:
    """So many rows later. `like`: the value that knows its first rows, if `v` is that one settled."""
    if rows == 0:
        return v
    if low.blocks:
        raise low.untranslated("a delay together with blocks=")
    before = replace(like, name=v.name, order=v.order) if like is not None else v
    longer = with_past(low, before, rows, "delay")
    ends = (low.graph.ints(0), low.graph.ints(-rows), low.graph.ints(v.at(v.time)))
    return replace(v, name=low.node("Slice", longer, *ends), timing=v.timing.delayed(rows))


def windowed(low: Lowering, v: Value, windows: Windows) -> str:
    """The rows that a call's windows read, edges filled in: the first window begins at the first of them."""
    v, at, past = _filled(low, v), v.at(v.time), windows.past
    name = v.name if past <= 0 else with_past(low, v, past)
    if v.timing.edge is not None and v.timing.edge.mode != "constant":
        low.clocked = True
        if low.clock is not None:
            name = _repeated(low, v, name, max(0, past))
    start, end = windows.lead + max(0, -past), -windows.spare if windows.spare else END
    if start or windows.spare:
        name = low.node("Slice", name, *map(low.graph.ints, (start, end, at)))
    return name


def _repeated(low: Lowering, v: Value, name: str, past: int) -> str:
    """`name`, the rows of `v` with `past` rows before them, with the edge's rows taken from others."""
    edge, timing = v.timing.edge, v.timing
    assert edge is not None
    at, mirror = v.at(v.time), edge.mode == "reflect"

    def ints(value: int) -> str:
        return low.constant(value, torch.int64)

    def twice(end: str, row: str) -> str:
        return low.node("Sub", low.node("Mul", end, ints(2)), row) if mirror else end

    first = low.node("Sub", first_row(low, timing), ints(past))
    count = low.node("Squeeze", low.node("Shape", name, start=at, end=at + 1), low.graph.ints(0))
    places = low.node(
        "Unsqueeze", low.node("Range", low.constant(0), count, low.constant(1)), low.graph.ints(1)
    )
    number = low.node("Add", places, first)
    if edge.front:
        inner = twice(ints(edge.front), number)
        number = low.node("Where", low.node("Less", number, ints(edge.front)), inner, number)
    if edge.back:
        last = low.node("Sub", length(low, edge.end), ints(1))
        inner = twice(last, number)
        number = low.node("Where", low.node("Greater", number, last), inner, number)
    place = low.node("Max", low.node("Sub", number, first), ints(0))
    place = low.node("Min", place, low.node("Sub", count, ints(1)))
    index = low.node("Expand", _like(low, v, place), low.node("Shape", name))
    return low.node("GatherElements", name, index, axis=at)


# ------------------------------------------------------------------ values that meet


def aligned(low: Lowering, values: Sequence[Value]) -> list[Value]:
    """Values over time that are used together, with one timing."""
    timings = [v.timing for v in values]
    if all(t == timings[0] for t in timings):
        return list(values)
    rates = {t.rate for t in timings}
    if len(rates) > 1:
        shown = " and ".join(str(r) for r in sorted(rates))
        raise low.refusal(
            f"values of {shown} rows a tick are used together, which fit at one length of the sequence only",
            "bring them to one rate first (a stride, or an upsampling)",
        )
    if low.blocks:
        raise low.untranslated("a shift in time together with blocks=")
    edges = {t.edge for t in timings}
    filled = list(values) if len(edges) == 1 else [settled(low, v) for v in values]
    delay = max(v.timing.delay for v in filled)
    whole = min((v.timing.length for v in filled), key=lambda rows: len(rows.chain))
    out = []
    for v, before in zip(filled, values, strict=True):
        known = before if before.timing.delay == v.timing.delay else None
        v = delayed(low, v, delay - v.timing.delay, known)
        out.append(replace(v, timing=replace(v.timing, length=whole)))
    return out


def in_place(v: Value) -> Timing:
    """The timing of what is computed from each row: what an edge's rows become is no longer known."""
    edge = v.timing.edge
    return v.timing if edge is None else replace(v.timing, edge=replace(edge, fill=None))


def from_the_first(low: Lowering, v: Value) -> Value:
    """A value whose rows are read in order, from the sequence's first on: none of them is known before."""
    filled = settled(low, v)
    known = v if filled.timing.delay == v.timing.delay else None
    return delayed(low, filled, max(0, -filled.timing.delay), known)


# ------------------------------------------------------------------ rows and features


def spread(low: Lowering, v: Value, axis: int) -> Value:
    """The feature axis after the time axis merged with it: each row becomes as many rows."""
    if low.blocks:
        raise low.untranslated("more rows than ticks together with blocks=")
    v = settled(low, v)
    times = low.size(v.axes[axis])
    slot = next(i for i, a in enumerate(v.axes) if a == BATCH)
    rest = [i for i in range(len(v.axes)) if i not in (v.time, axis, slot)]
    v = low.arrange(v, [v.time, axis, slot, *rest])
    name = low.lead_reshaped(v.name, 0, [low.size(v.axes[i]) for i in rest])
    axes = v.axes[:axis] + v.axes[axis + 1 :]
    order = tuple(o - (o > axis) for o in v.order if o != axis)
    return replace(v, name=name, axes=axes, order=order, timing=v.timing.spread(times))


def gathered(low: Lowering, v: Value, size: int) -> Value:
    """`size` rows at a time as one row, with a new feature axis after the time axis."""
    if low.blocks:
        raise low.untranslated("fewer rows than ticks together with blocks=")
    v = settled(low, v)
    v = delayed(low, v, -v.timing.delay % size)
    slot = next(i for i, a in enumerate(v.axes) if a == BATCH)
    rest = [i for i in range(len(v.axes)) if i not in (v.time, slot)]
    v = low.arrange(v, [v.time, slot, *rest])
    name = low.lead_reshaped(v.name, size, [low.size(v.axes[i]) for i in rest])
    time = v.time
    axes = (*v.axes[: time + 1], size, *v.axes[time + 1 :])
    order = [o + (o > time) for o in v.order]
    return replace(
        v, name=name, axes=axes, order=(order[0], time + 1, *order[1:]), timing=v.timing.gathered(size)
    )
