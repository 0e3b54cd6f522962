"""The layers of `runnel_export.nn`: one ONNX operator each, or one tick written out; see `marks`.

ONNX's own attributes and inputs are used where onnxruntime computes by them what the definition says,
which was tried: `P` are the diagonal peepholes of Gers & Schmidhuber, o's on the new cell state;
``input_forget=1`` computes f = 1 - i and never reads f's weights; ``linear_before_reset=0`` applies the
reset gate before the product, as Cho et al. do, and 1 after it, as torch does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from runnel.probe import MEANING

from ..lowering import Inside, Lowering, Recurrence
from ..values import BATCH, HIDDEN, TIME, Data, Given, Value
from . import written
from .recurrence import GRU, LSTM, Kind, initial_state
from .recurrent import check_layout, one_layer
from .registry import handles
from .sequence import select

# Gates and weights are in torch's order; see `Kind`.
_BEFORE = replace(GRU, attributes=(("linear_before_reset", 0),))
KINDS: dict[str, Kind] = {
    "lstm": LSTM,
    "coupled": replace(LSTM, attributes=(("input_forget", 1),)),
    "gru": GRU,
    "gru before": _BEFORE,
    "gru takes": replace(GRU, takes=True),
    "gru before takes": replace(_BEFORE, takes=True),
}


def _sequence(low: Lowering, x: Data | Tensor) -> Value:
    """What a layer runs over: (batch, time, features)."""
    if isinstance(x, Tensor):
        raise low.untranslated("a recurrent layer over a sequence that does not depend on the input")
    v = low.value(x)
    check_layout(low, v.axes, batch_first=True)
    if v.dtype != torch.float32:
        raise low.untranslated(f"a recurrent layer in {v.dtype}")
    return v


@handles("runnel::layer", lazy=True, rows="all")
def layer(
    low: Lowering,
    kind: str,
    x: Data | Tensor,
    start: Sequence[Data | Tensor],
    weights: Sequence[Tensor],
    peephole: Tensor | None,
    number: int,
) -> tuple[Data | Tensor, ...]:
    if not all(isinstance(w, Tensor) for w in (*weights, *([] if peephole is None else [peephole]))):
        raise low.untranslated("weights that are computed from the data")
    y, ends = one_layer(low, KINDS[kind], _sequence(low, x), start, weights, 1, 0, number, peephole)
    # (torch's layers give each last state with an axis of the layers)
    return (y, *(replace(e, axes=e.axes[1:]) if not isinstance(e, Value) else low.drop(e, 0) for e in ends))


@handles("runnel::tick", lazy=True)
def tick(low: Lowering, x: Data | Tensor) -> Data | Tensor:
    return select(low, _sequence(low, x), 1, -1)


@handles("runnel::before", lazy=True, rows="all")
def before(low: Lowering, start: Data | Tensor, x: Data | Tensor, name: str) -> Data | Tensor:
    v = _sequence(low, x)
    if v.tick is not None:
        raise low.refusal(
            "it is called on one tick at a time, in a loop over time", "call it once, on the whole sequence"
        )
    if v.axes[1] != TIME:  # within a step
        return low.value(start) if isinstance(start, Given) else start
    if low.blocks:
        raise low.untranslated("a recurrence that is written out, one tick a call, together with blocks=")
    low.one_tick()
    state = initial_state(low, start, name)
    if low.any_ticks:
        low.any_ticks = False
        low.note(
            f"{low.where.rpartition(',')[0]}: written out as single operations, since ONNX has no operator "
            "for it; the step model takes exactly one tick a call"
        )
    held = low.states[state]
    return Value(state, (BATCH, int(held.dims[-1])), (HIDDEN, 0, 1), held.dtype, low.size(TIME) - 1)


@handles("runnel::over", lazy=True, rows="all")
def over(
    low: Lowering,
    y: Data | Tensor,
    befores: Sequence[Data | Tensor],
    afters: Sequence[Data | Tensor],
    ticks: int,
    names: Sequence[str],
    number: int,
) -> tuple[Data | Tensor, ...]:
    ends = [a if isinstance(a, Tensor) else low.value(a) for a in afters]
    inner = low.ticks is None or ticks == 1
    if isinstance(y, Tensor) or (not inner and low.value(y).tick != low.size(TIME) - 1):
        raise low.untranslated("a tick's output that does not depend on that tick")
    y = low.value(y)
    starts = [b.name for b in befores if isinstance(b, Value)]
    finals = [e.name for e in ends if isinstance(e, Value)]
    inside = _inside(low, befores, ends, names, number)
    if inner:
        if starts and len(starts) == len(finals) == len(ends):
            _record(low, starts, finals, inside if low.ticks is None else None)
        return (low.insert(y, 1), *ends)
    for i, (start, end) in enumerate(zip(befores, ends, strict=True)):
        assert isinstance(start, Value)  # `before` says so
        if not isinstance(end, Value) or (end.axes, end.dtype, end.tick) != (
            start.axes,
            start.dtype,
            start.tick,
        ):
            raise low.refusal(
                f"state {start.name!r} leaves a tick as something else than it comes into the next one",
                "return from tick() each state's next value, of the shape and dtype that it was given in",
            )
        ends[i] = end = low.arrange(end, (HIDDEN, 0, 1))
        finals[i] = end.name
        if low.states[start.name].given is None:
            low.states[start.name].next = end.name
    _record(low, starts, finals, inside)
    return (_sequence_of(low, y), *ends)


def _record(low: Lowering, starts: Sequence[str], ends: Sequence[str], inside: Inside | None) -> None:
    """So that exchanged states are known as such: see `pairing`."""
    h, *rest = ends
    c, more = (rest[0] if rest else None), tuple(rest[1:])
    low.recurrences.append(Recurrence("written", "", (), h, h, c, tuple(starts), low.where, more, inside))


@handles("runnel::shown", lazy=True)
def shown(low: Lowering, value: Data | Tensor, letter: str) -> Data | Tensor:
    low.shown.setdefault(low.path, {})[letter] = value
    return value


def _inside(
    low: Lowering,
    befores: Sequence[Data | Tensor],
    ends: Sequence[Data | Tensor],
    names: Sequence[str],
    number: int,
) -> Inside:
    """How to show what a tick showed of itself, and its states: the first is h, whatever it is called."""
    letters = [name if name in MEANING else "" for name in names]
    letters[0] = letters[0] or ("h" if "h" not in letters else "")
    held = {letter: end for letter, end in zip(letters, ends, strict=True) if letter}
    values = {**{k: v for k, v in low.shown.pop(low.path, {}).items() if k not in held}, **held}
    return written.inside(low, values, number, tuple(letters))


def _sequence_of(low: Lowering, y: Value) -> Value:
    """The whole of what one tick of it is."""
    y = low.canonical(y)
    order = tuple(1 if o == HIDDEN else o + (o >= 1) for o in y.order)
    return Value(y.name, (y.axes[0], TIME, *y.axes[1:]), order, y.dtype)
