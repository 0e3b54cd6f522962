"""The second model of a translation: the first one's nodes, and beside them what shows its layers' inside.

It is written after the first is finished, so that the first is what it would be alone; and it has all of the
first one's nodes as they are, so that what those give is the same. What is shown are values of float32 over
the stream's time; what they are made of is in `ops`: see `lowering.Inside`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch

from runnel.probe import MEANING, ProbeLayer
from runnel.spec import SLOT, TIME, Dim, ModelTensor

from .graph import Port
from .lowering import Lowering, Recurrence, State


@dataclass(frozen=True)
class Probed:
    """A model that shows its inside, and which of its outputs do."""

    model: onnx.ModelProto
    outputs: tuple[ModelTensor, ...]  # besides those of the model that it goes with
    layers: tuple[ProbeLayer, ...]


def show(
    low: Lowering,
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[tuple[str, Port]],
    states: Sequence[State],
    time: bool,
) -> Probed | None:
    """The model of these inputs and outputs, with those that show its layers; None where there is no layer.

    `states`: those that the model has. `time`: whether outputs have an axis of time. Where the model takes
    blocks, they have the block's ticks.
    """
    used = low.graph.reached([value for value, _ in outputs])
    kept = {state.name for state in states}
    gone = low.states.keys() - kept
    lead: tuple[Dim, ...] = (low.blocks.ticks if low.blocks else TIME, SLOT) if time else (SLOT,)
    shown: list[tuple[str, Port]] = []
    layers = []
    for made in low.recurrences:
        inside = made.inside
        if inside is None or used.isdisjoint((made.y, *made.finals)):
            continue
        low.path, found = low.graph.fresh(inside.name), {}
        written = inside.write()
        for letter, (value, width) in ((x, written[x]) for x in MEANING if x in written):
            if gone and not gone.isdisjoint(low.graph.reached([value])):
                continue  # made of a state that no output depends on, and that the model has not
            found[letter] = low.graph.fresh(f"{low.path}.{letter}")
            shown.append((_given(low, value, time), Port(found[letter], torch.float32, (*lead, width))))
        if not found:
            continue
        carried = {x: state for x, state in _carried(low, made, kept).items() if x in found}
        layers.append(ProbeLayer(low.path, inside.kind, found, carried, inside.backward, inside.takes))
    if not layers:
        return None
    model = low.graph.finish(name, inputs, [*outputs, *shown])
    return Probed(model, tuple(ModelTensor(p.name, "float32", p.dims) for _, p in shown), tuple(layers))


def _given(low: Lowering, value: str, time: bool) -> str:
    """What an output is of a value over time: all of it, its one tick, or the block of its window."""
    if not time:
        return low.node("Squeeze", value, low.graph.ints(0))
    if low.blocks:
        return low.node(
            "Slice", value, low.graph.ints(0), low.graph.ints(low.blocks.ticks), low.graph.ints(0)
        )
    return value


def _carried(low: Lowering, made: Recurrence, kept: set[str]) -> dict[str, str]:
    """By letter, the model's states that the layer begins with and that are next what it ends with."""
    assert made.inside is not None
    found = {}
    for letter, start, final in zip(made.inside.letters, made.initial, made.finals, strict=False):
        state = low.states.get(low.graph.origin(start))
        if (
            letter
            and state
            and state.name in kept
            and low.graph.origin(str(state.next)) == low.graph.origin(final)
        ):
            found[letter] = state.name
    return found
