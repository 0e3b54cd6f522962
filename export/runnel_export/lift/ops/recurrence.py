"""Recurrences as ONNX nodes: one a layer, its h and c inputs and outputs of the step model.

Torch's and ONNX's gates come in different orders: LSTM i,f,g,o against i,o,f,c (g is ONNX's c); GRU
r,z,n against z,r,h with ``linear_before_reset=1``, since torch applies r to U h + b, not to h.
(https://onnx.ai/onnx/operators/onnx__LSTM.html, …/onnx__GRU.html; torch.nn.LSTM, torch.nn.GRU.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..lowering import Inside, Lowering, Recurrence, Row, State
from ..values import BATCH, Axis, Carry, Data, Given, Value
from ..writer import EXPLICIT
from . import gates


@dataclass(frozen=True)
class Kind:
    """How one of torch's recurrences is written in ONNX."""

    op: str
    gates: tuple[int, ...]  # ONNX's order, as indices into torch's
    attributes: tuple[tuple[str, Any], ...] = ()
    has_c: bool = False
    takes: bool = False  # a GRU whose module says by z how much is taken, and has its weights negated


LSTM = Kind("LSTM", (0, 3, 1, 2), has_c=True)
GRU = Kind("GRU", (1, 0, 2), (("linear_before_reset", 1),))
TANH = Kind("RNN", (0,))
RELU = Kind("RNN", (0,), (("activations", ("Relu",)),))


# ------------------------------------------------------------------ nodes


def _gates(kind: Kind, w: Tensor) -> Tensor:
    parts = w.chunk(len(kind.gates))
    return torch.cat([parts[g] for g in kind.gates])


def _weights(low: Lowering, kind: Kind, ws: Sequence[Tensor]) -> list[str]:
    """W, R and B of a node; B is left out where there is none."""
    named = [low.constant(_gates(kind, w).unsqueeze(0)) for w in ws[:2]]
    if len(ws) > 2:
        named.append(low.constant(torch.cat([_gates(kind, b) for b in ws[2:4]]).unsqueeze(0)))
    return named


def write_node(
    low: Lowering,
    kind: Kind,
    x: str,
    ws: Sequence[Tensor],
    initial: Sequence[str],
    peephole: Tensor | None = None,
    reverse: bool = False,
    lengths: str = "",
) -> tuple[str, str, str | None]:
    """(Y as (time, slot, hidden), final h, final c), the last two of shape (1, slot, hidden).

    `peephole`: (3, hidden), with the rows i, f, o; ONNX's P has them as i, o, f. `reverse`: from the last
    tick to the first; `lengths`: how many ticks there are, one number a slot.
    """
    weights = _weights(low, kind, ws)
    inputs = [x, *weights, *([""] if len(weights) < 3 else []), lengths, *initial]
    if peephole is not None:
        inputs += [""] * (7 - len(inputs))  # (none given: they begin at zero)
        inputs.append(low.constant(peephole[[0, 2, 1]].reshape(1, -1)))
    backwards = {"direction": "reverse"} if reverse else {}
    made = low.emit(
        kind.op,
        inputs,
        {"hidden_size": ws[1].shape[1], **dict(kind.attributes), **backwards},
        ("Y", "h", "c") if kind.has_c else ("Y", "h"),
    )
    y = low.node("Squeeze", made[0], low.graph.ints(1))
    return y, made[1], (made[2] if kind.has_c else None)


def _projected(
    low: Lowering, x: str, ws: Sequence[Tensor], h: str, c: str
) -> tuple[str, str, dict[str, Row]]:
    """One tick of an LSTM with a projection, which ONNX's operator has not: x is (1, slot, features).

    Gives h', c' and what is inside. h' = W_hr (o * tanh(c')), c' = f * c + i * g (Sak et al. 2014, https://arxiv.org/abs/1402.1128).
    """
    w, r, *biases, projection = ws
    sums = low.node("Add", low.node("MatMul", x, low.constant(w.T)), low.node("MatMul", h, low.constant(r.T)))
    if biases:
        sums = low.node("Add", sums, low.constant(biases[0] + biases[1]))
    size = w.shape[0] // 4
    parts = low.emit("Split", [sums, low.graph.ints(*[size] * 4)], {"axis": -1}, ["i", "f", "g", "o"])
    i, f, o = (low.node("Sigmoid", parts[k]) for k in (0, 1, 3))
    g = low.node("Tanh", parts[2])
    c = low.node("Add", low.node("Mul", f, c), low.node("Mul", i, g))
    h = low.node("MatMul", low.node("Mul", o, low.node("Tanh", c)), low.constant(projection.T))
    return h, c, {letter: (name, size) for letter, name in zip("ifgoc", (i, f, g, o, c), strict=True)}


