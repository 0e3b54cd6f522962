"""Convolutions and pooling: along time with rows kept as state, within a frame as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..graph import Attribute
from ..lowering import Lowering
from ..timing import Timing, Windows
from ..values import BATCH, MERGED, TIME, TIME_BATCH, Axis, Data, Value
from .along_time import END, delayed, from_the_first, in_place, widened, windowed
from .registry import handles

# ------------------------------------------------------------------ the operations


def _expanded(values: int | Sequence[int], rank: int) -> tuple[int, ...]:
    listed = (values,) if isinstance(values, int) else tuple(values)
    return listed * rank if len(listed) == 1 else listed


@handles("aten::conv1d", "aten::conv2d", "aten::conv3d", lazy=True, rows="own")
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
    v = low.value(x)
    if v.tick is None and v.axes[0] not in MERGED and v.axes[0] != BATCH:
        raise low.refusal(
            f"convolves with the {v.axes[0]} axis where the batch is expected",
            "a convolution takes (batch, channels, time)",
        )
    at = v.axes.index(TIME) - 2 if TIME in v.axes else None
    if at is not None and at < 0:
        raise low.refusal(
            "convolves with time in the place of the channels",
            "a convolution takes (batch, channels, time): x.transpose(1, 2)",
        )
    within = [(0, 0) if i == at else p for i, p in enumerate(pads)]
    sizes: list[Axis] = [
        TIME if i == at else (low.size(a) + sum(p) - r - 1) // s + 1
        for i, (a, p, r, s) in enumerate(zip(v.axes[2:], within, reaches, stride, strict=True))
    ]
    axes: tuple[Axis, ...] = (v.axes[0], weight.shape[0], *sizes)

    def write(name: str) -> str:
        inputs = [name, low.constant(weight)] + ([low.constant(bias)] if bias is not None else [])
        return low.node(
            "Conv",
            *inputs,
            dilations=dilation,
            group=groups,
            kernel_shape=kernel,
            pads=tuple(p for p, _ in within) + tuple(q for _, q in within),
            strides=stride,
        )

    if at is None:
        return per_frame(low, v, write, axes)
    return over_windows(low, widened(low, v, *pads[at]), reaches[at], stride[at], write, axes)


def over_windows(
    low: Lowering, v: Value, reach: int, stride: int, write: Callable[[str], str], axes: tuple[Axis, ...]
) -> Value:
    """An operator on (batch, channels, *sizes) whose windows go along time; `write` makes its node."""
    windows = Windows.of(v.timing, reach, stride)
    if low.blocks and windows.timing != Timing():
        raise low.untranslated("a sequence of another rate, delay or length together with blocks=")
    v = low.arrange(v, range(len(v.axes)))
    name = write(windowed(low, v, windows))
    return Value(name, axes, tuple(range(len(axes))), v.dtype, timing=windows.timing)


def per_frame(low: Lowering, v: Value, write: Callable[[str], str], axes: tuple[Axis, ...]) -> Value:
    """An operator on (batch, channels, *sizes), for each tick alone; `write` makes the node."""
    if v.tick is None:
        v = low.arrange(low.joined(v), range(len(v.axes)))
        return Value(write(v.name), axes, tuple(range(len(axes))), v.dtype, timing=in_place(v))
    merged = low.merge(v)
    merged = low.arrange(merged, range(len(merged.axes)))
    out = Value(write(merged.name), (TIME_BATCH, *axes[1:]), tuple(range(len(axes))), v.dtype)
    return replace(low.unmerge(out, v.tick), timing=in_place(v))


@handles("aten::convolution", rows="own")
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


@handles("aten::conv_transpose1d", "aten::conv_transpose2d", lazy=True, rows="own")
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
    v = _with_channels(low, x, rank)
    at = v.axes.index(TIME) - 2 if TIME in v.axes else None
    reach = tuple(a * (b - 1) for a, b in zip(d, k, strict=True))
    sizes: list[Axis] = [
        a if a == TIME else (low.size(a) - 1) * s[i] - 2 * p[i] + reach[i] + extra[i] + 1
        for i, a in enumerate(v.axes[2:])
    ]
    constants = [low.constant(w) for w in (weight, bias) if w is not None]
    axes: tuple[Axis, ...] = (v.axes[0], weight.shape[1] * groups, *sizes)

    def write(name: str) -> str:
        # Along time, all rows that have a part of a kernel; what is too much is cut off afterwards.
        pads = tuple(0 if i == at else n for i, n in enumerate(p))
        more = tuple(max(0, s[i] - reach[i] - 1) if i == at else n for i, n in enumerate(extra))
        return low.node(
            "ConvTranspose",
            name,
            *constants,
            dilations=d,
            group=groups,
            kernel_shape=k,
            output_padding=more,
            pads=pads + pads,
            strides=s,
        )

    if at is None:
        return per_frame(low, v, write, axes)
    made = overlap_added(low, v, reach[at], s[at], extra[at], write, axes)
    return replace(made, timing=made.timing.cut(p[at], p[at]))


def overlap_added(
    low: Lowering,
    v: Value,
    reach: int,
    stride: int,
    more: int,
    write: Callable[[str], str],
    axes: tuple[Axis, ...],
) -> Value:
    """An operator that spreads each row over reach + 1 rows, `stride` rows apart, and adds them up."""
    if low.blocks:
        raise low.untranslated("a transposed convolution along time together with blocks=")
    past = reach // stride
    beyond = max(0, -(-(reach + 1 + more - stride) // stride))  # rows behind the last that results would see
    v = from_the_first(low, v)
    if beyond:  # where the rows end must be known when they are read
        v = delayed(low, v, v.timing.uncertain(low.step))
    timing = v.timing
    length = timing.length.then(times=stride, plus=reach + 1 - stride + more)
    made = Timing(timing.rate * stride, timing.delay * stride, length)
    v = low.arrange(widened(low, v, past, beyond), range(len(v.axes)))
    name = write(windowed(low, v, Windows(v.timing, past, 0, 0)))
    start, spare = past * stride, max(0, reach + 1 - stride)
    if start or spare:
        time = axes.index(TIME)
        ends = (start, -spare if spare else END, time)
        name = low.node("Slice", name, *map(low.graph.ints, ends))
    return Value(name, axes, tuple(range(len(axes))), v.dtype, timing=made)


def _with_channels(low: Lowering, x: Data, rank: int, mixed: bool = True) -> Value:
    """The input of an operator over `rank` axes after the batch and the channels.

    `mixed`: whether it mixes the channels, so that time cannot be in their place.
    """
    v = low.value(x)
    if len(v.axes) != rank + 2:
        raise low.untranslated("a tensor that does not begin with the batch and the channels")
    if v.tick is None and v.axes[0] not in (BATCH, *MERGED):
        raise low.untranslated("a tensor that does not begin with the batch")
    if TIME in v.axes[: 2 if mixed else 1]:
        raise low.untranslated("an operator with time in the place of the channels")
    return v


# ------------------------------------------------------------------ pooling


@handles("aten::max_pool1d", "aten::max_pool2d", lazy=True, rows="own")
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


@handles("aten::avg_pool1d", "aten::avg_pool2d", lazy=True, rows="own")
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
    rank = 1 if low.op.endswith("1d") else 2
    k, p, d = _expanded(kernel, rank), _expanded(padding, rank), _expanded(dilation, rank)
    s = _expanded(stride, rank) if stride else k
    v = _with_channels(low, x, rank, mixed=False)
    at = v.axes.index(TIME) - 2 if TIME in v.axes[2:] else None
    if ceil and any(size != 1 for size in s):
        raise low.untranslated("ceil_mode=True")
    if op == "AveragePool" and at is not None and p[at] and not include:
        raise low.untranslated("an average along time that leaves its padding out (count_include_pad=False)")
    sizes: list[Axis] = [
        a if a == TIME else (low.size(a) + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1
        for i, a in enumerate(v.axes[2:])
    ]
    axes = (v.axes[0], v.axes[1], *sizes)
    pads = tuple(0 if i == at else n for i, n in enumerate(p))
    extra: dict[str, Attribute] = {} if include is None else {"count_include_pad": include}
    if op == "MaxPool":
        extra["dilations"] = d

    def write(name: str) -> str:
        return low.node(op, name, kernel_shape=k, strides=s, pads=pads + pads, **extra)

    if at is None:
        return per_frame(low, v, write, axes)
    fill = torch.finfo(v.dtype).min if op == "MaxPool" else 0.0  # (a state must be finite)
    v = widened(low, v, p[at], p[at], "constant", fill)
    return over_windows(low, v, d[at] * (k[at] - 1), s[at], write, axes)
