"""Recurrent layers and cells: one ONNX node a layer, its h and c inputs and outputs of the step model.

Torch's and ONNX's gates come in different orders: LSTM i,f,g,o against i,o,f,c (g is ONNX's c); GRU
r,z,n against z,r,h with ``linear_before_reset=1``, since torch applies r to U h + b, not to h.
(https://onnx.ai/onnx/operators/onnx__LSTM.html, …/onnx__GRU.html; torch.nn.LSTM, torch.nn.GRU.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..lowering import Lowering, Recurrence, State
from ..values import BATCH, HIDDEN, MERGED, TIME, Axis, Carry, Data, Given, Stack, Value
from ..writer import EXPLICIT
from .registry import handles
from .sequence import select
from .span import take_tick


@dataclass(frozen=True)
class Kind:
    """How one of torch's recurrences is written in ONNX."""

    op: str
    gates: tuple[int, ...]  # ONNX's order, as indices into torch's
    attributes: tuple[tuple[str, Any], ...] = ()
    has_c: bool = False


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


def _node(
    low: Lowering, kind: Kind, x: str, ws: Sequence[Tensor], initial: Sequence[str]
) -> tuple[str, str, str | None]:
    """(Y as (time, slot, hidden), final h, final c), the last two of shape (1, slot, hidden)."""
    weights = _weights(low, kind, ws)
    inputs = [x, *weights, *([""] if len(weights) < 3 else []), "", *initial]
    made = low.emit(
        kind.op,
        inputs,
        {"hidden_size": ws[1].shape[1], **dict(kind.attributes)},
        ("Y", "h", "c") if kind.has_c else ("Y", "h"),
    )
    y = low.node("Squeeze", made[0], low.graph.ints(1))
    return y, made[1], (made[2] if kind.has_c else None)


def _projected(low: Lowering, x: str, ws: Sequence[Tensor], h: str, c: str) -> tuple[str, str, str]:
    """One tick of an LSTM with a projection, which ONNX's operator has not: x is (1, slot, features).

    h' = W_hr (o * tanh(c')), c' = f * c + i * g (Sak et al. 2014, https://arxiv.org/abs/1402.1128).
    """
    w, r, *biases, projection = ws
    gates = low.node(
        "Add", low.node("MatMul", x, low.constant(w.T)), low.node("MatMul", h, low.constant(r.T))
    )
    if biases:
        gates = low.node("Add", gates, low.constant(biases[0] + biases[1]))
    size = w.shape[0] // 4
    parts = low.emit("Split", [gates, low.graph.ints(*[size] * 4)], {"axis": -1}, ["i", "f", "g", "o"])
    i, f, o = (low.node("Sigmoid", parts[k]) for k in (0, 1, 3))
    g = low.node("Tanh", parts[2])
    c = low.node("Add", low.node("Mul", f, c), low.node("Mul", i, g))
    h = low.node("MatMul", low.node("Mul", o, low.node("Tanh", c)), low.constant(projection.T))
    return h, h, c


def _write(low: Lowering, kind: Kind, x: str, ws: Sequence[Tensor], initial: Sequence[str]) -> Recurrence:
    """The node or nodes for one layer, and their record."""
    if len(ws) in (3, 5):  # the last weight is a projection
        if low.any_ticks:
            low.any_ticks = False
            low.note(
                f"{low.where}: proj_size is written out as single operations, since ONNX's LSTM has no "
                "projection; the step model takes exactly one tick a call"
            )
        y, h, c = _projected(low, x, ws, *initial)
        made = Recurrence(kind.op, x, tuple(ws), y, h, c)
    else:
        made = Recurrence(kind.op, x, tuple(ws), *_node(low, kind, x, ws, initial))
    low.recurrences.append(made)
    return made


def _state(low: Lowering, name: str, row: Tensor) -> str:
    """A state of the layer's own, of shape (1, "slot", hidden)."""
    name = low.graph.fresh(f"{low.path}.{name}" if low.path else name)
    low.states[name] = State(name, row.dtype, (1, "slot", row.numel()), row.reshape(1, -1).numpy())
    return name


# ------------------------------------------------------------------ initial state


def _initial(low: Lowering, hx: Data | Tensor, name: str) -> str:
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


