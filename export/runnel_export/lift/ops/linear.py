"""Matrix products: with constants on any axis, of data within one tick; embeddings."""

from __future__ import annotations

import string
from dataclasses import replace

import torch
from torch import Tensor

from ..lowering import Lowering
from ..values import BATCH, HIDDEN, MERGED, TIME, Axis, Operand, Value
from .pointwise import add, mul
from .registry import handles
from .shape import as_axes

ATTENTION = "attention over the whole sequence: every tick would need all the others"
INSTEAD = (
    "a recurrent layer, a causal convolution, or attention over the last ticks: "
    "runnel_export.nn.WindowAttention"
)


def product(low: Lowering, v: Value, axis: int, weight: Tensor) -> Value:
    """Contract one feature axis with `weight` (in, out); the result's axis is last."""
    label = v.axes[axis]
    if label == TIME:
        raise low.refusal("a matrix product over the time axis mixes all ticks", INSTEAD)
    if label == BATCH or label in MERGED:
        raise low.refusal("a matrix product over the batch axis mixes streams", "contract features")
    if axis not in v.order or v.order[-1] != axis:  # a Transpose is due: then to the usual order
        lead = low.leading(v)
        v = low.arrange(v, [*lead, *sorted(o for o in v.order if o not in lead and o != axis), axis])
    name = low.node("MatMul", v.name, low.constant(weight))
    axes = tuple(a for i, a in enumerate(v.axes) if i != axis)
    new = {o: o - (o > axis) for o in v.order if o not in (HIDDEN, axis)}
    order = tuple(o if o == HIDDEN else new[o] for o in v.order[:-1])
    return Value(name, (*axes, weight.shape[1]), (*order, len(axes)), v.dtype, v.tick)


@handles("aten::linear")
def linear(low: Lowering, v: Operand, weight: Operand, bias: Operand | None = None) -> Value:
    if not (isinstance(v, Value) and isinstance(weight, Tensor)):
        return _bilinear(low, v, _transposed(low, weight), bias)
    out = product(low, v, len(v.axes) - 1, weight.T if weight.dim() == 2 else weight.unsqueeze(-1))
    out = out if weight.dim() == 2 else low.drop(out, len(out.axes) - 1)
    return out if bias is None else add(low, out, bias)


def _transposed(low: Lowering, w: Operand) -> Operand:
    return w.T if isinstance(w, Tensor) else low.permute(w, (1, 0))


def _bilinear(low: Lowering, v: Operand, w: Operand, bias: Operand | None) -> Value:
    out = matmul(low, v, w)
    return out if bias is None else add(low, out, bias)


@handles("aten::matmul", "aten::mm", "aten::bmm", "aten::mv")
def matmul(low: Lowering, a: Operand, b: Operand) -> Value:
    if isinstance(a, Value) and isinstance(b, Tensor):
        return _by_constant(low, a, b)
    if isinstance(a, Tensor) and isinstance(b, Value):
        return _constant_by(low, a, b)
    assert isinstance(a, Value)
    assert isinstance(b, Value)
    return _of_data(low, a, b)


def _by_constant(low: Lowering, v: Value, w: Tensor) -> Value:
    while w.dim() > 2 and all(low.size(n) == 1 or torch.equal(w, w[:1].expand_as(w)) for n in w.shape[:1]):
        w = w[0]  # the same matrix for every row of the batch
    if w.dim() > 2:
        return einsum(low, "...ij,...jk->...ik", [v, w])
    if w.dim() == 1:
        out = product(low, v, len(v.axes) - 1, w.unsqueeze(-1))
        return low.drop(out, len(out.axes) - 1)
    return product(low, v, len(v.axes) - 1, w)


def _constant_by(low: Lowering, w: Tensor, v: Value) -> Value:
    """W @ x contracts x's last axis but one."""
    if w.dim() > 2 and all(n == 1 or torch.equal(w, w[:1].expand_as(w)) for n in w.shape[:1]):
        return _constant_by(low, w[0], v)
    if w.dim() > 2 and len(v.axes) >= 2:
        return einsum(low, "...ij,...jk->...ik", [w, v])
    if w.dim() > 2 or len(v.axes) < 2:
        raise low.untranslated("a product with a constant of this shape")
    out = product(low, v, len(v.axes) - 2, (w if w.dim() == 2 else w.unsqueeze(0)).T)
    rank = len(out.axes)
    if w.dim() == 1:
        return low.drop(out, rank - 1)
    return low.permute(out, [*range(rank - 2), rank - 1, rank - 2])


