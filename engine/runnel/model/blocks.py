"""Ticks into blocks and back: the stages around a model that looks ahead.

`Gather` holds a block's ticks back until those that it looks ahead to have come; `Spread` makes ticks of the
rows that the model gives for a block. Between them a step is a block. See `spec.Blocks`.
"""

from __future__ import annotations

import numpy as np

from ..errors import SnapshotError
from ..spec import Array, Blocks, Signal, TensorSpec
from ..stage import Arrays, Chunk, Stage, State, require_finite


def outer(inputs: Signal, present: str, rate: float | None) -> Signal:
    """What a stream is fed, where a model takes windows of it and `present`."""
    ticks = (TensorSpec(t.name, t.dtype, t.shape[1:]) for t in inputs.tensors if t.name != present)
    return Signal(tuple(ticks), rate)


def enclosed(model: Stage, blocks: Blocks, rate: float | None, present: str, kept: str) -> list[Stage]:
    """A model that takes blocks between the stages that make them; the names are those in its chunks."""
    return [
        Gather(model.inputs, blocks, present, rate),
        model,
        Spread(model.outputs, blocks, kept, rate),
    ]


class Gather(Stage):
    """Ticks into windows: step k gives ticks ``[k*ticks, k*ticks + window)`` as one row.

    State: the ticks from the next block's first on, fewer than `window`. `flush` gives the blocks that were
    begun, with copies of the last tick for those that never came, and in `present` how many came.
    """

    def __init__(self, windows: Signal, blocks: Blocks, present: str, rate: float | None) -> None:
        """`windows`: what the model takes, (window, ...) a step, and `present`. `rate`: of the ticks."""
        self.name = "gather"
        self.blocks = blocks
        self.inputs = outer(windows, present, rate)
        self.outputs = windows
        self.ratio = (1, blocks.ticks)
        self.latency = blocks.latency
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
        if not fits or len(held) != 1 or max(held) >= (self.blocks.window,):
            raise SnapshotError(
                f"{self.name}: the ticks held have shapes {shapes}, expected equally many, fewer than "
                f"{self.blocks.window}, of {self.inputs}"
            )
        return super().load(state, arrays)

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        held: dict[str, Array] = {}
        for name in self.inputs.names:
            require_finite(name, chunk[name], self.name)
            held[name] = np.concatenate((state[name], chunk[name]))
        window, ticks = self.blocks.window, self.blocks.ticks
        steps = (len(held[self.inputs.names[0]]) - window) // ticks + 1
        if steps <= 0:
            return held, self.outputs.empty()
        return (
            {name: array[steps * ticks :].copy() for name, array in held.items()},
            self._windows(held, steps, np.full(steps, window, np.int32)),
        )

    def flush(self, state: State) -> tuple[State, Chunk]:
        count = len(state[self.inputs.names[0]])
        if not count:
            return state, self.outputs.empty()
        window, ticks = self.blocks.window, self.blocks.ticks
        steps = -(-count // ticks)
        room = (steps - 1) * ticks + window
        # Copies of the last tick: what a model is used to, and what no row that is kept depends on.
        padded = {n: np.concatenate((a, np.repeat(a[-1:], room - count, axis=0))) for n, a in state.items()}
        present = np.minimum(count - ticks * np.arange(steps), window).astype(np.int32)
        return self._initial, self._windows(padded, steps, present)

    def _windows(self, held: Arrays, steps: int, present: Array) -> Chunk:
        made: dict[str, Array] = {self._present: present}
        for name, array in held.items():
            tick = array.strides[0]
            shape = (steps, self.blocks.window, *array.shape[1:])
            made[name] = np.ndarray(
                shape, array.dtype, array, 0, (self.blocks.ticks * tick, *array.strides)
            )  # overlapping windows as a view
        return made


class Spread(Stage):
    """The rows of blocks as ticks, those left out that are not the stream's. No state."""

    def __init__(self, blocked: Signal, blocks: Blocks, kept: str, rate: float | None) -> None:
        """`blocked`: what the model gives, (ticks, ...) a step, and `kept`. `rate`: of the ticks."""
        self.name = "spread"
        self.inputs = blocked
        self.outputs = outer(blocked, kept, rate)
        self.ratio = (blocks.ticks, 1)
        self._kept, self._ticks = kept, blocks.ticks

    def initial(self) -> Arrays:
        return {}

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        kept = chunk[self._kept]
        made: dict[str, Array] = {}
        for name in self.outputs.names:
            rows = chunk[name].reshape(-1, *chunk[name].shape[2:])
            if not (kept == self._ticks).all():
                rows = rows[(np.arange(self._ticks) < kept[:, None]).ravel()]
            made[name] = rows
        return state, made
