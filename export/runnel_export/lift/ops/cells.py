"""Cells, and layers used as cells, called in a Python loop over time: one node for all ticks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..lowering import Lowering
from ..values import BATCH, HIDDEN, Carry, Data, Given, Value
from ..writer import EXPLICIT
from .blocked import over_time
from .recurrence import GRU, LSTM, RELU, TANH, Kind, carry_on, initial_state, within_a_step
from .registry import handles


def cell(
    low: Lowering,
    kind: Kind,
    x: Data,
    hx: Sequence[Data | Tensor],
    ws: Sequence[Tensor | None],
    layer: int | None = None,
    peephole: Tensor | None = None,
) -> tuple[Data, ...]:
    """One call of a cell: (h,) or (h, c). `layer`: which one it is of a layer that is used as a cell."""
    weights = [w for w in ws if w is not None]
    v = low.value(x)
    if any(not isinstance(w, Tensor) for w in weights):
        raise low.untranslated("weights that are computed from the data")
    if len(v.axes) != 2 or v.axes[0] != BATCH or v.dtype != torch.float32:
        raise low.untranslated(f"a cell on ({', '.join(map(str, v.axes))}) of {v.dtype}")
    if v.tick is None:
        return _cell_in_a_step(low, kind, v, hx, weights)
    v = low.arrange(v, (HIDDEN, 0, 1))
    index = _continued(low, v, hx, weights)
    if index is None:
        if v.tick != 0:
            raise low.refusal(
                f"the loop begins at tick {v.tick} (it runs backwards, or starts the state anew)",
                "begin at tick 0 and run forward",
            )
        suffix = "" if layer is None else f".{layer}"
        initial = [initial_state(low, h, f"{s}{suffix}") for h, s in zip(hx, ("h", "c"), strict=False)]
        made = over_time(low, kind, v.name, weights, initial, peephole, number=layer or 0)
        carry_on(low, initial, made)
        index = len(low.recurrences) - 1
    made = low.recurrences[index]
    width = weights[1].shape[1]
    h = Value(made.y, (BATCH, width), (HIDDEN, 0, 1), v.dtype, v.tick)
    assert v.tick is not None
    return (h, Carry(index, v.tick, (BATCH, width))) if kind.has_c else (h,)


def _continued(low: Lowering, x: Value, hx: Sequence[Data | Tensor], ws: Sequence[Tensor]) -> int | None:
    """Which recurrence this call goes on with; None where it is a first call. Refuses anything else."""
    if all(isinstance(h, Tensor | Given) for h in hx):
        return None
    h = hx[0]
    if isinstance(h, Value) and x.tick:
        for i, r in enumerate(low.recurrences):
            same = (
                r.y == h.name and r.x == x.name and h.tick == x.tick - 1 and h.axes == (BATCH, ws[1].shape[1])
            )
            if same and len(hx) == 2:
                same = isinstance(hx[1], Carry) and (hx[1].recurrence, hx[1].tick) == (i, h.tick)
            if same and _equal(r.weights, ws):
                return i
    raise low.refusal(
        f"at tick {x.tick} the cell does not go on from its own state after tick {(x.tick or 0) - 1}, with "
        "the same weights and the same input sequence: the state was changed in between, or the input "
        "depends on an earlier output",
        EXPLICIT,
    )


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(
        a is b or torch.equal(a, b) for a, b in zip(some, others, strict=True)
    )


def _cell_in_a_step(
    low: Lowering, kind: Kind, v: Value, hx: Sequence[Data | Tensor], ws: Sequence[Tensor]
) -> tuple[Value, ...]:
    """A cell of a module that is one step: a sequence of one."""
    if low.ticks is not None:
        raise low.untranslated("a cell applied to a value that is not one tick of the stream")
    x = low.arrange(low.insert(v, 0), (0, 1, 2))
    _, ends = within_a_step(low, kind, x, hx, ws, 0, 1)
    return tuple(low.drop(low.value(e), 0) for e in ends)


@handles("aten::lstm_cell", lazy=True, rows="all")
def lstm_cell(
    low: Lowering,
    x: Data,
    hx: Sequence[Data | Tensor],
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    rb: Tensor | None = None,
) -> tuple[Data, ...]:
    return cell(low, LSTM, x, hx, (w, r, b, rb))


def _plain_cell(kind: Kind) -> Any:
    def write(
        low: Lowering,
        x: Data,
        hx: Data | Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        rb: Tensor | None = None,
    ) -> Data:
        return cell(low, kind, x, [hx], (w, r, b, rb))[0]

    return write


handles("aten::gru_cell", lazy=True, rows="all")(_plain_cell(GRU))
handles("aten::rnn_tanh_cell", lazy=True, rows="all")(_plain_cell(TANH))
handles("aten::rnn_relu_cell", lazy=True, rows="all")(_plain_cell(RELU))