def _of_data(low: Lowering, a: Value, b: Value) -> Value:
    if len(a.axes) < 2 or len(b.axes) < 2:
        raise low.untranslated("a product of data vectors")
    if TIME in (*a.axes[-2:], *b.axes[-2:]):
        raise low.refusal(ATTENTION, INSTEAD)
    if any(not isinstance(x, int) for x in (*a.axes[-2:], *b.axes[-2:])):
        raise low.refusal("a matrix product over the batch axis mixes streams", "contract features")
    a, b = (x for x in low.alike([a, b]) if isinstance(x, Value))
    tick = low.same_tick([a, b])
    rank = max(len(a.axes), len(b.axes))
    a, b = _widened(low, a, rank), _widened(low, b, rank)
    lead = low.leading(a)
    middle = [i for i in range(rank - 2) if i not in lead]
    full = [*lead, *middle, rank - 2, rank - 1]
    if set(low.leading(b)) != set(lead):
        raise low.untranslated("a product of data with different leading axes")
    if any(a.axes[i] != b.axes[i] and 1 not in (a.axes[i], b.axes[i]) for i in middle):
        raise low.untranslated("a product of data with different leading axes")
    name = low.node("MatMul", low.arrange(a, full).name, low.arrange(b, full).name)
    axes = [x if x != 1 else y for x, y in zip(a.axes[:-2], b.axes[:-2], strict=True)]
    return Value(name, (*axes, a.axes[-2], b.axes[-1]), tuple(full), a.dtype, tick)


def _widened(low: Lowering, v: Value, rank: int) -> Value:
    while len(v.axes) < rank:
        v = low.insert(v, 0)
    return v


@handles("aten::addmm", "aten::baddbmm")
def addmm(low: Lowering, bias: Operand, a: Operand, b: Operand, beta: float = 1, alpha: float = 1) -> Value:
    out = matmul(low, a, b)
    out = out if alpha == 1 else mul(low, out, float(alpha))
    return add(low, out, bias if beta == 1 else mul(low, bias, float(beta)))


@handles("aten::einsum")
def einsum(low: Lowering, equation: str, operands: list[Operand], path: object = None) -> Value:
    """One data operand times a matrix where it can be, else ONNX's operator of that name."""
    terms, result = _spelled(low, equation, operands)
    found = _as_product(low, terms, operands, result)
    return found if found is not None else _general(low, terms, operands, result)


def _spelled(low: Lowering, equation: str, operands: list[Operand]) -> tuple[list[str], str]:
    """(a letter for each operand's axes, those of the result), without an ellipsis."""
    sides = equation.replace(" ", "").split("->")
    terms = sides[0].split(",")
    used = {c for c in sides[0] if c.isalpha()}
    result = (
        sides[1]
        if len(sides) == 2
        else "..." * ("." in equation) + "".join(sorted(c for c in used if sides[0].count(c) == 1))
    )
    ranks = [x.dim() if isinstance(x, Tensor) else len(x.axes) for x in operands]
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    free = [c for c in string.ascii_letters if c not in used]
    if max(hidden) > len(free) - 1:
        raise low.untranslated(f"einsum {equation!r}")
    letters = "".join(free[: max(hidden)])
    spelled = [t.replace("...", letters[len(letters) - n :]) for t, n in zip(terms, hidden, strict=True)]
    return spelled, result.replace("...", letters)


