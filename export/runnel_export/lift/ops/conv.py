"""Convolutions: along time as state, within a frame as they are; pooling within a frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from ..lowering import Lowering
from ..values import BATCH, MERGED, TIME, TIME_BATCH, Axis, Data, Filter, Span, Value, axes_of
from .registry import handles
from .span import conv_node, settle

# ------------------------------------------------------------------ the operations


def _expanded(values: int | Sequence[int], rank: int) -> tuple[int, ...]:
    listed = (values,) if isinstance(values, int) else tuple(values)
    return listed * rank if len(listed) == 1 else listed


@handles("aten::conv1d", "aten::conv2d", "aten::conv3d", lazy=True)
def conv(
    low: Lowering,
    x: Data,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Data:
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        raise low.untranslated("a convolution whose weights are computed from the data")
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
        raise low.refusal(
            f"convolves with the {base.axes[0]} axis where the batch is expected",
            "a convolution takes (batch, channels, time)",
        )
    if TIME not in base.axes:
        v = low.value(x)
        sizes = [
            (low.size(a) + p + q - r - 1) // s + 1
            for a, (p, q), r, s in zip(v.axes[2:], pads, reaches, stride, strict=True)
        ]
        axes: tuple[Axis, ...] = (v.axes[0], weight.shape[0], *sizes)
        whole = tuple(p for p, _ in pads) + tuple(q for _, q in pads)
        f = Filter(weight, bias, axes, 0, dilation, groups, stride, whole, low.path, low.where)
        return per_frame(low, v, lambda name: conv_node(low, f, name), axes)
    return _along_time(low, x, base, weight, bias, stride, pads, dilation, groups, reaches)


def _along_time(
    low: Lowering,
    x: Data,
    base: Value,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    pads: list[tuple[int, int]],
    dilation: tuple[int, ...],
    groups: int,
    reaches: list[int],
) -> Data:
    axis = base.axes.index(TIME)
    if axis < 2:
        raise low.refusal(
            "convolves with time in the place of the channels",
            "a convolution takes (batch, channels, time): x.transpose(1, 2)",
        )
    at = axis - 2
    if stride[at] != 1:
        raise low.refusal(
            f"stride {stride[at]} along time changes the rate",
            "use stride 1, or make frames before the model",
        )
    span = x if isinstance(x, Span) else Span(base, axis, 0, low.size(TIME))
    if span.filter:
        raise low.span_refusal(span)
    left, right = pads[at]
    if left or right:
        if span.fill not in (None, 0.0):
            raise low.untranslated(f"padding with {span.fill} and then with zeros")
        if span.offset > 0 or span.offset + span.length < low.size(TIME):
            raise low.span_refusal(span)
        span = replace(span, offset=span.offset - left, length=span.length + left + right, fill=0.0)
    others = [(0, 0) if i == at else p for i, p in enumerate(pads)]
    sizes: list[Axis] = [
        TIME if i == at else (low.size(base.axes[i + 2]) + p + q - reaches[i] - 1) // stride[i] + 1
        for i, (p, q) in enumerate(others)
    ]
    axes = (base.axes[0], weight.shape[0], *sizes)
    whole = tuple(p for p, _ in others) + tuple(q for _, q in others)
    f = Filter(weight, bias, axes, reaches[at], dilation, groups, stride, whole, low.path, low.where)
    return settle(
        low,
        replace(span, offset=span.offset + reaches[at], length=span.length - reaches[at], filter=f),
    )


def per_frame(low: Lowering, v: Value, write: object, axes: tuple[Axis, ...]) -> Value:
    """An operator on (batch, channels, *sizes), for each tick alone; `write` makes the node."""
    assert callable(write)
    if v.tick is None:
        v = low.arrange(low.joined(v), range(len(v.axes)))
        return Value(write(v.name), axes, tuple(range(len(axes))), v.dtype)
    merged = low.merge(v)
    merged = low.arrange(merged, range(len(merged.axes)))
    out = Value(write(merged.name), (TIME_BATCH, *axes[1:]), tuple(range(len(axes))), v.dtype)
    return low.unmerge(out, v.tick)


@handles("aten::convolution")
def convolution(
    low: Lowering,
    x: Data,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Data:
    if transposed:
        return transposed_conv(low, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(low, x, weight, bias, stride, padding, dilation, groups)


@handles("aten::conv_transpose1d", "aten::conv_transpose2d", lazy=True)
def transposed_conv(
    low: Lowering,
    x: Data,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Value:
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        raise low.untranslated("a convolution whose weights are computed from the data")
    rank, k = weight.dim() - 2, tuple(weight.shape[2:])
    s, p, extra, d = (_expanded(a, rank) for a in (stride, padding, output_padding, dilation))
    v = _within_a_frame(
        low,
        x,
        rank,
        lambda i: (k[i], s[i], p[i], extra[i]) == (1, 1, 0, 0),
        "a transposed convolution spreads a tick over several",
        "a causal convolution, or a kernel and a stride of 1 along time",
    )
    sizes: list[Axis] = [
        a if a == TIME else (low.size(a) - 1) * s[i] - 2 * p[i] + d[i] * (k[i] - 1) + extra[i] + 1
        for i, a in enumerate(v.axes[2:])
    ]
    constants = [low.constant(w) for w in (weight, bias) if w is not None]

    def write(name: str) -> str:
        return low.node(
            "ConvTranspose",
            name,
            *constants,
            dilations=d,
            group=groups,
            kernel_shape=k,
            output_padding=extra,
            pads=p + p,
            strides=s,
        )

    return per_frame(low, v, write, (v.axes[0], weight.shape[1] * groups, *sizes))


def _within_a_frame(
    low: Lowering, x: Data, rank: int, alone: Callable[[int], bool], why: str, help: str
) -> Value:
    """The input of an operator over `rank` axes after the channels; `alone`: it leaves the i-th as it is.

    Refuses what is not (batch, channels, *spatial), and an operator that mixes ticks.
    """
    axes = axes_of(x)
    time = x.axis if isinstance(x, Span) else axes.index(TIME) if TIME in axes else None
    if len(axes) != rank + 2:
        raise low.untranslated("a tensor that does not begin with the batch and the channels")
    if time is not None and time >= 2 and not alone(time - 2):
        raise low.refusal(why, help)
    v = low.value(x)
    if v.tick is None and v.axes[0] not in (BATCH, *MERGED):
        raise low.untranslated("a tensor that does not begin with the batch")
    return v


# ------------------------------------------------------------------ pooling


@handles("aten::max_pool1d", "aten::max_pool2d", lazy=True)
def max_pool(
    low: Lowering,
    x: Data,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil: bool = False,
) -> Value:
    return _pool(low, "MaxPool", x, kernel, stride, padding, dilation, ceil)


@handles("aten::avg_pool1d", "aten::avg_pool2d", lazy=True)
def avg_pool(
    low: Lowering,
    x: Data,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    if divisor_override is not None:
        raise low.untranslated("divisor_override")
    return _pool(low, "AveragePool", x, kernel, stride, padding, (1,), ceil, int(count_include_pad))


def _pool(
    low: Lowering,
    op: str,
    x: Data,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
    include: int | None = None,
) -> Value:
    if ceil:
        raise low.untranslated("ceil_mode=True")
    rank = 1 if low.op.endswith("1d") else 2
    k, p, d = _expanded(kernel, rank), _expanded(padding, rank), _expanded(dilation, rank)
    s = _expanded(stride, rank) if stride else k
    v = _within_a_frame(
        low,
        x,
        rank,
        lambda i: (k[i], s[i], p[i]) == (1, 1, 0),
        "pools along time",
        "a causal convolution, or pooling within a frame only",
    )
    sizes: list[Axis] = [
        a if a == TIME else (low.size(a) + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1
        for i, a in enumerate(v.axes[2:])
    ]
    axes = (v.axes[0], v.axes[1], *sizes)
    extra = {} if include is None else {"count_include_pad": include}
    if op == "MaxPool":
        extra["dilations"] = d  # type: ignore[assignment]
    return per_frame(
        low, v, lambda name: low.node(op, name, kernel_shape=k, strides=s, pads=p + p, **extra), axes
    )