def _layer_of(low: Lowering, hx: Data | Tensor, layer: int) -> Data | Tensor:
    """Layer `layer` of a (layers, batch, hidden) initial state."""
    if isinstance(hx, Tensor):
        return hx[layer]
    if isinstance(hx, Given) and hx.layer is None and len(hx.axes) == 3:
        return Given(hx.name, hx.axes[1:], layer)
    return select(low, hx, 0, layer)


# ------------------------------------------------------------------ layers


def _check_mode(low: Lowering, dropout: float, train: bool) -> None:
    if train and dropout:
        raise low.refusal("dropout that is on in eval mode", "do not call train() within forward")


def _check_layout(low: Lowering, axes: Sequence[Axis], batch_first: bool) -> tuple[int, int]:
    """(sequence axis, batch axis) of a layer's input."""
    seq, batch = (1, 0) if batch_first else (0, 1)
    if axes[seq] == BATCH or axes[seq] in MERGED or axes[batch] == TIME:
        raise low.refusal(
            f"the layer runs over the batch axis: batch_first={batch_first}, but its input is "
            f"({', '.join(map(str, axes))})",
            "set batch_first=True, or pass (time, batch, features)"
            if not batch_first
            else "set batch_first=False, or pass (batch, time, features)",
        )
    return seq, batch


def _layers(
    low: Lowering,
    kind: Kind,
    v: Value,
    hx: Sequence[Data | Tensor],
    ws: Sequence[Tensor],
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value, tuple[Stack, ...]]:
    """All layers: (output, final states)."""
    if bidirectional:
        raise low.refusal(
            "a bidirectional layer reads the sequence from its end",
            "bidirectional=False (train it so), or run it over whole recordings, not streams",
        )
    if any(not isinstance(w, Tensor) for w in ws):
        raise low.untranslated("weights that are computed from the data")
    seq, batch = _check_layout(low, v.axes, batch_first)
    if v.dtype != torch.float32:
        raise low.untranslated(f"a recurrent layer in {v.dtype}")
    per_layer = len(ws) // layers
    parts: tuple[list[Value | Carry], ...] = tuple([] for _ in hx)
    for layer in range(layers):
        mine = ws[layer * per_layer : (layer + 1) * per_layer]
        starts = [_layer_of(low, h, layer) for h in hx]
        if v.tick is not None:
            v, finals = _at_a_tick(low, kind, v, starts, mine, seq, layer)
        elif v.axes[seq] == TIME:
            v, finals = _over_time(low, kind, low.arrange(v, (seq, batch, 2)), starts, mine, seq, layer)
        else:
            x = low.arrange(low.joined(v), (seq, batch, 2))
            v, finals = _within_a_step(low, kind, x, starts, mine, seq, batch)
        for part, final in zip(parts, finals, strict=True):
            part.append(final)
    return v, tuple(Stack(tuple(p)) for p in parts)


