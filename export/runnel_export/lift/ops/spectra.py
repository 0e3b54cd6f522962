"""Spectra and complex numbers: a complex tensor is its real and imaginary parts along a last axis of size 2.

A short-time transform is a convolution with the window times cosines and sines, its inverse a transposed
convolution, divided by the windows' squares added up in the same way. (Griffin & Lim 1984, equation 6:
https://doi.org/10.1109/TASSP.1984.1164317; torch.stft and torch.istft say how they normalise and cut.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..lowering import Lowering
from ..values import BATCH, TIME, Complex, Data, Value
from .along_time import widened
from .conv import over_windows, overlap_added
from .linear import einsum, matmul
from .registry import find, handles
from .sequence import concatenate, cut, feature_slice
from .window import unfold

_LEAST = 1e-11  # of the squared windows' sum, for torch too

# ------------------------------------------------------------------ complex numbers


def operation(low: Lowering, name: str, overload: str, arguments: list[Any]) -> Any:
    """An operation on complex tensors."""
    short = name.split("::")[1]
    if short in _OF_COMPLEX:
        return _OF_COMPLEX[short](low, *arguments)
    handler = find(name, overload)
    if short not in _SHAPES or handler is None:
        raise low.untranslated("this operation on complex numbers")
    rank = next(len(x.parts.axes) - 1 for x in _complex(arguments))
    if short in ("pad", "constant_pad_nd") and arguments[-1]:
        raise low.untranslated("padding of complex numbers by another one than 0")
    arguments = _SHAPES[short](arguments, rank)
    arguments = [_inner(x) for x in arguments]
    made = handler.function(low, *arguments)
    return tuple(map(Complex, made)) if isinstance(made, tuple) else Complex(made)


def _complex(x: Any) -> list[Complex]:
    if isinstance(x, list | tuple):
        return [found for y in x for found in _complex(y)]
    return [x] if isinstance(x, Complex) else []


def _inner(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return type(x)(_inner(y) for y in x)
    if isinstance(x, Tensor) and x.is_complex():
        return torch.view_as_real(x)
    return x.parts if isinstance(x, Complex) else x


def _dim(at: int) -> Callable[[list[Any], int], list[Any]]:
    """Arguments of which one is an axis, or several: counted from the front."""

    def changed(arguments: list[Any], rank: int) -> list[Any]:
        dims = arguments[at]
        many = isinstance(dims, list | tuple)
        dims = [d % rank for d in dims] if many else dims % rank
        return [*arguments[:at], dims, *arguments[at + 1 :]]

    return changed


def _dims(arguments: list[Any], rank: int) -> list[Any]:
    x, a, b, *rest = arguments
    return [x, a % rank, b % rank, *rest]


_SHAPES: dict[str, Callable[[list[Any], int], list[Any]]] = {
    **dict.fromkeys(("clone", "contiguous", "alias", "detach", "dropout"), lambda a, _: a),
    **dict.fromkeys(("select", "slice", "unbind", "squeeze", "split", "split_with_sizes", "narrow"), _dim(1)),
    "chunk": _dim(2),
    "cat": _dim(1),
    "unflatten": _dim(1),
    "stack": lambda a, rank: [a[0], a[1] % (rank + 1)],
    "unsqueeze": lambda a, rank: [a[0], a[1] % (rank + 1)],
    "transpose": _dims,
    "flatten": _dims,
    "permute": lambda a, rank: [a[0], [*(d % rank for d in a[1]), rank]],
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), lambda a, _: [a[0], [*a[1], 2]]),
    "sum": _dim(1),
    "mean": _dim(1),
    # (a fill that is not zero is a real number)
    "pad": lambda a, _: [a[0], [0, 0, *a[1]], *a[2:]],
    "constant_pad_nd": lambda a, _: [a[0], [0, 0, *a[1]], *a[2:]],
}
_SHAPES["split"] = _SHAPES["split_with_sizes"] = _dim(2)


def real(low: Lowering, x: Complex) -> Value:
    return _part(low, x, 0)


def imag(low: Lowering, x: Complex) -> Value:
    return _part(low, x, 1)


def _part(low: Lowering, x: Complex, number: int) -> Value:
    v, last = x.parts, len(x.parts.axes) - 1
    name = low.node("Gather", v.name, low.constant(number, torch.int64), axis=v.at(last))
    return low.forget(replace(v, name=name, order=tuple(o for o in v.order if o != last)), last)


def _joined(low: Lowering, a: Value, b: Value) -> Complex:
    last = len(a.axes)
    return Complex(concatenate(low, [low.insert(a, last), low.insert(b, last)], last))


@handles("aten::view_as_complex")
def view_as_complex(low: Lowering, v: Value) -> Complex:
    return Complex(v)


@handles("aten::complex")
def complex_(low: Lowering, a: Value, b: Value) -> Complex:
    if not isinstance(a, Value) or not isinstance(b, Value):
        raise low.untranslated("a complex number of which one part is a constant")
    return _joined(low, a, b)


@handles("aten::polar")
def polar(low: Lowering, size: Value, angle: Value) -> Complex:
    a, b = (low.pointwise("Mul", [size, low.pointwise(op, [angle])]) for op in ("Cos", "Sin"))
    return _joined(low, a, b)


def absolute(low: Lowering, x: Complex) -> Value:
    return low.pointwise("Sqrt", [_squared(low, x)])


def _squared(low: Lowering, x: Complex) -> Value:
    a, b = real(low, x), imag(low, x)
    return low.pointwise("Add", [low.pointwise("Mul", [a, a]), low.pointwise("Mul", [b, b])])


def angle(low: Lowering, x: Complex) -> Value:
    """The angle by the arc tangent of imag / real, with half a turn more to the left of zero."""
    a, b = real(low, x), imag(low, x)
    left = low.pointwise("Less", [a, 0.0], torch.float32, torch.bool)
    below = low.pointwise("Less", [b, 0.0], torch.float32, torch.bool)
    nothing = low.pointwise("Equal", [a, 0.0], torch.float32, torch.bool)
    sign = low.pointwise("Sub", [1.0, low.pointwise("Mul", [low.cast(below, torch.float32), 2.0])])
    safe = low.pointwise("Add", [a, low.cast(nothing, torch.float32)])
    turn = low.pointwise("Mul", [low.pointwise("Mul", [low.cast(left, torch.float32), sign]), math.pi])
    found = low.pointwise("Add", [low.pointwise("Atan", [low.pointwise("Div", [b, safe])]), turn])
    upright = low.pointwise("Mul", [low.pointwise("Sign", [b]), math.pi / 2])
    return low.pointwise("Where", [nothing, upright, found], torch.float32, torch.float32, mixed=True)


def _pair(low: Lowering, x: Any) -> tuple[Any, Any]:
    """Real and imaginary part of an operand: a tensor, a number, a constant."""
    if isinstance(x, Complex):
        return real(low, x), imag(low, x)
    if isinstance(x, Tensor) and x.is_complex():
        return x.real, x.imag
    if isinstance(x, complex):
        return x.real, x.imag
    return x, None


def multiply(low: Lowering, x: Any, y: Any) -> Complex:
    (a, b), (c, d) = _pair(low, x), _pair(low, y)

    def times(p: Any, q: Any) -> Value:
        return low.pointwise("Mul", [p, q])

    if b is None:
        return _joined(low, times(c, a), times(d, a))
    if d is None:
        return _joined(low, times(a, c), times(b, c))
    return _joined(
        low,
        low.pointwise("Sub", [times(a, c), times(b, d)]),
        low.pointwise("Add", [times(a, d), times(b, c)]),
    )


def divide(low: Lowering, x: Any, y: Any) -> Complex:
    if not isinstance(y, Complex):
        (a, b), (c, d) = _pair(low, x), _pair(low, y)
        if d is not None:
            raise low.untranslated("a division by complex constants")
        return _joined(low, low.pointwise("Div", [a, c]), low.pointwise("Div", [b, c]))
    made, size = multiply(low, x, conjugate(low, y)), _squared(low, y)
    a, b = (low.pointwise("Div", [part(low, made), size]) for part in (real, imag))
    return _joined(low, a, b)


def conjugate(low: Lowering, x: Complex) -> Complex:
    return Complex(low.pointwise("Mul", [x.parts, torch.tensor([1.0, -1.0])]))


def _sum(op: str) -> Callable[..., Complex]:
    def write(low: Lowering, x: Any, y: Any, alpha: float = 1) -> Complex:
        if alpha != 1:
            raise low.untranslated("alpha=")
        (a, b), (c, d) = _pair(low, x), _pair(low, y)
        first = low.pointwise(op, [a, c])
        if b is None:
            return _joined(low, first, low.pointwise("Neg", [d]) if op == "Sub" else d)
        return _joined(low, first, b if d is None else low.pointwise(op, [b, d]))

    return write


def _unfold(low: Lowering, x: Complex, dim: int, size: int, step: int) -> Complex:
    rank = len(x.parts.axes) - 1
    made = unfold(low, x.parts, dim % rank, size, step)
    return Complex(low.permute(made, [*range(rank), rank + 1, rank]))


def _einsum(low: Lowering, equation: str, operands: list[Any], path: object = None) -> Complex:
    """One or two operands, of which at least one is complex."""
    if len(operands) > 2:
        raise low.untranslated("an einsum of more than two complex tensors")
    pairs = [_pair(low, x) for x in operands]

    def made(*numbers: int) -> Value | None:
        parts = [pair[number] for pair, number in zip(pairs, numbers, strict=True)]
        return None if any(p is None for p in parts) else einsum(low, equation, parts)

    if len(pairs) == 1:
        return _joined(low, *(v for v in (made(0), made(1)) if v is not None))
    (a, b), (c, d) = (made(0, 0), made(1, 1)), (made(0, 1), made(1, 0))
    assert a is not None
    real_part = a if b is None else low.pointwise("Sub", [a, b])
    imaginary = [v for v in (c, d) if v is not None]
    return _joined(
        low, real_part, imaginary[0] if len(imaginary) == 1 else low.pointwise("Add", [*imaginary])
    )


def _view_as_real(low: Lowering, x: Complex) -> Value:
    return x.parts


_OF_COMPLEX: dict[str, Callable[..., Any]] = {
    "real": real,
    "imag": imag,
    "abs": absolute,
    "angle": angle,
    "mul": multiply,
    "div": divide,
    "add": _sum("Add"),
    "sub": _sum("Sub"),
    "conj": conjugate,
    "_conj": conjugate,
    "conj_physical": conjugate,
    "resolve_conj": lambda low, x: x,
    "view_as_real": _view_as_real,
    "unfold": _unfold,
    "einsum": _einsum,
}


@handles(
    *(f"aten::{name}" for name in ("real", "imag", "angle", "conj", "conj_physical", "view_as_real")),
    lazy=True,
)
@handles("aten::fft_irfft", "aten::istft", lazy=True)
def of_a_real_tensor(low: Lowering, *_: Any) -> NoReturn:
    raise low.untranslated("an operation for complex numbers, of a real tensor")


# ------------------------------------------------------------------ transforms of a feature axis


def _basis(size: int, onesided: bool) -> Tensor:
    """(2, bins, size): what a signal is multiplied with for the real and the imaginary parts."""
    bins = size // 2 + 1 if onesided else size
    turns = torch.outer(torch.arange(bins), torch.arange(size)).double() % size * (2 * math.pi / size)
    return torch.stack([turns.cos(), -turns.sin()])


def _inverse(size: int, onesided: bool) -> Tensor:
    """(2, bins, size): what the parts are multiplied with for a real signal."""
    basis = _basis(size, onesided)
    weight = torch.ones(basis.shape[1], dtype=torch.float64)
    if onesided:  # each bin stands for its mirror image too, but for the first and, if even, the last
        weight[1 : (size + 1) // 2] = 2
    return basis * weight[:, None] / size


def _scale(size: int, norm: str | None, inverse: bool) -> float:
    """What torch's `norm` multiplies with, besides a plain transform and an inverse with 1 / size."""
    if norm == "ortho":
        return math.sqrt(size) if inverse else 1 / math.sqrt(size)
    if norm == "forward":
        return float(size) if inverse else 1.0 / size
    return 1.0


