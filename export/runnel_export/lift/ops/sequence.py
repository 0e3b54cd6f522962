"""Taking sequences apart along time and putting them together again: slices, stacks, padding, loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..lowering import Lowering
from ..timing import TICKS, Length, Timing, Windows
from ..values import (
    BATCH,
    HIDDEN,
    MERGED,
    TIME,
    Axis,
    Carry,
    Data,
    Given,
    Scatter,
    Stack,
    Value,
    axes_of,
)
from ..writer import LengthError
from .along_time import END, aligned, in_place, take_tick, widened, windowed
from .registry import handles
from .window import in_windows

# ------------------------------------------------------------------ apart


@handles("aten::select", lazy=True, rows="own")
def select(low: Lowering, x: Data, dim: int, index: int) -> Data | Tensor:
    axes = axes_of(x)
    dim %= len(axes)
    match x:
        case Scatter() if dim == x.axis:
            filled = dict(x.filled)
            index %= x.base.shape[dim]
            return filled[index] if index in filled else x.base.select(dim, index)
        case Stack() if dim == 0:
            return _without_first(low, x.parts[index])
        case Given() if dim == 0 and x.layer is None and x.axes[0] != BATCH and len(x.axes) == 3:
            return Given(x.name, x.axes[1:], index % low.size(x.axes[0]))
    v = low.value(x)
    label = v.axes[dim]
    if label == TIME:
        return take_tick(v, dim, index % low.size(TIME), keep=False)
    if label == 1:
        return low.drop(v, dim)
    _no_batch(low, label)
    index %= low.size(label)
    name = low.node("Gather", v.name, low.constant(index, torch.int64), axis=v.at(dim))
    return low.forget(replace(v, name=name, order=tuple(o for o in v.order if o != dim)), dim)


def _without_first(low: Lowering, part: Value | Carry) -> Value | Carry:
    return replace(part, axes=part.axes[1:]) if isinstance(part, Carry) else low.drop(part, 0)


def _no_batch(low: Lowering, label: Axis) -> None:
    if label == BATCH or label in MERGED:
        raise low.refusal(
            "takes some rows of the batch",
            "streams are alike: keep the whole batch; or, if the example is (time, batch, ...): time_axis=0 "
            "(--time-axis 0)",
        )


@handles("aten::slice", "aten::narrow_slice", lazy=True, rows="own")
def slice_(
    low: Lowering, x: Data, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Data:
    axes = axes_of(x)
    dim %= len(axes)
    size = low.size(axes[dim])
    start, end, step = slice(start, end, step).indices(size)
    length = len(range(start, end, step))
    if (length, step) == (size, 1) and not (low.rows_seen and axes[dim] == TIME):
        return x
    if length == 0:
        raise low.untranslated("an empty slice")
    if isinstance(x, Stack) and dim == 0 and step == 1:
        return Stack(x.parts[start:end])
    v = low.value(x)
    if v.axes[dim] == TIME:
        if length == 1:
            return take_tick(v, dim, start, keep=True)
        if step == 1 and end == size and _always(low, dim, size, length):
            return _last_rows(low, v, dim, length)
        return cut(low, v, start, end, step, dim)
    _no_batch(low, v.axes[dim])
    return feature_slice(low, v, dim, start, end, step)


def _always(low: Lowering, dim: int, size: int, rows: int) -> bool:
    """Whether the slice at hand leaves so many rows of a longer or shorter sequence too."""
    node = low.twin.get(low.at)
    if node is None or not isinstance(node.args[0], Node):
        return False
    before, after = node.args[0].meta["val"].shape[dim], node.meta["val"].shape[dim]
    return bool(after == rows and before != size)


def _last_rows(low: Lowering, v: Value, dim: int, rows: int) -> Value:
    """The last rows of a sequence, whatever its length: features of its last tick."""
    windows = in_windows(low, v, rows, 1)
    low.attend(windows.timing)
    taken = take_tick(windows, dim, low.size(TIME) - 1, keep=False)
    axes = list(range(len(taken.axes) - 1))
    return low.permute(taken, [*axes[:dim], len(axes), *axes[dim:]])


def cut(low: Lowering, v: Value, start: int, end: int, step: int, dim: int | None = None) -> Value:
    """The rows from `start` to `end` of a sequence, all or every `step`-th of them.

    `dim`: the axis that the operation at hand slices, if it is a slice.
    """
    timing = v.timing.cut(start, low.size(TIME) - end)
    length = _length_of(low, timing, end - start, dim) if step == 1 else None
    if length is not None:
        timing = replace(timing, length=length)
    elif timing.rate == 1 and end - start == low.whole and end < low.size(TIME):
        timing = replace(timing, length=Length())  # cut to the length of the input, whatever that is
    v = replace(v, timing=timing, shift=v.shift - start)
    if step == 1:
        return v
    windows = Windows.of(timing, 0, step)
    name = windowed(low, v, windows)
    bounds = (0, END, v.at(v.time), step)
    return replace(v, name=low.node("Slice", name, *map(low.graph.ints, bounds)), timing=windows.timing)


def _length_of(low: Lowering, timing: Timing, rows: int, dim: int | None) -> Length | None:
    """The length that a sequence is cut to; None if a constant number of rows is cut off.

    The trace at the other length shows which. It is the length of another value, or that of the input at
    this rate, rounded up or down.
    """
    node = low.twin.get(low.at)
    if dim is None or node is None or not isinstance(node.args[0], Node):
        return None
    before, after = node.args[0].meta["val"].shape[dim], node.meta["val"].shape[dim]
    constant = low.size(TIME) - rows == before - after  # as many rows are cut off at both lengths
    if constant and not low.rows_seen:
        return None
    known = [n for rate, n in low.lengths if rate == timing.rate and n != timing.length]
    known += rounded(timing.rate)
    fit = (length for length in known if length(low.whole) == rows and length(low.twin_ticks) == after)
    found = min(fit, key=lambda length: len(length.chain), default=None)
    if found is None and not constant:
        raise LengthError(
            f"{low.where}: how many rows are cut off depends on the sequence's length, which forward uses "
            "as a number, and what is left is as long as no other value. What would help: cut to the length "
            "of another value, or by constants; a stream has no length"
        )
    return found


def rounded(rate: Fraction) -> list[Length]:
    """The length of the input at this rate, rounded down and up."""
    return [TICKS.then(rate.numerator, more, rate.denominator) for more in (0, rate.denominator - 1)]


def feature_slice(low: Lowering, v: Value, dim: int, start: int, end: int, step: int = 1) -> Value:
    """Slice of an axis that is neither time nor batch."""
    length = len(range(start, end, step))
    bounds = [low.graph.ints(b) for b in (start, end, v.at(dim))]
    name = low.node("Slice", v.name, *bounds, *([low.graph.ints(step)] if step != 1 else []))
    return replace(v, name=name, axes=(*v.axes[:dim], length, *v.axes[dim + 1 :]))


@handles("aten::unbind", lazy=True, rows="own")
def unbind(low: Lowering, x: Data, dim: int = 0) -> tuple[Data | Tensor, ...]:
    size = low.size(axes_of(x)[dim])
    return tuple(select(low, x, dim, i) for i in range(size))


def _split(low: Lowering, x: Data, dim: int, sizes: Sequence[int]) -> tuple[Data, ...]:
    axes = axes_of(x)
    dim %= len(axes)
    if isinstance(x, Value) and isinstance(axes[dim], int) and len(sizes) > 1 and dim in x.order:
        names = low.emit(
            "Split",
            [x.name, low.graph.ints(*sizes)],
            {"axis": x.at(dim)},
            [str(i) for i in range(len(sizes))],
        )
        return tuple(
            replace(x, name=n, axes=(*axes[:dim], s, *axes[dim + 1 :]))
            for n, s in zip(names, sizes, strict=True)
        )
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(slice_(low, x, dim, s, s + n) for s, n in zip(starts, sizes, strict=True))


@handles("aten::split.Tensor", lazy=True, rows="own")
def split(low: Lowering, x: Data, split_size: int, dim: int = 0) -> tuple[Data, ...]:
    size = low.size(axes_of(x)[dim])
    return _split(low, x, dim, [min(split_size, size - s) for s in range(0, size, split_size)])


@handles("aten::split_with_sizes", "aten::split.sizes", lazy=True, rows="own")
def split_with_sizes(low: Lowering, x: Data, sizes: Sequence[int], dim: int = 0) -> tuple[Data, ...]:
    return _split(low, x, dim, sizes)


@handles("aten::chunk", lazy=True, rows="own")
def chunk(low: Lowering, x: Data, chunks: int, dim: int = 0) -> tuple[Data, ...]:
    size = low.size(axes_of(x)[dim])
    return split(low, x, -(-size // chunks), dim)


# ------------------------------------------------------------------ together


@handles("aten::stack", lazy=True)
def stack(low: Lowering, parts: Sequence[Data | Tensor], dim: int = 0) -> Data:
    first = next(p for p in parts if not isinstance(p, Tensor))
    dim %= len(axes_of(first)) + 1
    whole = _whole_sequence(low, parts, lambda v: low.insert(v, dim), dim)
    if whole is not None:
        return whole
    if dim == 0 and all(isinstance(p, Value | Carry) for p in parts):
        return Stack(tuple(_with_first(low, p) for p in parts))
    return concatenate(
        low,
        [p.unsqueeze(dim) if isinstance(p, Tensor) else low.insert(low.value(p), dim) for p in parts],
        dim,
    )


def _with_first(low: Lowering, part: Any) -> Value | Carry:
    return replace(part, axes=(1, *part.axes)) if isinstance(part, Carry) else low.insert(part, 0)


@handles("aten::cat", "aten::concat", "aten::concatenate", lazy=True, rows="own")
def cat(low: Lowering, parts: Sequence[Data | Tensor], dim: int = 0) -> Data:
    first = next(p for p in parts if not isinstance(p, Tensor))
    if len(parts) == 1:
        return first
    axes = axes_of(first)
    dim %= len(axes)
    if axes[dim] == 1:
        whole = _whole_sequence(low, parts, lambda v: v, dim)
        if whole is not None:
            return whole
        if dim == 0 and all(isinstance(p, Stack | Value) and axes_of(p)[0] != BATCH for p in parts):
            pieces = [q for p in parts for q in (p.parts if isinstance(p, Stack) else (p,))]
            if all(axes_of(q)[0] == 1 for q in pieces if not isinstance(q, Tensor)):
                return Stack(tuple(q for q in pieces if isinstance(q, Value | Carry)))
    elif low.ticks and _ticks(parts) == list(range(low.ticks)):
        raise low.refusal(f"lays the ticks side by side on axis {dim}", "torch.stack(outputs, 1)")
    padded = _padded_by_cat(low, parts, dim)
    if padded is not None:
        return padded
    made = [p if isinstance(p, Tensor) else low.value(p) for p in parts]
    if low.whole:
        values = iter(aligned(low, [p for p in made if isinstance(p, Value)]))
        made = [p if isinstance(p, Tensor) else next(values) for p in made]
    found = next(p for p in made if isinstance(p, Value))
    low.attend(found.timing)
    return replace(concatenate(low, made, dim), timing=in_place(found))


def _whole_sequence(
    low: Lowering, parts: Sequence[Data | Tensor], widen: Callable[[Value], Value], dim: int
) -> Value | None:
    """The sequence whose slices 0 … T-1 these are; None where they are no time slices of one."""
    values = [p for p in parts if isinstance(p, Value)]
    ticks = _ticks(parts)
    if low.ticks is None or len(ticks) != low.ticks:
        return None
    if ticks == list(range(low.ticks))[::-1] and low.ticks > 1:
        raise low.refusal("puts the ticks together in reverse", "a stream runs forward only")
    if ticks != list(range(low.ticks)):
        return None
    first = widen(values[0])
    odd = next((k for k, v in enumerate(values) if replace(v, tick=0) != values[0]), None)
    if odd is not None:
        raise low.refusal(
            f"tick {odd} is computed in another way than tick 0",
            "compute every tick alike; what depends on the tick's number has no meaning on an endless stream",
        )
    if dim in first.order:  # the axis of size 1 that time takes the place of
        name = low.node("Squeeze", first.name, low.graph.ints(first.at(dim)))
        first = replace(first, name=name, order=tuple(o for o in first.order if o != dim))
    axes = (*first.axes[:dim], TIME, *first.axes[dim + 1 :])
    return replace(first, axes=axes, order=tuple(dim if o == HIDDEN else o for o in first.order), tick=None)


def _ticks(parts: Sequence[Data | Tensor]) -> list[int]:
    """The ticks that these are slices of; none if one of them is no slice."""
    ticks = [p.tick for p in parts if isinstance(p, Value) and p.tick is not None]
    return ticks if len(ticks) == len(parts) else []


def _padded_by_cat(low: Lowering, parts: Sequence[Data | Tensor], dim: int) -> Data | None:
    """``cat([zeros, x[:, :-1]], time)`` is padding."""
    spans = [p for p in parts if isinstance(p, Value) and p.axes[dim] == TIME]
    if not spans:
        return None
    if len(spans) != 1 or not all(isinstance(p, Tensor) for p in parts if p is not spans[0]):
        raise low.refusal(
            "joins pieces of sequences along time", "a stream has one output tick for each input tick"
        )
    at = next(i for i, p in enumerate(parts) if p is spans[0])
    constants = [p for p in parts if isinstance(p, Tensor)]
    fills = set(torch.cat([c.reshape(-1) for c in constants]).tolist())
    sizes = [p.shape[dim] if isinstance(p, Tensor) else 0 for p in parts]
    if len(fills) != 1:
        timing = spans[0].timing
        if at < len(parts) - 1 or timing.edge is not None or timing.delay > 0 or low.blocks:
            raise low.refusal(
                "adds rows that are not all equal behind the sequence, or before one that comes late",
                "add one value, as F.pad does",
            )
        longer = timing.length.then(plus=sum(sizes))  # by rows that are known before the first tick
        return replace(spans[0], timing=timing.padded(sum(sizes), longer, None))
    return widened(low, spans[0], sum(sizes[:at]), sum(sizes[at:]), "constant", float(fills.pop()))


def concatenate(low: Lowering, parts: Sequence[Value | Tensor], dim: int) -> Value:
    """Along an axis that is neither time nor batch."""
    if len(parts) == 1 and isinstance(parts[0], Value):
        return parts[0]
    parts = [p for p in low.alike(parts) if not isinstance(p, float)]
    values = [p for p in parts if isinstance(p, Value)]
    tick = low.same_tick(values)
    for v in values:
        if not isinstance(v.axes[dim], int):
            raise low.refusal(f"joins along the {v.axes[dim]} axis", "join along features")
    model = max(values, key=lambda v: len(v.order))
    dtype = values[0].dtype
    for p in parts:
        dtype = torch.promote_types(dtype, p.dtype)
    absent = any(i not in model.order for i in range(len(model.axes)))  # (of size 1)
    full = low.canonical(model, full=True).order if absent else model.order
    names = []
    for p in parts:
        if isinstance(p, Value):
            names.append(low.arrange(low.cast(p, dtype), full).name)
        else:
            names.append(_like(low, p.to(dtype), model, full, dim))
    name = low.node("Concat", *names, axis=full.index(dim))
    width = sum(low.size(p.axes[dim]) if isinstance(p, Value) else p.shape[dim] for p in parts)
    axes = (*model.axes[:dim], width, *model.axes[dim + 1 :])
    return Value(name, axes, full, dtype, tick)


def _like(low: Lowering, constant: Tensor, model: Value, order: Sequence[int], dim: int) -> str:
    """A constant with the time and batch sizes of a value, which are known when the model runs."""
    axes = tuple(constant.shape[i] if i == dim else a for i, a in enumerate(model.axes))
    small = low.invariant(constant, axes)
    visible = [o for o in order if o != HIDDEN]
    small = small.permute(visible)
    if HIDDEN in order:
        small = small.unsqueeze(list(order).index(HIDDEN))
    pieces = []
    arranged = low.arrange(model, order).name
    for i, o in enumerate(order):
        if o == HIDDEN or not isinstance(axes[o], int):
            pieces.append(low.node("Shape", arranged, start=i, end=i + 1))
        else:
            pieces.append(low.graph.ints(low.size(axes[o])))
    return low.node("Expand", low.constant(small), low.node("Concat", *pieces, axis=0))


# ------------------------------------------------------------------ results filled tick by tick


@handles("aten::select_scatter", lazy=True)
def select_scatter(low: Lowering, base: Any, source: Any, dim: int, index: int) -> Data:
    rank = base.dim() if isinstance(base, Tensor) else len(axes_of(base))
    dim %= rank
    source = low.value(source) if not isinstance(source, Tensor) else source
    size = base.shape[dim] if isinstance(base, Tensor) else low.size(axes_of(base)[dim])
    if isinstance(base, Value) and isinstance(base.axes[dim], int):
        if isinstance(source, Tensor):
            rest = [low.size(a) for i, a in enumerate(base.axes) if i != dim]
            one: Value | Tensor = source.expand(rest).unsqueeze(dim)
        else:
            one = low.insert(source, dim)
        return _written(low, base, one, dim, range(index % size, index % size + 1))
    if low.ticks is None or size != low.ticks or not isinstance(source, Value):
        raise low.untranslated("writes into a part of a tensor; build it with cat or stack")
    if isinstance(base, Tensor):
        base = Scatter(base, dim, ())
    if not isinstance(base, Scatter) or base.axis != dim:
        raise low.untranslated("writes into a part of a computed tensor; build it with cat or stack")
    filled = {**dict(base.filled), index % size: source}
    if len(filled) == size:
        whole = stack(low, [filled[k] for k in range(size)], dim)
        assert isinstance(whole, Value)
        return whole
    return Scatter(base.base, dim, tuple(filled.items()))


@handles("aten::slice_scatter", lazy=True)
def slice_scatter(
    low: Lowering,
    base: Any,
    source: Any,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Any:
    rank = base.dim() if isinstance(base, Tensor) else len(axes_of(base))
    dim %= rank
    size = base.shape[dim] if isinstance(base, Tensor) else low.size(axes_of(base)[dim])
    covered = range(*slice(start, end, step).indices(size))
    if len(covered) == size:
        return source
    if isinstance(base, Value) and isinstance(base.axes[dim], int) and step == 1 and covered:
        return _written(low, base, source if isinstance(source, Tensor) else low.value(source), dim, covered)
    if len(covered) != 1:
        raise low.untranslated("writes several ticks at once into a part of a tensor")
    inner = source.select(dim, 0) if isinstance(source, Tensor) else select(low, source, dim, 0)
    return select_scatter(low, base, inner, dim, covered[0])


def _written(low: Lowering, v: Value, source: Value | Tensor, dim: int, places: range) -> Value:
    """With these features in the place of others."""
    size = low.size(v.axes[dim])
    left = [feature_slice(low, v, dim, 0, places[0])] if places[0] else []
    right = [feature_slice(low, v, dim, places[-1] + 1, size)] if places[-1] + 1 < size else []
    return concatenate(low, [*left, source, *right], dim)


@handles("aten::copy", lazy=True)
def copy(low: Lowering, target: Any, source: Any, non_blocking: bool = False) -> Any:
    """What is written into `target`: its shape and dtype, the source's values."""
    if isinstance(source, Tensor) or not isinstance(source, Value):
        return source
    axes = tuple(target.shape) if isinstance(target, Tensor) else axes_of(target)
    if len(axes) != len(source.axes):
        for _ in range(len(axes) - len(source.axes)):
            source = low.insert(source, 0)
    if any(a == 1 and low.size(b) != 1 for a, b in zip(source.axes, axes, strict=True)):
        raise low.untranslated("writes a smaller tensor into a larger one by broadcasting")
    return low.cast(source, target.dtype) if isinstance(target, Tensor | Value) else source
