"""Activation functions, and clamping."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..lowering import Lowering
from ..values import Operand, Value
from .pointwise import Scalar, binary, compare, floating, unary, where
from .registry import handles

_SAME_AS_LINEAR = 20.0  # softplus(20) - 20 is below float32's resolution: torch's own threshold
_WRONG_CLIP = (torch.int32, torch.int64)  # onnxruntime's Clip errs beyond 2^31; its Max and Min do not


@handles("aten::silu")
def silu(low: Lowering, v: Value) -> Value:
    return low.pointwise("Mul", [v, low.pointwise("Sigmoid", [v])])


@handles("aten::gelu")
def gelu(low: Lowering, v: Value, approximate: str = "none") -> Value:
    return unary("Gelu", low, v, approximate=approximate)


@handles("aten::elu")
def elu(low: Lowering, v: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    if scale != 1 or input_scale != 1:
        raise low.untranslated("elu with a scale")
    return unary("Elu", low, v, alpha=float(alpha))


@handles("aten::selu")
def selu(low: Lowering, v: Value) -> Value:
    # torch's own constants, in full (https://arxiv.org/abs/1706.02515)
    return unary("Selu", low, v, alpha=1.6732632423543772, gamma=1.0507009873554805)


@handles("aten::celu")
def celu(low: Lowering, v: Value, alpha: float = 1.0) -> Value:
    return unary("Celu", low, v, alpha=float(alpha))


@handles("aten::leaky_relu")
def leaky_relu(low: Lowering, v: Value, slope: float = 0.01) -> Value:
    return unary("LeakyRelu", low, v, alpha=float(slope))


@handles("aten::prelu", "aten::_prelu_kernel")
def prelu(low: Lowering, v: Value, weight: Tensor) -> Value:
    if weight.numel() > 1 and weight.dim() == 1:  # one slope a channel: axis 1
        weight = weight.reshape(-1, *[1] * (len(v.axes) - 2))
    return low.pointwise("PRelu", [v, weight])


@handles("aten::softplus")
def softplus(low: Lowering, v: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    v = floating(low, v)
    scaled = v if beta == 1 else low.pointwise("Mul", [v, beta])
    soft = unary("Softplus", low, scaled)
    soft = soft if beta == 1 else low.pointwise("Mul", [soft, 1 / beta])
    if threshold >= _SAME_AS_LINEAR:
        return soft
    return where(low, compare(low, "Greater", scaled, threshold), v, soft)


@handles("aten::log_sigmoid")
def log_sigmoid(low: Lowering, v: Value) -> Value:
    return low.pointwise("Neg", [low.pointwise("Softplus", [low.pointwise("Neg", [v])])])


@handles("aten::hardsigmoid")
def hardsigmoid(low: Lowering, v: Value) -> Value:
    return unary("HardSigmoid", low, v, alpha=1 / 6, beta=0.5)


@handles("aten::relu6")
def relu6(low: Lowering, v: Value) -> Value:
    return clamp(low, v, 0.0, 6.0)


@handles("aten::hardtanh", "aten::clamp", "aten::clip")
def clamp(
    low: Lowering, v: Value, low_end: Operand | Scalar | None = None, high_end: Operand | Scalar | None = None
) -> Value:
    scalars = all(x is None or isinstance(x, int | float) for x in (low_end, high_end))
    if scalars and any(isinstance(x, float) for x in (low_end, high_end)):
        v = floating(low, v)
    if scalars and v.dtype not in _WRONG_CLIP:
        ends = ["" if x is None else low.constant(x, v.dtype) for x in (low_end, high_end)]  # type: ignore[arg-type]
        return replace(v, name=low.node("Clip", v.name, *ends))
    if low_end is not None:
        v = binary(low, "Max", v, low_end)
    return v if high_end is None else binary(low, "Min", v, high_end)


@handles("aten::clamp_min")
def clamp_min(low: Lowering, v: Value, end: Operand | Scalar) -> Value:
    return clamp(low, v, end, None)


@handles("aten::clamp_max")
def clamp_max(low: Lowering, v: Value, end: Operand | Scalar) -> Value:
    return clamp(low, v, None, end)


@handles("aten::threshold")
def threshold(low: Lowering, v: Value, bound: float, otherwise: float) -> Value:
    return where(low, compare(low, "Greater", v, bound), v, otherwise)


@handles("aten::hardshrink")
def hardshrink(low: Lowering, v: Value, bound: float = 0.5) -> Value:
    return where(low, compare(low, "Greater", low.pointwise("Abs", [v]), bound), v, 0.0)


@handles("aten::softshrink")
def softshrink(low: Lowering, v: Value, bound: float = 0.5) -> Value:
    return unary("Shrink", low, v, lambd=float(bound), bias=float(bound))


@handles("aten::glu")
def glu(low: Lowering, v: Value, dim: int = -1) -> Value:
    dim %= len(v.axes)
    size = v.axes[dim]
    if not isinstance(size, int):
        raise low.refusal(f"halves the {size} axis", "gate features")
    halves = low.emit(
        "Split", [v.name, low.graph.ints(size // 2, size // 2)], {"axis": v.at(dim)}, ["a", "b"]
    )
    a, b = (replace(v, name=n, axes=(*v.axes[:dim], size // 2, *v.axes[dim + 1 :])) for n in halves)
    return low.pointwise("Mul", [a, low.pointwise("Sigmoid", [b])])