def _last(low: Lowering, v: Value, dim: int, rank: int) -> tuple[Value, list[int]]:
    """(with the axis as the last of `rank`, where each axis was before)."""
    dim %= rank
    if not isinstance(v.axes[dim], int):
        raise low.refusal("a Fourier transform along time or batch", "frames first: torch.stft, x.unfold")
    dims = [i for i in range(rank) if i != dim] + [dim]
    v = low.permute(v, [*dims, *range(rank, len(v.axes))])
    return v, [dims.index(i) for i in range(rank)]


@handles("aten::fft_rfft")
def rfft(low: Lowering, v: Value, n: int | None = None, dim: int = -1, norm: str | None = None) -> Complex:
    return _forward(low, v, n, dim, norm, True)


def _forward(low: Lowering, v: Value, n: int | None, dim: int, norm: str | None, onesided: bool) -> Complex:
    rank = len(v.axes)
    v, before = _last(low, v, dim, rank)
    width = low.size(v.axes[-1])
    size = n or width
    if size < width:
        v = feature_slice(low, v, rank - 1, 0, size)
    basis = _basis(size, onesided)[:, :, : min(size, width)] * _scale(size, norm, False)
    bins = basis.shape[1]
    # One product for both parts, that are then parted.
    made = matmul(low, v, basis.permute(2, 1, 0).reshape(-1, 2 * bins).float())
    return Complex(low.permute(_unflat(low, made, bins), [*before, rank]))


