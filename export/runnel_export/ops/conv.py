"""Convolutions: along time as state, within a frame as they are; pooling within a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..lowering import Lowering, State
from ..values import BATCH, MERGED, TIME, TIME_BATCH, Axis, Data, Filter, Span, Value
from .registry import handles

# ------------------------------------------------------------------ along time


def settle(low: Lowering, span: Span) -> Data:
    """The Span as a Value where it has become one: the sequence's length, and nothing of the future."""
    ticks = low.size(TIME)
    if span.length == ticks and span.offset <= 0:
        return _written(low, span)
    if span.length == ticks and span.filter:
        low.refuse_span(span)
    if span.length == 1 and 0 <= span.offset < ticks:  # one tick of it
        from .sequence import take_tick

        whole = _written(low, replace(span, offset=0, length=ticks))
        return take_tick(whole, span.axis, span.offset, keep=True)
    return span


def _written(low: Lowering, span: Span) -> Value:
    """A sequence delayed by -offset ticks, or a causal convolution of it."""
    delay = -span.offset
    if span.filter is None:
        return span.base if delay == 0 else _delayed(low, span.base, span.axis, delay, span.fill or 0.0)
    return _causal(low, span.base, span.axis, span.filter, delay, span.fill or 0.0)


def _with_past(low: Lowering, v: Value, axis: int, past: int, fill: float, path: str) -> str:
    """`v` with `past` ticks before it, which are state. Returns the longer sequence's name."""
    at = v.at(axis)
    name = low.graph.fresh(f"{path}.cache" if path else "cache")
    dims = tuple(past if i == axis else "slot" if a == BATCH else low.size(a) for i, a in enumerate(v.axes))
    dims = tuple(dims[o] for o in v.order)
    row = torch.full([d for d in dims if isinstance(d, int)], fill, dtype=v.dtype)
    longer = low.node("Concat", name, v.name, axis=at)
    last = low.node("Slice", longer, low.graph.ints(-past), low.graph.ints(2**62), low.graph.ints(at))
    low.states[name] = State(name, v.dtype, dims, row.numpy(), last)
    return longer


def _delayed(low: Lowering, v: Value, axis: int, delay: int, fill: float) -> Value:
    if BATCH not in v.axes:
        low.unsupported("a delay of merged batch and time")
    longer = _with_past(low, v, axis, delay, fill, low.path or "delay")
    ends = (low.graph.ints(0), low.graph.ints(-delay), low.graph.ints(v.at(axis)))
    return replace(v, name=low.node("Slice", longer, *ends))


def _causal(low: Lowering, v: Value, axis: int, filter: Filter, delay: int, fill: float) -> Value:
    low.path, path = filter.path, low.path
    v = low.arrange(v, range(len(v.axes)))  # an ONNX convolution wants (batch, channels, *spatial)
    past = filter.reach + delay
    name = v.name
    if past:
        name = _with_past(low, v, axis, past, fill, filter.path)
    if delay:
        name = low.node("Slice", name, low.graph.ints(0), low.graph.ints(-delay), low.graph.ints(axis))
    out = _conv_node(low, filter, name)
    low.path = path
    return Value(out, filter.axes, tuple(range(len(filter.axes))), v.dtype)


def _conv_node(low: Lowering, f: Filter, name: str) -> str:
    inputs = [name, low.constant(f.weight)] + ([low.constant(f.bias)] if f.bias is not None else [])
    return low.node(
        "Conv",
        *inputs,
        dilations=f.dilation,
        group=f.groups,
        kernel_shape=tuple(f.weight.shape[2:]),
        pads=f.pads,
        strides=f.strides,
    )


# ------------------------------------------------------------------ the operations


def _expanded(values: int | Sequence[int], rank: int) -> tuple[int, ...]:
    listed = (values,) if isinstance(values, int) else tuple(values)
    return listed * rank if len(listed) == 1 else listed


