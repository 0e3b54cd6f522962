"""Stages around a model that takes steps of ticks: `Collect` before it, `Deliver` after it.

`Collect` holds ticks until a step of them is complete. `Deliver` gives the rows of each step, without those
that lie before or after the sequence. Between the two stages a time step is a step. See `grouping.Steps`.
"""

from __future__ import annotations

import numpy as np

from ..errors import SnapshotError
from ..grouping import Steps
from ..spec import Array, Signal, TensorSpec
from ..stage import Arrays, Chunk, Stage, State, require_finite
from .blocks import outer


def enclosed(
    model: Stage, steps: Steps, rate: float | None, present: str, begun: str, kept: str
) -> list[Stage]:
    """Return the model between `Collect` and `Deliver`. The names are those in the model's chunks."""
    return [
        Collect(model.inputs, steps, present, rate),
        model,
        Deliver(model.outputs, steps, begun, kept, rate),
    ]


class Collect(Stage):
    """Group ticks into steps. State: the ticks of the incomplete step.

    `flush` fills the last step with zeros and adds the steps that bring the model's last rows.
    """

    def __init__(self, inner: Signal, steps: Steps, present: str, rate: float | None) -> None:
        """`inner`: the model's input signal, (ticks, ...) and `present`. `rate`: Hz of the ticks."""
        self.name = "collect"
        self.steps = steps
        self.inputs = outer(inner, present, rate)
        self.outputs = inner
        self.ratio = (1, steps.ticks)
        self.latency = steps.latency
        self._present = present
        self._initial = self.inputs.empty()
        for array in self._initial.values():
            array.setflags(write=False)

    def initial(self) -> Arrays:
        return self._initial

    def load(self, state: State, arrays: Arrays) -> State:
        shapes = {name: array.shape for name, array in arrays.items()}
        held = {shape[:1] for shape in shapes.values()}
        fits = all(shapes[t.name][1:] == t.shape for t in self.inputs.tensors)
        if not fits or len(held) != 1 or max(held) >= (self.steps.ticks,):
            raise SnapshotError(
                f"{self.name}: the ticks held have shapes {shapes}, expected equally many, fewer than "
                f"{self.steps.ticks}, of {self.inputs}"
            )
        return super().load(state, arrays)

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        ticks = self.steps.ticks
        if ticks == 1:  # nothing is ever held
            fresh = {name: chunk[name][:, None] for name in self.inputs.names}
            count = len(chunk[self.inputs.names[0]])
            return state, {self._present: np.ones(count, np.int32), **fresh}
        held: dict[str, Array] = {}
        for name in self.inputs.names:
            require_finite(name, chunk[name], self.name)
            held[name] = np.concatenate((state[name], chunk[name]))
        full = len(held[self.inputs.names[0]]) // ticks
        if not full:
            return held, self.outputs.empty()
        rest = {name: array[full * ticks :].copy() for name, array in held.items()}
        return rest, self._grouped(held, full, np.full(full, ticks, np.int32))

    def flush(self, state: State) -> tuple[State, Chunk]:
        ticks = self.steps.ticks
        count = len(state[self.inputs.names[0]])
        steps = (count > 0) + self.steps.after
        if not steps:
            return state, self.outputs.empty()
        filled = {
            name: np.concatenate((a, np.zeros((steps * ticks - count, *a.shape[1:]), a.dtype)))
            for name, a in state.items()
        }
        present = (count - ticks * np.arange(steps)).astype(np.int32)
        return self._initial, self._grouped(filled, steps, present)

    def _grouped(self, held: Arrays, steps: int, present: Array) -> Chunk:
        ticks = self.steps.ticks
        made: dict[str, Array] = {self._present: present}
        for name, array in held.items():
            made[name] = array[: steps * ticks].reshape(steps, ticks, *array.shape[1:])
        return made


class Deliver(Stage):
    """Give the rows of steps that belong to the stream. No state."""

    def __init__(self, inner: Signal, steps: Steps, begun: str, kept: str, rate: float | None) -> None:
        """`inner`: the model's output signal: (rows, ...), `begun`, `kept`. `rate`: Hz of the ticks."""
        self.name = "deliver"
        self.inputs = inner
        own = (begun, kept)
        tensors = tuple(TensorSpec(t.name, t.dtype, t.shape[1:]) for t in inner.tensors if t.name not in own)
        self.outputs = Signal(tensors, rate * steps.rows / steps.ticks if rate else None)
        self.ratio = (steps.rows, 1)
        self._begun, self._kept, self._rows = begun, kept, steps.rows

    def initial(self) -> Arrays:
        return {}

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        begun, kept = chunk[self._begun], chunk[self._kept]
        whole = not begun.any() and bool((kept == self._rows).all())
        number = np.arange(self._rows)
        chosen = None if whole else ((number >= begun[:, None]) & (number < kept[:, None])).ravel()
        made: dict[str, Array] = {}
        for name in self.outputs.names:
            rows = chunk[name].reshape(-1, *chunk[name].shape[2:])
            made[name] = rows if chosen is None else rows[chosen]
        return state, made