def write_layer(
    low: Lowering,
    kind: Kind,
    x: str,
    ws: Sequence[Tensor],
    initial: Sequence[str],
    peephole: Tensor | None = None,
    reverse: bool = False,
    number: int | None = None,
) -> Recurrence:
    """The node or nodes for one layer, and their record.

    `number`: which layer of its module it is, where it runs over the stream's time.
    """
    if len(ws) in (3, 5):  # the last weight is a projection
        low.one_tick()
        if low.any_ticks:
            low.any_ticks = False
            low.note(
                f"{low.where}: proj_size is written out as single operations, since ONNX's LSTM has no "
                "projection; the step model takes exactly one tick a call"
            )
        y, c, shown = _projected(low, x, ws, *initial)
        made = Recurrence(kind.op, x, tuple(ws), y, y, c, tuple(initial), low.where)
    else:
        y, h, final_c = write_node(low, kind, x, ws, initial, peephole, reverse)
        made = Recurrence(kind.op, x, tuple(ws), y, h, final_c, tuple(initial), low.where)
        shown = None
    if number is not None:
        made = replace(made, inside=inside(low, kind, made, number, peephole, shown))
    low.recurrences.append(made)
    return made


def inside(
    low: Lowering,
    kind: Kind,
    made: Recurrence,
    number: int,
    peephole: Tensor | None = None,
    written: Mapping[str, Row] | None = None,
    backward: bool = False,
) -> Inside:
    """How to show a layer over the stream; `written`: what of it is in the graph as it is."""
    x, ws, y, initial = made.x, made.weights, made.y, made.initial

    def write() -> dict[str, Row]:
        shown = dict(written or {})
        if written is None and kind.op == "LSTM":
            shown = gates.lstm(low, x, ws, y, initial, peephole, backward)
        if written is None and kind.op == "GRU":
            before = dict(kind.attributes)["linear_before_reset"] == 0
            shown = gates.gru(low, x, ws, y, initial, before, kind.takes, backward)
        return {**shown, "h": (y, width_of(ws))}

    name = low.named(kind.op, number) + ".backward" * backward
    return Inside(name, kind.op, write, backward=backward, takes=kind.takes)


def _state(low: Lowering, name: str, row: Tensor) -> str:
    """A state of the layer's own, of shape (1, "slot", hidden)."""
    name = low.graph.fresh(f"{low.path}.{name}" if low.path else name)
    low.states[name] = State(name, row.dtype, (1, "slot", row.numel()), row.reshape(1, -1).numpy())
    return name


# ------------------------------------------------------------------ initial state


def initial_state(low: Lowering, hx: Data | Tensor, name: str) -> str:
    """The state input that a layer over the stream's time begins with; `hx` is (batch, hidden)."""
    if isinstance(hx, Tensor):
        row = low.invariant(hx, (BATCH, hx.shape[-1])).reshape(-1)
        return _state(low, name, row)
    if isinstance(hx, Given):
        return low.layer_state(hx)
    raise low.refusal(
        "its initial state is computed from the data (an encoder's final state, or another layer's)",
        "start from zeros or from learned parameters, or " + EXPLICIT,
    )


# ------------------------------------------------------------------ within a step, and beyond it


def width_of(ws: Sequence[Tensor]) -> int:
    """A layer's output size: its recurrent weight's input size (the projection's, where there is one)."""
    return int(ws[1].shape[1])


def carry_on(low: Lowering, initial: Sequence[str], made: Recurrence) -> None:
    """Each state's next value is the node's final one; an explicit state's comes from the module."""
    for name, final in zip(initial, (made.final, made.final_c), strict=False):
        if low.states[name].given is None:
            low.states[name].next = final


def within_a_step(
    low: Lowering,
    kind: Kind,
    x: Value,
    starts: Sequence[Data | Tensor],
    ws: Sequence[Tensor],
    seq: int,
    batch: int,
    peephole: Tensor | None = None,
    reverse: bool = False,
    number: int = 0,
) -> tuple[Value, list[Value | Carry]]:
    """A layer over an axis that is not the stream's time: within a frame, or of one step."""
    names = []
    for h in starts:
        if isinstance(h, Tensor):
            if bool(h.any()):
                raise low.untranslated("a learned initial state of a layer within a step")
            names.append("")
        elif isinstance(h, Given) and low.ticks is None:
            names.append(low.layer_state(h))
        else:
            hv = low.insert(low.value(h), 0)
            names.append(low.arrange(hv, (0, 1, 2)).name)
    if "" in names and any(names):
        raise low.untranslated("an initial state of which one part only is given")
    if len(ws) in (3, 5) and (x.axes[seq] != 1 or "" in names):
        raise low.untranslated("proj_size in a layer within a step")
    step = low.ticks is None and x.axes[seq] == 1 and all(names) and not reverse  # its axis is the stream's
    made = write_layer(
        low, kind, x.name, ws, names if all(names) else [], peephole, reverse, number if step else None
    )
    v = replace(x, name=made.y, axes=(*x.axes[:2], width_of(ws)))
    row: Axis = x.axes[batch]
    ends: list[Value | Carry] = [Value(made.final, (1, row, width_of(ws)), (0, 1, 2), x.dtype)]
    if made.final_c is not None:
        ends.append(Value(made.final_c, (1, row, ws[1].shape[0] // 4), (0, 1, 2), x.dtype))
    return v, ends
