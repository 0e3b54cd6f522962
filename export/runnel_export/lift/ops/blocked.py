"""Recurrences over one window, a block and its lookahead: the time axis of a model that takes blocks.

Forwards a layer goes through the block, whose end is its next state, and on through the lookahead, for the
sake of layers above. Backwards it begins at the window's end, anew for each window; where the stream ends
within the window, at the stream's end: ONNX's own `sequence_lens`. (Zhang et al. 2016, section 3.3,
https://arxiv.org/abs/1510.08983.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from ..lowering import Lowering, Recurrence
from ..values import BATCH, Data
from . import late
from .recurrence import Kind, inside, write_layer, write_node

# From sequences, (time, slot, ...), and the states that they begin with, to the output and the last states.
Run = Callable[[Sequence[str], Sequence[str]], tuple[str, list[str]]]


def over_time(
    low: Lowering,
    kind: Kind,
    x: str,
    ws: Sequence[Tensor],
    initial: Sequence[str],
    peephole: Tensor | None = None,
    reverse: bool = False,
    number: int = 0,
) -> Recurrence:
    """A layer over the stream's time, or over a window of it; `x` is (time, slot, features).

    `number`: which layer of its module it is.
    """
    if (unreal := late.unreal(low)) is not None:
        if len(ws) in (3, 5):
            low.one_tick()
        y, finals = late.write(low, kind, x, ws, initial, peephole, unreal)
        c = finals[1] if kind.has_c else None
        made = Recurrence(kind.op, x, tuple(ws), y, finals[0], c, tuple(initial), low.where)
        low.recurrences.append(made)
        return made
    if low.blocks is None:
        return write_layer(low, kind, x, ws, initial, peephole, reverse, number)
    if len(ws) in (3, 5):
        raise low.untranslated("proj_size together with blocks=")
    ends: Sequence[str | None]
    if reverse:  # no state: what follows a window is not known before it came
        y, *ends = write_node(low, kind, x, ws, initial, peephole, reverse=True, lengths=low.blocks.present)
    else:

        def run(xs: Sequence[str], starts: Sequence[str]) -> tuple[str, list[str]]:
            y, *ends = write_node(low, kind, xs[0], ws, starts, peephole)
            return y, [end for end in ends if end is not None]

        y, ends = in_blocks(low, run, [x], initial)
    h, c = ends[0], ends[1] if kind.has_c else None
    assert h is not None
    made = Recurrence(kind.op, x, tuple(ws), y, h, c, tuple(initial), low.where)
    made = replace(made, inside=inside(low, kind, made, number, peephole, backward=reverse))
    low.recurrences.append(made)
    return made


def in_blocks(low: Lowering, run: Run, xs: Sequence[str], starts: Sequence[str]) -> tuple[str, list[str]]:
    """What `run` gives for the sequences `xs`: (its output, its last states).

    Where they are windows: the output over the window, and the states after the block.
    """
    if low.blocks is None or not low.blocks.lookahead:
        return run(xs, starts)
    zero, block, end = (low.graph.ints(n) for n in (0, low.blocks.ticks, low.blocks.window))
    first, ends = run([low.node("Slice", x, zero, block, zero) for x in xs], starts)
    rest, _ = run([low.node("Slice", x, block, end, zero) for x in xs], ends)
    return low.node("Concat", first, rest, axis=0), ends


def window_start(low: Lowering, starts: Sequence[Data | Tensor]) -> list[str]:
    """What a backward pass begins with, at the end of each window: nothing for zeros, else a row a slot."""
    rows = []
    for h in starts:
        if not isinstance(h, Tensor):
            raise low.refusal(
                "the backward pass begins with a state that is computed or given",
                "begin with zeros or with learned parameters",
            )
        rows.append(low.invariant(h, (BATCH, h.shape[-1])).reshape(1, 1, -1))
    if not any(bool(row.any()) for row in rows):
        return []
    slots = low.node("Shape", low.tick_shape_source, start=1, end=2)
    one = low.graph.ints(1)
    shapes = [low.node("Concat", one, slots, low.graph.ints(row.shape[-1]), axis=0) for row in rows]
    return [low.node("Expand", low.constant(row), shape) for row, shape in zip(rows, shapes, strict=True)]
