"""nn.RNN, nn.LSTM and nn.GRU: over the stream, at one tick of a loop, or within a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..lowering import Lowering
from ..values import BATCH, MERGED, TIME, Axis, Carry, Data, Given, Stack, Value
from .along_time import take_tick
from .blocked import over_time, window_start
from .cells import cell
from .recurrence import GRU, LSTM, RELU, TANH, Kind, carry_on, initial_state, width_of, within_a_step
from .registry import handles
from .sequence import concatenate, select


def _layer_of(low: Lowering, hx: Data | Tensor, layer: int) -> Data | Tensor:
    """Layer `layer` of a (layers, batch, hidden) initial state."""
    if isinstance(hx, Tensor):
        return hx[layer]
    if isinstance(hx, Given) and hx.layer is None and len(hx.axes) == 3:
        return Given(hx.name, hx.axes[1:], layer)
    return select(low, hx, 0, layer)


def _check_mode(low: Lowering, dropout: float, train: bool) -> None:
    if train and dropout:
        raise low.refusal("dropout that is on in eval mode", "do not call train() within forward")


def check_layout(low: Lowering, axes: Sequence[Axis], batch_first: bool) -> tuple[int, int]:
    """(sequence axis, batch axis) of a layer's input."""
    seq, batch = (1, 0) if batch_first else (0, 1)
    if axes[seq] == BATCH or axes[seq] in MERGED or axes[batch] == TIME:
        flags = "time_axis={0} (--time-axis {0})"
        raise low.refusal(
            f"the layer runs over the batch axis: batch_first={batch_first}, but its input is "
            f"({', '.join(map(str, axes))})",
            f"if the example is (batch, time, ...): {flags.format(1)}; else set batch_first=False"
            if batch_first
            else f"if the example is (time, batch, ...): {flags.format(0)}; else set batch_first=True",
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
    if any(not isinstance(w, Tensor) for w in ws):
        raise low.untranslated("weights that are computed from the data")
    seq, batch = check_layout(low, v.axes, batch_first)
    if v.dtype != torch.float32:
        raise low.untranslated(f"a recurrent layer in {v.dtype}")
    directions = (False, True) if bidirectional else (False,)
    each = len(ws) // (layers * len(directions))
    parts: tuple[list[Value | Carry], ...] = tuple([] for _ in hx)
    for layer in range(layers):
        made: list[Value] = []
        for reverse in directions:
            at = layer * len(directions) + reverse
            mine, starts = ws[at * each : (at + 1) * each], [_layer_of(low, h, at) for h in hx]
            y, finals = one_layer(low, kind, v, starts, mine, seq, batch, layer, reverse=reverse)
            made.append(y)
            for part, final in zip(parts, finals, strict=True):
                part.append(final)
        v = concatenate(low, made, 2)
    return v, tuple(Stack(tuple(p)) for p in parts)


def one_layer(
    low: Lowering,
    kind: Kind,
    v: Value,
    starts: Sequence[Data | Tensor],
    ws: Sequence[Tensor],
    seq: int,
    batch: int,
    layer: int,
    peephole: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Value, list[Value | Carry]]:
    """A layer over whatever its input is: (output, final states), whose first axis is 1."""
    if v.tick is not None:
        return _at_a_tick(low, kind, v, starts, ws, seq, layer, peephole, reverse)
    if v.axes[seq] == TIME:
        x = low.arrange(v, (seq, batch, 2))
        return _over_time(low, kind, x, starts, ws, seq, layer, peephole, reverse)
    x = low.arrange(low.joined(v), (seq, batch, 2))
    return within_a_step(low, kind, x, starts, ws, seq, batch, peephole, reverse, layer)


def _over_time(
    low: Lowering,
    kind: Kind,
    x: Value,
    starts: Sequence[Data | Tensor],
    ws: Sequence[Tensor],
    seq: int,
    layer: int,
    peephole: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Value, list[Value | Carry]]:
    """A layer over the stream: (output, state after its last tick), whose first axis is 1."""
    if reverse:
        return _backwards(low, kind, x, starts, ws, seq, layer)
    initial = [initial_state(low, h, f"{s}.{layer}") for h, s in zip(starts, ("h", "c"), strict=False)]
    made = over_time(low, kind, x.name, ws, initial, peephole, number=layer)
    carry_on(low, initial, made)
    y = Value(made.y, (*x.axes[:2], width_of(ws)), x.order, x.dtype)
    last = low.size(TIME) - 1
    ends: list[Value | Carry] = [low.insert(take_tick(y, seq, last, keep=False), 0)]
    if kind.has_c:
        ends.append(Carry(len(low.recurrences) - 1, last, (1, BATCH, ws[1].shape[0] // 4)))
    return y, ends


def _backwards(
    low: Lowering,
    kind: Kind,
    x: Value,
    starts: Sequence[Data | Tensor],
    ws: Sequence[Tensor],
    seq: int,
    layer: int,
) -> tuple[Value, list[Value | Carry]]:
    """A layer from each window's last tick to its first. Its last state is that at the first tick."""
    if not low.blocks:
        raise low.refusal(
            "a bidirectional layer reads the sequence from its end",
            "export(..., blocks=Blocks(ticks=8, lookahead=24)): each block is read from so many ticks behind "
            "it; or train with bidirectional=False",
        )
    made = over_time(low, kind, x.name, ws, window_start(low, starts), reverse=True, number=layer)
    y = Value(made.y, (*x.axes[:2], width_of(ws)), x.order, x.dtype)
    ends: list[Value | Carry] = [low.insert(take_tick(y, seq, 0, keep=False), 0)]
    if kind.has_c:
        ends.append(Carry(len(low.recurrences) - 1, 0, (1, BATCH, ws[1].shape[0] // 4)))
    return y, ends


def _at_a_tick(
    low: Lowering,
    kind: Kind,
    x: Value,
    starts: Sequence[Data | Tensor],
    ws: Sequence[Tensor],
    seq: int,
    layer: int,
    peephole: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Value, list[Value | Carry]]:
    """A layer called on one tick at a time in a loop over time: a cell."""
    if x.axes[seq] != 1 or reverse:
        raise low.untranslated("a recurrent layer over a part of each tick, in a loop over time")
    ends = cell(low, kind, low.drop(x, seq), starts, ws, layer, peephole)
    h = low.value(ends[0])
    return low.insert(h, seq), [_lifted(low, e) for e in ends]


def _lifted(low: Lowering, end: Data) -> Value | Carry:
    return replace(end, axes=(1, *end.axes)) if isinstance(end, Carry) else low.insert(low.value(end), 0)


@handles("aten::lstm.input", lazy=True, rows="all")
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


handles("aten::gru.input", lazy=True, rows="all")(_plain(GRU))
handles("aten::rnn_tanh.input", lazy=True, rows="all")(_plain(TANH))
handles("aten::rnn_relu.input", lazy=True, rows="all")(_plain(RELU))


@handles("aten::lstm.data", "aten::gru.data", "aten::rnn_tanh.data", "aten::rnn_relu.data", lazy=True)
def packed(low: Lowering, *_: object) -> Data:
    raise low.refusal(
        "a packed sequence has lengths, a stream has none", "pass the plain tensor when streaming"
    )