def _over_time(
    low: Lowering,
    kind: Kind,
    x: Value,
    starts: Sequence[Data | Tensor],
    ws: Sequence[Tensor],
    seq: int,
    layer: int,
) -> tuple[Value, list[Value | Carry]]:
    """A layer over the stream: (output, state after the last tick), whose first axis is 1."""
    initial = [_initial(low, h, f"{s}.{layer}") for h, s in zip(starts, ("h", "c"), strict=False)]
    made = _write(low, kind, x.name, ws, initial)
    _carry_on(low, initial, made)
    y = Value(made.y, (*x.axes[:2], _width(ws)), x.order, x.dtype)
    last = low.size(TIME) - 1
    ends: list[Value | Carry] = [low.insert(take_tick(y, seq, last, keep=False), 0)]
    if kind.has_c:
        ends.append(Carry(len(low.recurrences) - 1, last, (1, BATCH, ws[1].shape[0] // 4)))
    return y, ends


def _at_a_tick(
    low: Lowering,
    kind: Kind,
    x: Value,
    starts: Sequence[Data | Tensor],
    ws: Sequence[Tensor],
    seq: int,
    layer: int,
) -> tuple[Value, list[Value | Carry]]:
    """A layer called on one tick at a time in a loop over time: a cell."""
    if x.axes[seq] != 1:
        raise low.untranslated("a recurrent layer over a part of each tick, in a loop over time")
    ends = _cell(low, kind, low.drop(x, seq), starts, ws, f".{layer}")
    h = low.value(ends[0])
    return low.insert(h, seq), [_lifted(low, e) for e in ends]


def _lifted(low: Lowering, end: Data) -> Value | Carry:
    return replace(end, axes=(1, *end.axes)) if isinstance(end, Carry) else low.insert(low.value(end), 0)


def _width(ws: Sequence[Tensor]) -> int:
    """A layer's output size: its recurrent weight's input size (the projection's, where there is one)."""
    return int(ws[1].shape[1])


def _carry_on(low: Lowering, initial: Sequence[str], made: Recurrence) -> None:
    """Each state's next value is the node's final one; an explicit state's comes from the module."""
    for name, final in zip(initial, (made.final, made.final_c), strict=False):
        if low.states[name].given is None:
            low.states[name].next = final


def _within_a_step(
    low: Lowering,
    kind: Kind,
    x: Value,
    starts: Sequence[Data | Tensor],
    ws: Sequence[Tensor],
    seq: int,
    batch: int,
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
    made = _write(low, kind, x.name, ws, [n for n in names if n])
    v = replace(x, name=made.y, axes=(*x.axes[:2], _width(ws)))
    row: Axis = x.axes[batch]
    ends: list[Value | Carry] = [Value(made.final, (1, row, _width(ws)), (0, 1, 2), x.dtype)]
    if made.final_c is not None:
        ends.append(Value(made.final_c, (1, row, ws[1].shape[0] // 4), (0, 1, 2), x.dtype))
    return v, ends


@handles("aten::lstm.input", lazy=True)
def lstm(
    low: Lowering,
    x: Data,
    hx: Sequence[Data | Tensor],
    ws: Sequence[Tensor],
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Data, ...]:
    _check_mode(low, dropout, train)
    y, ends = _layers(low, LSTM, low.value(x), hx, ws, layers, bidirectional, batch_first)
    return (y, *ends)


def _plain(kind: Kind) -> Any:
    def layer(
        low: Lowering,
        x: Data,
        hx: Data | Tensor,
        ws: Sequence[Tensor],
        biases: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Data, ...]:
        _check_mode(low, dropout, train)
        y, ends = _layers(low, kind, low.value(x), [hx], ws, layers, bidirectional, batch_first)
        return (y, *ends)

    return layer


handles("aten::gru.input", lazy=True)(_plain(GRU))
handles("aten::rnn_tanh.input", lazy=True)(_plain(TANH))
handles("aten::rnn_relu.input", lazy=True)(_plain(RELU))


@handles("aten::lstm.data", "aten::gru.data", "aten::rnn_tanh.data", "aten::rnn_relu.data", lazy=True)
def packed(low: Lowering, *_: object) -> Data:
    raise low.refusal(
        "a packed sequence has lengths, a stream has none", "pass the plain tensor when streaming"
    )


# ------------------------------------------------------------------ cells in a loop


def _cell(
    low: Lowering,
    kind: Kind,
    x: Data,
    hx: Sequence[Data | Tensor],
    ws: Sequence[Tensor | None],
    suffix: str = "",
) -> tuple[Data, ...]:
    """One call of a cell: (h,) or (h, c). `suffix` is put to its states' names."""
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
        initial = [_initial(low, h, f"{s}{suffix}") for h, s in zip(hx, ("h", "c"), strict=False)]
        made = _write(low, kind, v.name, weights, initial)
        _carry_on(low, initial, made)
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
    _, ends = _within_a_step(low, kind, x, hx, ws, 0, 1)
    return tuple(low.drop(low.value(e), 0) for e in ends)


@handles("aten::lstm_cell", lazy=True)
def lstm_cell(
    low: Lowering,
    x: Data,
    hx: Sequence[Data | Tensor],
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    rb: Tensor | None = None,
) -> tuple[Data, ...]:
    return _cell(low, LSTM, x, hx, (w, r, b, rb))


def _plain_cell(kind: Kind) -> Any:
    def cell(
        low: Lowering,
        x: Data,
        hx: Data | Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        rb: Tensor | None = None,
    ) -> Data:
        return _cell(low, kind, x, [hx], (w, r, b, rb))[0]

    return cell


handles("aten::gru_cell", lazy=True)(_plain_cell(GRU))
handles("aten::rnn_tanh_cell", lazy=True)(_plain_cell(TANH))
handles("aten::rnn_relu_cell", lazy=True)(_plain_cell(RELU))
