"""Reductions over features; over time they are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..lowering import Lowering
from ..values import HIDDEN, TIME, Value
from ..writer import EXPLICIT
from .pointwise import floating
from .registry import handles

Dims = int | Sequence[int] | None


def feature_axes(low: Lowering, v: Value, dims: Dims, what: str) -> list[int]:
    """The axes, not negative; refuses time and batch."""
    rank = len(v.axes)
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        dims = range(rank)
    axes = sorted({d % rank for d in ([dims] if isinstance(dims, int) else dims)})
    for axis in axes:
        label = v.axes[axis]
        if label == TIME:
            raise low.refusal(
                f"{what} over all time needs the whole sequence",
                "use the last tick (out[:, -1]), or carry a running value as state: " + EXPLICIT,
            )
        if not isinstance(label, int):
            raise low.refusal(f"{what} over the batch mixes streams", "reduce features only")
    return axes


def reduced(low: Lowering, op: str, v: Value, axes: Sequence[int], keepdim: bool) -> Value:
    """One Reduce node; an axis that the ONNX tensor has not is put there first."""
    if any(a not in v.order for a in axes):
        v = low.canonical(v, full=True)
    places = sorted(v.at(a) for a in axes)
    name = low.node(op, v.name, low.graph.ints(*places), keepdims=int(keepdim))
    if keepdim:
        return replace(v, name=name, axes=tuple(1 if i in axes else a for i, a in enumerate(v.axes)))
    kept = [i for i in range(len(v.axes)) if i not in axes]
    new = {old: i for i, old in enumerate(kept)}
    order = tuple(o if o == HIDDEN else new[o] for o in v.order if o not in axes)
    return Value(name, tuple(v.axes[i] for i in kept), order, v.dtype, v.tick)


def _reduction(op: str, what: str, floats: bool = False) -> Callable[..., Value]:
    def write(
        low: Lowering, v: Value, dims: Dims = None, keepdim: bool = False, dtype: torch.dtype | None = None
    ) -> Value:
        if dtype is not None:
            v = low.cast(v, dtype)
        elif floats:
            v = floating(low, v)
        elif op == "ReduceSum" and not v.dtype.is_floating_point:
            v = low.cast(v, torch.int64)
        return reduced(low, op, v, feature_axes(low, v, dims, what), keepdim)

    return write


handles("aten::mean.dim", "aten::mean.default")(_reduction("ReduceMean", "a mean", floats=True))
handles("aten::sum.dim_IntList", "aten::sum.default")(_reduction("ReduceSum", "a sum"))
handles("aten::amax")(_reduction("ReduceMax", "a maximum"))
handles("aten::amin")(_reduction("ReduceMin", "a minimum"))
handles("aten::prod.dim_int")(_reduction("ReduceProd", "a product"))
handles("aten::logsumexp")(_reduction("ReduceLogSumExp", "a log-sum-exp", floats=True))
handles("aten::max.default")(_reduction("ReduceMax", "a maximum"))
handles("aten::min.default")(_reduction("ReduceMin", "a minimum"))


def _with_index(op: str, arg: str, what: str) -> Callable[..., tuple[Value, Value]]:
    def write(low: Lowering, v: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
        axes = feature_axes(low, v, dim, what)
        return reduced(low, op, v, axes, keepdim), _arg(low, arg, v, axes[0], keepdim)

    return write


def _arg(low: Lowering, op: str, v: Value, axis: int, keepdim: bool) -> Value:
    if axis not in v.order:
        v = low.canonical(v, full=True)
    name = low.node(op, v.name, axis=v.at(axis), keepdims=1)
    out = replace(
        v, name=name, axes=tuple(1 if i == axis else a for i, a in enumerate(v.axes)), dtype=torch.int64
    )
    return out if keepdim else low.drop(out, axis)


handles("aten::max.dim")(_with_index("ReduceMax", "ArgMax", "a maximum"))
handles("aten::min.dim")(_with_index("ReduceMin", "ArgMin", "a minimum"))


def _index_only(op: str, what: str) -> Callable[..., Value]:
    def write(low: Lowering, v: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        if dim is None:
            feature_axes(low, v, None, what)
        assert dim is not None
        return _arg(low, op, v, feature_axes(low, v, dim, what)[0], keepdim)

    return write


handles("aten::argmax")(_index_only("ArgMax", "an argmax"))
handles("aten::argmin")(_index_only("ArgMin", "an argmin"))


@handles("aten::var.dim")
def var_dim(low: Lowering, v: Value, dims: Dims, unbiased: bool = True, keepdim: bool = False) -> Value:
    return var(low, v, dims, 1 if unbiased else 0, keepdim)


@handles("aten::std.dim")
def std_dim(low: Lowering, v: Value, dims: Dims, unbiased: bool = True, keepdim: bool = False) -> Value:
    return std(low, v, dims, 1 if unbiased else 0, keepdim)


@handles("aten::std.correction")
def std(
    low: Lowering, v: Value, dims: Dims = None, correction: float | None = None, keepdim: bool = False
) -> Value:
    return low.pointwise("Sqrt", [var(low, v, dims, correction, keepdim)])


@handles("aten::var.correction")
def var(
    low: Lowering, v: Value, dims: Dims = None, correction: float | None = None, keepdim: bool = False
) -> Value:
    axes = feature_axes(low, v, dims, "a variance")
    count = math.prod(low.size(v.axes[a]) for a in axes)
    divisor = count - (1 if correction is None else correction)
    if divisor <= 0:
        raise low.untranslated("the variance of one element")
    off = low.pointwise("Sub", [v, reduced(low, "ReduceMean", v, axes, True)])
    total = reduced(low, "ReduceSum", low.pointwise("Mul", [off, off]), axes, keepdim)
    return low.pointwise("Mul", [total, 1 / divisor])


@handles("aten::linalg_vector_norm")
def vector_norm(
    low: Lowering,
    v: Value,
    order: float = 2,
    dims: Dims = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Value:
    if order not in (1, 2):
        raise low.untranslated(f"a norm of order {order}")
    return reduced(low, f"ReduceL{order:g}", v, feature_axes(low, v, dims, "a norm"), keepdim)


def _soft(op: str) -> Callable[..., Value]:
    def write(low: Lowering, v: Value, dim: int, dtype: object = None) -> Value:
        axis = feature_axes(low, v, dim, "a softmax")[0]
        if axis not in v.order:
            v = low.canonical(v, full=True)
        if isinstance(dtype, torch.dtype):
            v = low.cast(v, dtype)
        return replace(v, name=low.node(op, v.name, axis=v.at(axis)))

    return write


handles("aten::softmax.int", "aten::_softmax")(_soft("Softmax"))
handles("aten::log_softmax.int", "aten::_log_softmax")(_soft("LogSoftmax"))


@handles("aten::cumsum")
def cumsum(low: Lowering, v: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    if v.axes[dim] == TIME:
        raise low.refusal("a running sum over time is state that the exporter does not find", EXPLICIT)
    axis = feature_axes(low, v, dim, "a running sum")[0]
    v = low.canonical(v, full=True)
    return replace(v, name=low.node("CumSum", v.name, low.constant(v.at(axis), torch.int64)))


@handles("aten::topk")
def topk(
    low: Lowering, v: Value, k: int, dim: int = -1, largest: bool = True, in_order: bool = True
) -> tuple[Value, Value]:
    axis = feature_axes(low, v, dim, "a top-k")[0]
    v = low.canonical(v, full=True)
    values, places = low.emit(
        "TopK",
        [v.name, low.graph.ints(k)],
        {"axis": v.at(axis), "largest": int(largest), "sorted": int(in_order)},
        ["values", "indices"],
    )
    axes = (*v.axes[:axis], k, *v.axes[axis + 1 :])
    return replace(v, name=values, axes=axes), replace(v, name=places, axes=axes, dtype=torch.int64)


@handles("aten::adaptive_avg_pool1d", "aten::adaptive_avg_pool2d")
def adaptive_mean(low: Lowering, v: Value, size: Sequence[int]) -> Value:
    if any(s != 1 for s in size):
        raise low.untranslated("adaptive pooling to more than one element")
    axes = feature_axes(low, v, [-1 - i for i in range(len(size))], "a mean")
    return reduced(low, "ReduceMean", v, axes, True)
