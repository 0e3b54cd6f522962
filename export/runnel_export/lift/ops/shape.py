"""Shapes: most of it only relabels; a reshape is written when the ONNX tensor must change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..lowering import Lowering
from ..timing import padded_to
from ..values import (
    BATCH,
    HIDDEN,
    MERGED,
    TIME,
    TIME_BATCH,
    Axis,
    Data,
    Given,
    Stack,
    Value,
    axes_of,
    merged_label,
)
from ..writer import ShortTraceError
from .along_time import gathered, in_place, spread, take_tick, widened
from .registry import handles
from .sequence import select


@handles(
    "aten::clone",
    "aten::contiguous",
    "aten::detach",
    "aten::alias",
    "aten::lift_fresh_copy",
    "aten::positive",
    "aten::dropout",
    "aten::feature_dropout",
    "aten::alpha_dropout",
    "aten::identity",
    "aten::resolve_conj",
    lazy=True,
)
def same(low: Lowering, x: Data, *rest: Any) -> Data:
    if low.op.endswith("dropout") and rest[1] and rest[0]:
        raise low.refusal("dropout that is on in eval mode", "nn.Dropout, or F.dropout(x, p, self.training)")
    return x


@handles("aten::permute", lazy=True)
def permute(low: Lowering, x: Data, dims: Sequence[int]) -> Data:
    axes = axes_of(x)
    dims = [d % len(axes) for d in dims]
    if dims == list(range(len(axes))):
        return x
    v = low.value(x)
    return low.permute(v, dims)


@handles("aten::transpose.int", "aten::transpose", "aten::swapaxes", lazy=True)
def transpose(low: Lowering, x: Data, a: int, b: int) -> Data:
    dims = list(range(len(axes_of(x))))
    dims[a], dims[b] = dims[b], dims[a]
    return permute(low, x, dims)


@handles("aten::t", "aten::numpy_T")
def t(low: Lowering, v: Value) -> Value:
    return low.permute(v, range(len(v.axes))[::-1])


@handles("aten::movedim.int")
def movedim(low: Lowering, v: Value, source: int, destination: int) -> Value:
    dims = list(range(len(v.axes)))
    moved = dims.pop(source)
    dims.insert(destination % len(v.axes), moved)
    return low.permute(v, dims)


@handles("aten::unsqueeze", lazy=True)
def unsqueeze(low: Lowering, x: Data, dim: int) -> Data:
    if isinstance(x, Given) and x.layer is None and len(x.axes) == 2 and dim == 0:
        return Given(x.name, (1, *x.axes))
    v = low.value(x)
    return low.insert(v, dim % (len(v.axes) + 1))


@handles("aten::squeeze.default", "aten::squeeze.dim", "aten::squeeze.dims", lazy=True)
def squeeze(low: Lowering, x: Data, dims: int | Sequence[int] | None = None) -> Data:
    axes = axes_of(x)
    if dims is None:
        dims = range(len(axes))
    chosen = {d % len(axes) for d in ([dims] if isinstance(dims, int) else dims)}
    if isinstance(x, Stack) and chosen == {0} and len(x.parts) == 1:
        squeezed = select(low, x, 0, 0)
        assert not isinstance(squeezed, Tensor)
        return squeezed
    if not any(axes[d] == 1 for d in chosen):
        return x
    if isinstance(x, Given) and chosen == {0} and len(axes) == 3:
        return Given(x.name, axes[1:], 0)
    v = low.value(x)
    for d in sorted(chosen, reverse=True):
        if v.axes[d] == 1:
            v = low.drop(v, d)
    return v


@handles("aten::expand", lazy=True)
def expand(low: Lowering, x: Data, sizes: Sequence[int], implicit: bool = False) -> Data:
    v = low.value(x)
    for _ in range(len(sizes) - len(v.axes)):
        v = low.insert(v, 0)
    grown = [i for i, (a, s) in enumerate(zip(v.axes, sizes, strict=True)) if a == 1 and s not in (1, -1)]
    if not grown:
        return v if list(v.axes) != list(axes_of(x)) or isinstance(x, Value) else x
    if low.ticks is not None and any(sizes[i] == low.ticks for i in grown):
        raise low.refusal("repeats one tick's value over all of time", "use the sequence itself")
    if any(sizes[i] == low.batch for i in grown):
        raise low.untranslated("a value repeated along the batch axis")
    v = low.canonical(v, full=True)
    shape = [sizes[o] if o in grown else 1 for o in v.order]
    axes = tuple(sizes[i] if i in grown else a for i, a in enumerate(v.axes))
    return replace(v, name=low.node("Expand", v.name, low.graph.ints(*shape)), axes=axes)


@handles("aten::expand_as", lazy=True)
def expand_as(low: Lowering, x: Data, other: Data) -> Data:
    return expand(low, x, low.shape(axes_of(other)))


@handles("aten::repeat")
def repeat(low: Lowering, v: Value, repeats: Sequence[int]) -> Value:
    for _ in range(len(repeats) - len(v.axes)):
        v = low.insert(v, 0)
    if any(r != 1 and not isinstance(a, int) for a, r in zip(v.axes, repeats, strict=True)):
        raise low.refusal("repeats ticks or streams", "repeat features only")
    if low.ticks is not None and low.ticks in repeats:
        raise low.refusal("repeats one tick's value over all of time", "use the sequence itself")
    v = low.canonical(v, full=True)
    counts = [1 if o == HIDDEN else repeats[o] for o in v.order]
    axes = tuple(a * r if isinstance(a, int) else a for a, r in zip(v.axes, repeats, strict=True))
    if all(c == 1 for c in counts):
        return v
    return replace(v, name=low.node("Tile", v.name, low.graph.ints(*counts)), axes=axes)


# ------------------------------------------------------------------ view


@handles("aten::view", "aten::_unsafe_view", "aten::reshape", lazy=True, rows="own")
def view(low: Lowering, x: Data, sizes: Sequence[int]) -> Data:
    axes = axes_of(x)
    total = 1
    for a in axes:
        total *= low.size(a)
    known = 1
    for s in sizes:
        known *= s if s != -1 else 1
    sizes = [total // known if s == -1 else s for s in sizes]
    if list(sizes) == list(low.shape(axes)):
        return x
    v = low.value(x)
    if TIME in v.axes:
        v = _other_rows(low, v, sizes)
    if list(sizes) == list(low.shape(v.axes)):
        return v
    return replace(as_axes(low, v, _regroup(low, v.axes, sizes)), timing=in_place(v))


def _other_rows(low: Lowering, v: Value, sizes: Sequence[int]) -> Value:
    """The value with the rows that a view makes of it, if its time axis is merged with features or split."""
    time = v.axes.index(TIME)
    before, rows = math.prod(map(low.size, v.axes[:time])), low.size(TIME)
    place, front = 0, 1  # where time is among the new sizes
    while place < len(sizes) and front < before:
        front *= sizes[place]
        place += 1
    while place < len(sizes) and sizes[place] == 1 and rows > 1:
        place += 1
    if front != before or place == len(sizes) or sizes[place] == rows:
        return v
    if sizes[place] < rows and rows % sizes[place] == 0:
        v = gathered(low, v, rows // sizes[place])
    else:
        times = sizes[place] // rows
        while times > 1 and time + 1 < len(v.axes) and isinstance(v.axes[time + 1], int):
            size = low.size(v.axes[time + 1])
            if size > times and size % times == 0:  # of this axis only the first part
                axes = (*v.axes[: time + 1], times, size // times, *v.axes[time + 2 :])
                v = replace(as_axes(low, v, axes), timing=in_place(v))
                size = times
            if times % size:
                break
            v, times = spread(low, v, time + 1), times // size
    low.attend(v.timing)
    return v


@handles("aten::flatten.using_ints", lazy=True, rows="own")
def flatten(low: Lowering, x: Data, start: int = 0, end: int = -1) -> Data:
    sizes = low.shape(axes_of(x))
    start, end = start % len(sizes), end % len(sizes)
    merged = 1
    for s in sizes[start : end + 1]:
        merged *= s
    return view(low, x, [*sizes[:start], merged, *sizes[end + 1 :]])


@handles("aten::unflatten.int", lazy=True, rows="own")
def unflatten(low: Lowering, x: Data, dim: int, parts: Sequence[int]) -> Data:
    sizes = list(low.shape(axes_of(x)))
    dim %= len(sizes)
    known = 1
    for p in parts:
        known *= p if p != -1 else 1
    filled = [sizes[dim] // known if p == -1 else p for p in parts]
    return view(low, x, [*sizes[:dim], *filled, *sizes[dim + 1 :]])


def _regroup(low: Lowering, axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    """The new axes' labels: axes of equal products are matched from the left. Refuses what mixes them."""
    old = [a for a in axes if a != 1]
    out: list[Axis] = []
    new = list(sizes)
    while new:
        if new[0] == 1:
            out.append(new.pop(0))
            continue
        left, right = [old.pop(0)], [new.pop(0)]
        while low.shape(left) and _product(low, left) != _product(low, right):
            if _product(low, left) < _product(low, right):
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        out.extend(_relabelled(low, left, right))
    return out


