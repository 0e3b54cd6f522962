"""What is inside a recurrent layer, tick by tick: its gates, candidate and cell state.

ONNX's LSTM and GRU give h of every tick, and c of the last one; no gate. But a gate at tick t is made of x_t
and h_{t-1} alone, and both are there: so the gates of all ticks are plain products beside the node, which is
left as it is. Only an LSTM's cell state is carried from tick to tick once more, by a Scan, from where the
node's own begins. Formulas and the order of the weights are those of torch.nn.LSTM and torch.nn.GRU; of
peepholes, of `runnel_export.nn.PeepholeLSTM`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..lowering import Lowering, Row
from . import carried


def lstm(
    low: Lowering,
    x: str,
    ws: Sequence[Tensor],
    y: str,
    initial: Sequence[str],
    peephole: Tensor | None,
    backward: bool,
) -> dict[str, Row]:
    """i, f, g, o and c, each (time, slot, hidden). `backward`: `initial` may be empty, for zeros.

    (Coupled gates are no other case: the file's i has weights of its own, such that it is 1 - f.)
    """
    h, c = initial or [_zeros(low, y)] * 2
    size = int(ws[1].shape[1])
    last = _last(low, y, h, backward)
    # (W and its bias, R and its bias: torch has them in turn)
    sums = low.node("Add", _affine(low, x, *ws[0::2]), _affine(low, last, *ws[1::2]))
    i, f, g, o = _parts(low, sums, *[size] * 4)
    g = low.node("Tanh", g)
    if peephole is None:
        i, f, o = (low.node("Sigmoid", gate) for gate in (i, f, o))
        kept, taken = f, low.node("Mul", i, g)
        if backward:  # what fills a window up is before its first tick: c stays as it begins
            kept, taken = (_where_ticks(low, v, n) for v, n in ((kept, 1.0), (taken, 0.0)))
        cells, _ = carried.linear(low, [kept, taken], [c], backward)
    else:
        cells = carried.peepholes(low, [i, f, g], c, peephole)
        last = _last(low, cells, c)
        i, f, o = (
            low.node("Sigmoid", low.node("Add", gate, low.node("Mul", low.constant(row), seen)))
            for gate, row, seen in zip((i, f, o), peephole, (last, last, cells), strict=True)
        )
    return {letter: (name, size) for letter, name in zip("ifgoc", (i, f, g, o, cells), strict=True)}


def gru(
    low: Lowering,
    x: str,
    ws: Sequence[Tensor],
    y: str,
    initial: Sequence[str],
    reset_before: bool,
    takes: bool,
    backward: bool,
) -> dict[str, Row]:
    """r, z and n. `reset_before`: r is applied before the product with R. `takes`: the module's z says how
    much is taken, and the weights' z how much is kept."""
    h, size = _last(low, y, initial[0] if initial else _zeros(low, y), backward), int(ws[1].shape[1])
    of_x, candidate = _parts(low, _affine(low, x, *ws[0::2]), 2 * size, size)
    first, second = [w[: 2 * size] for w in ws[1::2]], [w[2 * size :] for w in ws[1::2]]  # R's and its bias's
    gates = low.node("Sigmoid", low.node("Add", of_x, _affine(low, h, *first)))
    r, z = _parts(low, gates, size, size)
    if reset_before:
        seen = _affine(low, low.node("Mul", r, h), *second)
    else:
        seen = low.node("Mul", r, _affine(low, h, *second))
    n = low.node("Tanh", low.node("Add", candidate, seen))
    if takes:
        z = low.node("Sub", low.constant(1.0, torch.float32), z)
    return {letter: (name, size) for letter, name in zip("rzn", (r, z, n), strict=True)}


def _last(low: Lowering, y: str, start: str, backward: bool = False) -> str:
    """At each tick what `y` was at the last one: (time, slot, width); `start` is (1, slot, width)."""
    ints = low.graph.ints
    if not backward:
        return low.node("Concat", start, low.node("Slice", y, ints(0), ints(-1), ints(0)), axis=0)
    later = low.node("Concat", low.node("Slice", y, ints(1), ints(2**62), ints(0)), start, axis=0)
    return low.node("Where", _ticks(low, 1), later, start)


def _zeros(low: Lowering, y: str) -> str:
    """(1, slot, width)"""
    ints = low.graph.ints
    row = low.node("Slice", y, ints(0), ints(1), ints(0))
    return low.node("Mul", row, low.constant(0.0, torch.float32))


def _where_ticks(low: Lowering, value: str, otherwise: float) -> str:
    return low.node("Where", _ticks(low, 0), value, low.constant(otherwise, torch.float32))


def _ticks(low: Lowering, ahead: int) -> str:
    """Of a window, at each tick, whether that so many ahead is one: (time, slot, 1)."""
    assert low.blocks is not None
    numbers = torch.arange(ahead, ahead + low.blocks.window, dtype=torch.int32).unsqueeze(1)
    return low.node(
        "Unsqueeze", low.node("Less", low.constant(numbers), low.blocks.present), low.graph.ints(2)
    )


def _affine(low: Lowering, x: str, w: Tensor, *bias: Tensor) -> str:
    made = low.node("MatMul", x, low.constant(w.T))
    return low.node("Add", made, low.constant(bias[0])) if bias else made


def _parts(low: Lowering, x: str, *sizes: int) -> tuple[str, ...]:
    names = [str(k) for k in range(len(sizes))]
    return low.emit("Split", [x, low.graph.ints(*sizes)], {"axis": -1}, names)