def _unflat(low: Lowering, v: Value, bins: int) -> Value:
    v = low.canonical(v, full=True)
    sizes = [low.size(v.axes[o]) for o in v.order[:-1] if o not in low.leading(v)]
    shape = low.graph.ints(*[0] * len(low.leading(v)), *sizes, bins, 2)
    rank = len(v.axes)
    return replace(
        v, name=low.node("Reshape", v.name, shape), axes=(*v.axes[:-1], bins, 2), order=(*v.order, rank)
    )


def irfft(low: Lowering, x: Complex, n: int | None = None, dim: int = -1, norm: str | None = None) -> Value:
    rank = len(x.parts.axes) - 1
    v, before = _last(low, x.parts, dim, rank)
    bins = low.size(v.axes[rank - 1])
    size = n or 2 * (bins - 1)
    wanted = size // 2 + 1
    if wanted > bins:
        raise low.untranslated("an inverse transform that is longer than its spectrum")
    if wanted < bins:
        v = feature_slice(low, v, rank - 1, 0, wanted)
    basis = _inverse(size, True) * _scale(size, norm, True)
    v = low.canonical(v, full=True)
    lead = low.leading(v)
    sizes = [low.size(v.axes[o]) for o in v.order if o not in lead][:-2]
    shape = low.graph.ints(*[0] * len(lead), *sizes, 2 * wanted)
    flat = Value(
        low.node("Reshape", v.name, shape),
        (*v.axes[: rank - 1], 2 * wanted),
        tuple(o for o in v.order if o != rank),
        v.dtype,
        v.tick,
    )
    made = matmul(low, flat, basis.permute(1, 0, 2).reshape(2 * wanted, size).float())
    return low.permute(made, before)