def _product(low: Lowering, axes: Sequence[Axis]) -> int:
    total = 1
    for a in axes:
        total *= low.size(a)
    return total


def _relabelled(low: Lowering, left: list[Axis], right: Sequence[int]) -> list[Axis]:
    """What the axes `left` are called after they became the sizes `right`."""
    if all(isinstance(a, int) for a in left):
        return list(right)
    kept = [s for s in right if s != 1]
    if len(left) == 1 == len(kept):
        return [left[0] if s != 1 else 1 for s in right]
    if len(left) == 2 and len(kept) == 1 and (label := merged_label(*left)):
        return [label if s != 1 else 1 for s in right]
    if len(left) == 1 and left[0] in MERGED:
        order = (TIME, BATCH) if left[0] == TIME_BATCH else (BATCH, TIME)
        if kept == [low.size(a) for a in order]:
            names = iter(order)
            return [next(names) if s != 1 else 1 for s in right]
    if set(left) == {BATCH, TIME} or (len(left) == 1 and left[0] in MERGED):
        raise low.refusal(
            f"view() relabels batch as time: ({', '.join(map(str, left))}) becomes sizes {tuple(right)}",
            "use transpose or permute to exchange axes",
        )
    if TIME in left:
        raise low.refusal(
            "merges time with features: the result's size depends on the sequence's length",
            "keep time an axis of its own",
        )
    raise low.refusal("merges the batch with features", "keep the batch an axis of its own")


