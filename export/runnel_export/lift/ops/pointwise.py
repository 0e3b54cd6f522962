"""Operations on each element: arithmetic, comparisons, choices, casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..lowering import Lowering
from ..values import Operand, Value
from .registry import handles

Scalar = float | int | bool

# ------------------------------------------------------------------ one operand, one node

_UNARY = {
    "relu": "Relu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "neg": "Neg",
    "abs": "Abs",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "asinh": "Asinh",
    "acosh": "Acosh",
    "atanh": "Atanh",
    "erf": "Erf",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "sign": "Sign",
    "reciprocal": "Reciprocal",
    "hardswish": "HardSwish",
    "mish": "Mish",
}


def _unary(op: str) -> Callable[[Lowering, Value], Value]:
    def write(low: Lowering, v: Value) -> Value:
        return low.pointwise(op, [floating(low, v) if op not in _ANY_DTYPE else v])

    return write


_ANY_DTYPE = {"Neg", "Abs", "Sign", "Relu"}
for _name, _op in _UNARY.items():
    handles(f"aten::{_name}.default")(_unary(_op))


def floating(low: Lowering, v: Value) -> Value:
    return v if v.dtype.is_floating_point else low.cast(v, torch.float32)


def unary(op: str, low: Lowering, v: Value, **attributes: float | str) -> Value:
    v = floating(low, v)
    return replace(v, name=low.node(op, v.name, **attributes))


@handles("aten::logical_not", "aten::bitwise_not")
def logical_not(low: Lowering, v: Value) -> Value:
    if low.op == "aten.bitwise_not" and v.dtype != torch.bool:
        raise low.untranslated("bitwise operations on integers")
    return low.pointwise("Not", [v], torch.bool)


@handles("aten::rsqrt")
def rsqrt(low: Lowering, v: Value) -> Value:
    return low.pointwise("Reciprocal", [unary("Sqrt", low, v)])


@handles("aten::square")
def square(low: Lowering, v: Value) -> Value:
    return low.pointwise("Mul", [v, v])


@handles("aten::log1p")
def log1p(low: Lowering, v: Value) -> Value:
    return low.pointwise("Log", [low.pointwise("Add", [floating(low, v), 1.0])])


@handles("aten::expm1")
def expm1(low: Lowering, v: Value) -> Value:
    return low.pointwise("Sub", [unary("Exp", low, v), 1.0])


@handles("aten::log2")
def log2(low: Lowering, v: Value) -> Value:
    return low.pointwise("Mul", [unary("Log", low, v), 1 / math.log(2)])


@handles("aten::log10")
def log10(low: Lowering, v: Value) -> Value:
    return low.pointwise("Mul", [unary("Log", low, v), 1 / math.log(10)])


# ------------------------------------------------------------------ two operands


def common_dtype(a: Operand | Scalar, b: Operand | Scalar) -> torch.dtype:
    """The dtype that torch computes in: numbers and tensors without axes give only their kind."""
    return torch.result_type(_stand_in(a), _stand_in(b))


def _stand_in(x: Operand | Scalar) -> Tensor | Scalar:
    if not isinstance(x, Value | Tensor):
        return x
    rank = len(x.axes) if isinstance(x, Value) else x.dim()
    return torch.empty((1,) if rank else (), dtype=x.dtype, device="meta")


def binary(low: Lowering, op: str, a: Operand | Scalar, b: Operand | Scalar) -> Value:
    return low.pointwise(op, [a, b], common_dtype(a, b))


def _scaled(low: Lowering, x: Operand | Scalar, alpha: Scalar) -> Operand | Scalar:
    if alpha == 1:
        return x
    return binary(low, "Mul", x, alpha) if isinstance(x, Value) else x * alpha


@handles("aten::add")
def add(low: Lowering, a: Operand | Scalar, b: Operand | Scalar, alpha: Scalar = 1) -> Value:
    return binary(low, "Add", a, _scaled(low, b, alpha))


@handles("aten::sub")
def sub(low: Lowering, a: Operand | Scalar, b: Operand | Scalar, alpha: Scalar = 1) -> Value:
    return binary(low, "Sub", a, _scaled(low, b, alpha))


@handles("aten::rsub")
def rsub(low: Lowering, a: Operand | Scalar, b: Operand | Scalar, alpha: Scalar = 1) -> Value:
    return sub(low, b, a, alpha)


@handles("aten::mul")
def mul(low: Lowering, a: Operand | Scalar, b: Operand | Scalar) -> Value:
    return binary(low, "Mul", a, b)


@handles("aten::div", "aten::true_divide")
def div(low: Lowering, a: Operand | Scalar, b: Operand | Scalar, rounding_mode: str | None = None) -> Value:
    dtype = common_dtype(a, b)
    if rounding_mode is None and not dtype.is_floating_point:
        dtype = torch.float32
    quotient = low.pointwise("Div", [a, b], dtype)
    if rounding_mode is None:
        return quotient
    if rounding_mode != "floor" or not dtype.is_floating_point:
        raise low.untranslated(f"rounding_mode={rounding_mode!r} on {dtype}")
    return low.pointwise("Floor", [quotient])


@handles("aten::minimum", "aten::min.other")
def minimum(low: Lowering, a: Operand, b: Operand) -> Value:
    return binary(low, "Min", a, b)


@handles("aten::maximum", "aten::max.other")
def maximum(low: Lowering, a: Operand, b: Operand) -> Value:
    return binary(low, "Max", a, b)


@handles("aten::pow")
def power(low: Lowering, a: Operand | Scalar, b: Operand | Scalar) -> Value:
    if isinstance(a, Value) and b == 2 and not isinstance(b, Value | Tensor):
        return low.pointwise("Mul", [a, a])
    if isinstance(a, Value) and b == 0.5 and not isinstance(b, Value | Tensor):
        return unary("Sqrt", low, a)
    return binary(low, "Pow", a, b)


@handles("aten::remainder")
def remainder(low: Lowering, a: Operand | Scalar, b: Operand | Scalar) -> Value:
    dtype = common_dtype(a, b)
    if not dtype.is_floating_point:
        return low.pointwise("Mod", [a, b], dtype)
    floor = low.pointwise("Floor", [low.pointwise("Div", [a, b], dtype)])
    return low.pointwise("Sub", [a, low.pointwise("Mul", [floor, b], dtype)], dtype)


@handles("aten::lerp.Scalar", "aten::lerp.Tensor")
def lerp(low: Lowering, a: Operand, b: Operand, weight: Operand | Scalar) -> Value:
    step = low.pointwise("Mul", [binary(low, "Sub", b, a), weight])
    return binary(low, "Add", a, step)


@handles("aten::addcmul")
def addcmul(low: Lowering, x: Operand, a: Operand, b: Operand, value: Scalar = 1) -> Value:
    return _plus(low, x, "Mul", a, b, value)


@handles("aten::addcdiv")
def addcdiv(low: Lowering, x: Operand, a: Operand, b: Operand, value: Scalar = 1) -> Value:
    return _plus(low, x, "Div", a, b, value)


def _plus(low: Lowering, x: Operand, op: str, a: Operand, b: Operand, value: Scalar) -> Value:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return binary(low, "Add", x, (a * b if op == "Mul" else a / b) * value)
    return binary(low, "Add", x, _scaled(low, binary(low, op, a, b), value))


# ------------------------------------------------------------------ comparisons and choices


def compare(low: Lowering, op: str, a: Operand | Scalar, b: Operand | Scalar) -> Value:
    return low.pointwise(op, [a, b], common_dtype(a, b), torch.bool)


_COMPARE = {
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "lt": "Less",
    "le": "LessOrEqual",
    "eq": "Equal",
}


def _comparison(op: str) -> Callable[..., Value]:
    def write(low: Lowering, a: Operand | Scalar, b: Operand | Scalar) -> Value:
        return compare(low, op, a, b)

    return write


for _name, _op in _COMPARE.items():
    handles(f"aten::{_name}")(_comparison(_op))


@handles("aten::ne")
def ne(low: Lowering, a: Operand | Scalar, b: Operand | Scalar) -> Value:
    return low.pointwise("Not", [compare(low, "Equal", a, b)], torch.bool)


_LOGIC = {
    "logical_and": "And",
    "logical_or": "Or",
    "logical_xor": "Xor",
    "bitwise_and": "And",
    "bitwise_or": "Or",
    "bitwise_xor": "Xor",
    "__and__": "And",
    "__or__": "Or",
    "__xor__": "Xor",
}


def _logic(op: str) -> Callable[..., Value]:
    def write(low: Lowering, a: Operand | Scalar, b: Operand | Scalar) -> Value:
        if "logical" not in low.op and common_dtype(a, b) != torch.bool:
            raise low.untranslated("bitwise operations on integers")
        return low.pointwise(op, [a, b], torch.bool)

    return write


for _name, _op in _LOGIC.items():
    handles(f"aten::{_name}")(_logic(_op))


@handles("aten::where")
def where(low: Lowering, condition: Operand, a: Operand | Scalar, b: Operand | Scalar) -> Value:
    dtype = common_dtype(a, b)
    if not any(isinstance(x, Value) for x in (condition, a, b)):
        raise low.untranslated("where() without data")
    cond = low.cast(condition, torch.bool) if isinstance(condition, Value) else condition
    return _choose(low, cond, a, b, dtype)


def _choose(
    low: Lowering, cond: Operand, a: Operand | Scalar, b: Operand | Scalar, dtype: torch.dtype
) -> Value:
    def sized(x: Operand | Scalar) -> Operand:
        if isinstance(x, Value):
            return low.cast(x, dtype)
        return x.to(dtype) if isinstance(x, Tensor) else torch.tensor(x, dtype=dtype)

    return low.pointwise("Where", [cond, sized(a), sized(b)], result=dtype, mixed=True)


@handles("aten::masked_fill")
def masked_fill(low: Lowering, v: Operand, mask: Operand, value: Operand | Scalar) -> Value:
    dtype = v.dtype
    cond = low.cast(mask, torch.bool) if isinstance(mask, Value) else mask
    return _choose(low, cond, value, v, dtype)


@handles("aten::isnan")
def isnan(low: Lowering, v: Value) -> Value:
    return low.pointwise("IsNaN", [v], result=torch.bool)


# ------------------------------------------------------------------ dtypes


@handles("aten::_to_copy", "aten::to.dtype")
def to_copy(low: Lowering, v: Value, dtype: torch.dtype | None = None, *_: Any) -> Value:
    return v if dtype is None else low.cast(v, dtype)


@handles("aten::type_as")
def type_as(low: Lowering, v: Value, other: Operand) -> Value:
    return low.cast(v, other.dtype)


@handles("aten::one_hot")
def one_hot(low: Lowering, v: Value, classes: int = -1) -> Value:
    if classes < 0:
        raise low.untranslated("one_hot without num_classes")
    wide = low.insert(v, len(v.axes))
    return low.cast(compare(low, "Equal", wide, torch.arange(classes)), torch.int64)