def _as_product(low: Lowering, terms: list[str], operands: list[Operand], result: str) -> Value | None:
    """One data operand and one constant, of which one index is summed; None for anything else."""
    if sorted(isinstance(x, Value) for x in operands) != [False, True]:
        return None
    (term, v), (other, w) = sorted(zip(terms, operands, strict=True), key=lambda x: isinstance(x[1], Tensor))
    assert isinstance(v, Value)
    assert isinstance(w, Tensor)
    summed = [c for c in term if c in other and c not in result]
    new = [c for c in other if c not in term]
    if (
        len(summed) != 1
        or len(set(term)) != len(term)
        or sorted(other) != sorted(summed + new)
        or len(set(term + "".join(new))) != len(result) + 1
    ):
        return None
    matrix = w.permute([other.index(c) for c in (*summed, *new)]).reshape(w.shape[other.index(summed[0])], -1)
    out = product(low, v, term.index(summed[0]), matrix)
    letters = [c for c in term if c not in summed]
    if len(new) != 1:
        out = as_axes(low, out, (*out.axes[:-1], *[w.shape[other.index(c)] for c in new]))
    letters += new
    return low.permute(out, [letters.index(c) for c in result])


def _general(low: Lowering, terms: list[str], operands: list[Operand], result: str) -> Value:
    """Every operand's axes by letters; those of batch and time are kept, each by one letter of its own."""
    made = low.alike(operands)
    values = [(t, x) for t, x in zip(terms, made, strict=True) if isinstance(x, Value)]
    tick = low.same_tick([v for _, v in values])
    dtype = values[0][1].dtype
    labels: dict[str, Axis] = {}
    for term, v in values:
        for letter, label in zip(term, v.axes, strict=True):
            if isinstance(label, int):
                continue
            if letter not in result or term.count(letter) > 1:
                raise low.refusal(*_MIXED[label == TIME])
            if label in labels.values() and labels.get(letter) != label:
                raise low.refusal(*_MIXED[label == TIME])
            labels[letter] = label
    over_time = next(c for c in string.ascii_letters if c not in "".join(terms))
    names, written, sizes = [], [], dict(labels)
    for term, x in zip(terms, made, strict=True):
        if isinstance(x, Value):
            v = x
            for axis in [i for i, n in enumerate(v.axes) if n == 1 and i in v.order]:  # it may broadcast
                squeezed = low.node("Squeeze", v.name, low.graph.ints(v.at(axis)))
                v = replace(v, name=squeezed, order=tuple(o for o in v.order if o != axis))
            names.append(low.cast(v, dtype).name)
            written.append("".join(over_time if o == HIDDEN else term[o] for o in v.order))
            sizes |= {c: n for c, n in zip(term, v.axes, strict=True) if isinstance(n, int) and n != 1}
        else:
            assert isinstance(x, Tensor)
            constant = low.invariant(x.to(dtype), [labels.get(c, 0) for c in term])
            kept = [i for i, n in enumerate(constant.shape) if n != 1]
            names.append(low.constant(constant.reshape([constant.shape[i] for i in kept])))
            written.append("".join(term[i] for i in kept))
            sizes |= {term[i]: int(constant.shape[i]) for i in kept}
    if any(len(set(term)) != len(term) for term in written):
        raise low.untranslated("an einsum over a diagonal")
    present = "".join(written)
    lead = [c for c in (over_time, *sorted(labels, key=lambda c: labels[c] != TIME)) if c in present]
    order = [*lead, *(c for c in result if c in present and c not in lead)]
    name = low.node("Einsum", *names, equation=f"{','.join(written)}->{''.join(order)}")
    axes = tuple(sizes.get(c, 1) for c in result)
    return Value(name, axes, tuple(HIDDEN if c == over_time else result.index(c) for c in order), dtype, tick)


_MIXED = (("a product over the batch axis mixes streams", "contract features"), (ATTENTION, INSTEAD))


@handles("aten::embedding")
def embedding(low: Lowering, weight: Operand, ids: Operand, *_: object) -> Value:
    if not isinstance(weight, Tensor) or not isinstance(ids, Value):
        raise low.untranslated("an embedding whose table is computed from the data")
    # Gather counts a negative index from the end, where torch refuses it. Without its sign bit any that
    # is not close to the type's least is beyond the table, which Gather refuses too.
    no_sign = low.constant(torch.iinfo(ids.dtype).max, ids.dtype)
    index = low.node("BitwiseAnd", ids.name, no_sign)
    name = low.node("Gather", low.constant(weight), index, axis=0)
    rank = len(ids.axes)
    return replace(
        ids, name=name, axes=(*ids.axes, weight.shape[1]), order=(*ids.order, rank), dtype=weight.dtype
    )