def as_axes(low: Lowering, v: Value, axes: Sequence[Axis]) -> Value:
    """The same elements under new axes.

    Merging batch and time writes nothing, nor does undoing that; only an axis that a convolution has
    truly merged takes a shape that is known when the model runs.
    """
    merged = next((i for i, a in enumerate(axes) if a in MERGED), None)
    is_joined = HIDDEN not in v.order and any(a in MERGED for a in v.axes)
    time = HIDDEN if v.tick is not None or merged is not None else axes.index(TIME) if TIME in axes else None
    batch = merged if merged is not None else list(axes).index(BATCH)
    lead = [batch] if time is None or (is_joined and merged is not None) else [time, batch]
    features = [i for i, a in enumerate(axes) if isinstance(a, int)]
    sizes = [low.size(axes[i]) for i in features]
    was_lead = low.leading(v)
    was_features = [i for i, a in enumerate(v.axes) if isinstance(a, int)]
    if len(lead) == len(was_lead) and _same_sizes(v, was_features, sizes):
        kept = [i for i, s in zip(features, sizes, strict=True) if s != 1]
        new = dict(zip(was_lead, lead, strict=True))
        new |= dict(zip([i for i in was_features if v.axes[i] != 1], kept, strict=True))
        return replace(v, axes=tuple(axes), order=tuple(new[o] for o in v.order))
    v = low.canonical(v)
    if len(lead) == len(was_lead):
        shape = low.graph.ints(*[0] * len(lead), *sizes)
    else:
        shape = low.time_batch_shape(sizes)
    return Value(low.node("Reshape", v.name, shape), tuple(axes), (*lead, *features), v.dtype, v.tick)