@handles("aten::conv1d", "aten::conv2d", "aten::conv3d", lazy=True)
def conv(low: Lowering, x: Data, weight: Tensor, bias: Tensor | None = None, stride: Sequence[int] = (1,),
         padding: Sequence[int] | str = (0,), dilation: Sequence[int] = (1,), groups: int = 1) -> Data:  # fmt: skip
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        low.unsupported("a convolution whose weights are computed from the data")
    spatial = weight.dim() - 2
    kernel = tuple(weight.shape[2:])
    stride, dilation = _expanded(stride, spatial), _expanded(dilation, spatial)
    reaches = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    if padding == "same":
        pads = [(r // 2, r - r // 2) for r in reaches]
    elif isinstance(padding, str):
        pads = [(0, 0)] * spatial
    else:
        pads = [(p, p) for p in _expanded(padding, spatial)]
    base = x.base if isinstance(x, Span) else low.value(x)
    if base.tick is not None or base.axes[0] in MERGED or base.axes[0] == BATCH:
        pass
    else:
        low.refuse(f"convolves with the {base.axes[0]} axis where the batch is expected",
                   "a convolution takes (batch, channels, time)")  # fmt: skip
    if TIME not in base.axes:
        v = low.value(x)
        sizes = [
            (low.size(a) + p + q - r - 1) // s + 1
            for a, (p, q), r, s in zip(v.axes[2:], pads, reaches, stride, strict=True)
        ]
        axes: tuple[Axis, ...] = (v.axes[0], weight.shape[0], *sizes)
        whole = tuple(p for p, _ in pads) + tuple(q for _, q in pads)
        f = Filter("Conv", weight, bias, axes, 0, dilation, groups, stride, whole, low.path)
        return per_frame(low, v, lambda name: _conv_node(low, f, name), axes)
    return _along_time(low, x, base, weight, bias, stride, pads, dilation, groups, reaches)


def _along_time(low: Lowering, x: Data, base: Value, weight: Tensor, bias: Tensor | None,
                stride: tuple[int, ...], pads: list[tuple[int, int]], dilation: tuple[int, ...], groups: int,
                reaches: list[int]) -> Data:  # fmt: skip
    axis = base.axes.index(TIME)
    if axis < 2:
        low.refuse("convolves with time in the place of the channels",
                   "a convolution takes (batch, channels, time): x.transpose(1, 2)")  # fmt: skip
    at = axis - 2
    if stride[at] != 1:
        low.refuse(
            f"stride {stride[at]} along time changes the rate", "use stride 1, or make frames before the model"
        )
    span = x if isinstance(x, Span) else Span(base, axis, 0, low.size(TIME))
    if span.filter:
        low.refuse_span(span)
    left, right = pads[at]
    if left or right:
        if span.fill not in (None, 0.0):
            low.unsupported(f"padding with {span.fill} and then with zeros")
        if span.offset > 0 or span.offset + span.length < low.size(TIME):
            low.refuse_span(span)
        span = replace(span, offset=span.offset - left, length=span.length + left + right, fill=0.0)
    others = [(0, 0) if i == at else p for i, p in enumerate(pads)]
    sizes: list[Axis] = [
        TIME if i == at else (low.size(base.axes[i + 2]) + p + q - reaches[i] - 1) // stride[i] + 1
        for i, (p, q) in enumerate(others)
    ]
    axes = (base.axes[0], weight.shape[0], *sizes)
    whole = tuple(p for p, _ in others) + tuple(q for _, q in others)
    f = Filter("Conv", weight, bias, axes, reaches[at], dilation, groups, stride, whole, low.path)
    return settle(
        low,
        replace(span, offset=span.offset + reaches[at], length=span.length - reaches[at], filter=f),
    )


def per_frame(low: Lowering, v: Value, write: object, axes: tuple[Axis, ...]) -> Value:
    """An operator on (batch, channels, *sizes), for each tick alone; `write` makes the node."""
    assert callable(write)
    if v.tick is None:
        v = low.arrange(v, range(len(v.axes)))
        return Value(write(v.name), axes, tuple(range(len(axes))), v.dtype)
    merged = low.merge(v, TIME_BATCH)
    merged = low.arrange(merged, range(len(merged.axes)))
    out = Value(write(merged.name), (TIME_BATCH, *axes[1:]), tuple(range(len(axes))), v.dtype)
    return low.unmerge(out, v.tick)


@handles("aten::convolution")
def convolution(low: Lowering, x: Data, weight: Tensor, bias: Tensor | None, stride: Sequence[int],
                padding: Sequence[int], dilation: Sequence[int], transposed: bool,
                output_padding: Sequence[int], groups: int) -> Data:  # fmt: skip
    if transposed:
        return transposed_conv(low)
    return conv(low, x, weight, bias, stride, padding, dilation, groups)


@handles("aten::conv_transpose1d", "aten::conv_transpose2d", lazy=True)
def transposed_conv(low: Lowering, *_: object) -> Data:
    low.refuse("a transposed convolution spreads a tick over several", "a causal convolution")


# ------------------------------------------------------------------ pooling


@handles("aten::max_pool1d", "aten::max_pool2d")
def max_pool(low: Lowering, v: Value, kernel: Sequence[int], stride: Sequence[int] = (),
             padding: Sequence[int] = (0,), dilation: Sequence[int] = (1,), ceil: bool = False) -> Value:  # fmt: skip
    return _pool(low, "MaxPool", v, kernel, stride, padding, dilation, ceil)


@handles("aten::avg_pool1d", "aten::avg_pool2d")
def avg_pool(low: Lowering, v: Value, kernel: Sequence[int], stride: Sequence[int] = (),
             padding: Sequence[int] = (0,), ceil: bool = False, count_include_pad: bool = True,
             divisor_override: int | None = None) -> Value:  # fmt: skip
    if divisor_override is not None:
        low.unsupported("divisor_override")
    return _pool(low, "AveragePool", v, kernel, stride, padding, (1,), ceil, int(count_include_pad))


def _pool(low: Lowering, op: str, v: Value, kernel: Sequence[int], stride: Sequence[int],
          padding: Sequence[int], dilation: Sequence[int], ceil: bool, include: int | None = None) -> Value:  # fmt: skip
    if TIME in v.axes:
        low.refuse("pools along time", "a causal convolution, or pooling within a frame only")
    if v.tick is None and v.axes[0] not in (BATCH, *MERGED):
        low.unsupported("pooling of a tensor that does not begin with the batch")
    if ceil:
        low.unsupported("ceil_mode=True")
    rank = len(v.axes) - 2
    k, p, d = _expanded(kernel, rank), _expanded(padding, rank), _expanded(dilation, rank)
    s = _expanded(stride, rank) if stride else k
    sizes = [
        (low.size(a) + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i, a in enumerate(v.axes[2:])
    ]
    axes = (v.axes[0], v.axes[1], *sizes)
    extra = {} if include is None else {"count_include_pad": include}
    if op == "MaxPool":
        extra["dilations"] = d  # type: ignore[assignment]
    return per_frame(
        low, v, lambda name: low.node(op, name, kernel_shape=k, strides=s, pads=p + p, **extra), axes
    )