_OF_COMPLEX["fft_irfft"] = irfft


# ------------------------------------------------------------------ short-time transforms


def _whole_window(window: Tensor | None, length: int, size: int) -> Tensor:
    """The window in the middle of the transform's size."""
    window = torch.ones(length) if window is None else window
    left = (size - length) // 2
    return torch.nn.functional.pad(window.double(), (left, size - length - left))


@handles("aten::stft", lazy=True, rows="own")
def stft(
    low: Lowering,
    x: Data,
    size: int,
    hop: int | None = None,
    length: int | None = None,
    window: Tensor | None = None,
    normalized: bool = False,
    onesided: bool | None = None,
    as_complex: bool | None = None,
    *rest: Any,
) -> Complex | Value:
    v = low.value(x)
    if v.axes != (BATCH, TIME) or not (window is None or isinstance(window, Tensor)):
        raise low.untranslated(f"torch.stft of ({', '.join(map(str, v.axes))})")
    hop, length = hop or size // 4, length or size
    basis = _basis(size, onesided is not False) * _whole_window(window, length, size)
    if normalized:
        basis = basis / math.sqrt(size)
    bins = basis.shape[1]
    weight = low.constant(basis.reshape(2 * bins, 1, size).float())
    v = low.insert(v, 1)

    def write(name: str) -> str:
        made = low.node("Conv", name, weight, kernel_shape=(size,), strides=(hop,))
        return low.node("Reshape", made, low.graph.ints(0, 2, bins, -1))

    made = over_windows(low, v, size - 1, hop, write, (BATCH, 2, bins, TIME))
    parts = low.permute(made, (0, 2, 3, 1))
    return Complex(parts) if as_complex else parts