def _same_sizes(v: Value, features: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether only axes of size 1 come or go, and none of them is in the ONNX tensor."""
    same = [v.axes[i] for i in features if v.axes[i] != 1] == [s for s in sizes if s != 1]
    return same and all(v.axes[o] != 1 for o in v.order if o != HIDDEN)


# ------------------------------------------------------------------ choosing and padding features


@handles("aten::index_select")
def index_select(low: Lowering, v: Value, dim: int, index: Tensor) -> Value:
    dim %= len(v.axes)
    if not isinstance(index, Tensor):
        raise low.untranslated("an index computed from the data")
    if v.axes[dim] == TIME and index.numel() == 1:
        return take_tick(v, dim, int(index) % low.size(TIME), keep=True)
    if not isinstance(v.axes[dim], int):
        raise low.refusal(f"picks entries of the {v.axes[dim]} axis", "pick features only")
    v = low.canonical(v, full=True)
    name = low.node("Gather", v.name, low.constant(index, torch.int64), axis=v.at(dim))
    return replace(v, name=name, axes=(*v.axes[:dim], len(index), *v.axes[dim + 1 :]))


@handles("aten::index.Tensor")
def index(low: Lowering, v: Value, indices: Sequence[Tensor | None]) -> Value:
    used = [(d, i) for d, i in enumerate(indices) if i is not None]
    if len(used) != 1 or not isinstance(used[0][1], Tensor) or used[0][1].dim() != 1:
        raise low.untranslated("indexing with more than one list, or with data")
    dim, chosen = used[0]
    if chosen.dtype == torch.bool:
        chosen = chosen.nonzero().reshape(-1)
    return index_select(low, v, dim, chosen % low.size(v.axes[dim]))


@handles("aten::flip")
def flip(low: Lowering, v: Value, dims: Sequence[int]) -> Value:
    for d in dims:
        d %= len(v.axes)
        if v.axes[d] == TIME:
            raise low.refusal("reverses time", "a stream runs forward only")
        size = low.size(v.axes[d])
        v = index_select(low, v, d, torch.arange(size - 1, -1, -1))
    return v


_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@handles("aten::pad", lazy=True, rows="own")
def pad(
    low: Lowering, x: Data, widths: Sequence[int], mode: str = "constant", value: float | None = None
) -> Data:
    axes = axes_of(x)
    rank = len(axes)
    by_axis = {rank - 1 - i: (widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)}
    if mode not in _MODES:
        raise low.untranslated(f"padding of mode {mode!r}")
    along_time = axes.index(TIME) if TIME in axes else None
    over_time = by_axis.pop(-1 if along_time is None else along_time, None)
    by_axis = {d: w for d, w in by_axis.items() if w != (0, 0)}
    for d in by_axis:
        if not isinstance(axes[d], int):
            raise low.refusal(f"pads the {axes[d]} axis", "pad features only")
    if by_axis:
        x = _pad_features(low, low.value(x), by_axis, mode, value)
    if over_time is not None:
        assert along_time is not None
        x = _pad_time(low, low.value(x), widths, 2 * (rank - 1 - along_time), mode, float(value or 0.0))
    return x


def _pad_time(low: Lowering, v: Value, widths: Sequence[int], at: int, mode: str, fill: float) -> Value:
    """`at`: where in the widths those of the time axis are."""
    # (of a complex tensor, forward's call lacks the widths of the axis of its parts)
    calls = {t: (*[0] * (len(widths) - len(w)), *w) for t, w in low.paddings.get(low.at, {}).items()}
    given = {ticks: w[at : at + 2] for ticks, w in (calls or {low.whole: tuple(widths)}).items()}
    if len({left for left, _ in given.values()}) > 1:
        raise low.untranslated("padding in front whose size depends on the sequence's length")
    left = widths[at]
    cut = v.timing.length.then(plus=left)
    found = padded_to(cut, {ticks: right for ticks, (_, right) in given.items()})
    if found is None:
        raise ShortTraceError(
            f"{low.where}: the padding behind depends on the sequence's length, and not as one up to a "
            "multiple of some size does. The exporter has no translation for it"
        )
    length, most = found
    if len({right for _, right in given.values()}) == 1:
        return widened(low, v, left, most, mode, fill)
    return widened(low, v, left, most, mode, fill, length)


def _pad_features(
    low: Lowering, v: Value, widths: Mapping[int, tuple[int, int]], mode: str, fill: float | None
) -> Value:
    v = low.canonical(v, full=any(d not in v.order for d in widths))
    begins = [widths.get(o, (0, 0))[0] for o in v.order]
    ends = [widths.get(o, (0, 0))[1] for o in v.order]
    inputs = [v.name, low.graph.ints(*begins, *ends)]
    if mode == "constant":
        inputs.append(low.constant(fill or 0, v.dtype))
    name = low.node("Pad", *inputs, mode=_MODES[mode])
    axes = tuple(low.size(a) + sum(widths[i]) if i in widths else a for i, a in enumerate(v.axes))
    return replace(v, name=name, axes=axes)


@handles("aten::constant_pad_nd", lazy=True, rows="own")
def constant_pad_nd(low: Lowering, x: Data, widths: Sequence[int], value: float = 0.0) -> Data:
    return pad(low, x, widths, "constant", value)


@handles("aten::reflection_pad1d", "aten::reflection_pad2d", lazy=True, rows="own")
def reflection_pad(low: Lowering, x: Data, widths: Sequence[int]) -> Data:
    return pad(low, x, widths, "reflect")


@handles("aten::replication_pad1d", "aten::replication_pad2d", lazy=True, rows="own")
def replication_pad(low: Lowering, x: Data, widths: Sequence[int]) -> Data:
    return pad(low, x, widths, "replicate")