def istft(
    low: Lowering,
    x: Complex,
    size: int,
    hop: int | None = None,
    length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    samples: int | None = None,
    as_complex: bool = False,
) -> Value:
    v = x.parts
    if v.axes[0] != BATCH or v.axes[2] != TIME or as_complex:
        raise low.untranslated(f"torch.istft of ({', '.join(map(str, v.axes))})")
    hop, length = hop or size // 4, length or size
    whole, frames = _whole_window(window, length, size), low.size(TIME)
    basis = _inverse(size, onesided is not False) * whole
    if normalized:
        basis = basis * math.sqrt(size)
    bins = basis.shape[1]
    flat = low.arrange(low.permute(v, (0, 3, 1, 2)), range(4))
    name = low.node("Reshape", flat.name, low.graph.ints(0, 2 * bins, -1))
    flat = replace(flat, name=name, axes=(BATCH, 2 * bins, TIME), order=(0, 1, 2))
    one = low.node("Slice", name, *map(low.graph.ints, (0, 1, 1)))
    one = low.node("Add", low.node("Mul", one, low.constant(0.0)), low.constant(1.0))
    ones = replace(flat, name=one, axes=(BATCH, 1, TIME))

    def added(v: Value, kernel: Tensor) -> Value:
        weight = low.constant(kernel.float())

        def write(name: str) -> str:
            return low.node("ConvTranspose", name, weight, kernel_shape=(size,), strides=(hop,))

        return overlap_added(low, v, size - 1, hop, 0, write, (BATCH, 1, TIME))

    signal = added(flat, basis.reshape(2 * bins, 1, size))
    weights = added(ones, (whole**2).reshape(1, 1, size))
    sums = low.node("Max", weights.name, low.constant(_LEAST))
    made = replace(signal, name=low.node("Div", signal.name, sums))
    start = size // 2 if center else 0
    total = size + hop * (frames - 1)
    end = start + samples if samples is not None else total - start
    low.attend(made.timing)
    made = cut(low, made, start, min(end, total), 1)
    return low.drop(widened(low, made, 0, max(0, end - total)), 1)


_OF_COMPLEX["istft"] = istft
_OWN = {
    "istft",
    "pad",
    "constant_pad_nd",
    "unfold",
    "view",
    "reshape",
    "_unsafe_view",
    "slice",
    "select",
    "cat",
}


def rows(short: str) -> str:
    """How an operation on complex tensors uses the rows of a sequence: see `registry.Handler`."""
    return "own" if short in _OWN else "each"
