"""Ticks to blocks and back: the stages around a model with lookahead.

`Gather` buffers the ticks of a block until its lookahead has arrived. `Spread` splits the model's rows for a
block into ticks. Between the two stages, a time step is a block. See `grouping.Blocks`.
"""

from __future__ import annotations

import numpy as np

from ..errors import SnapshotError
from ..grouping import Blocks
from ..spec import Array, Signal, TensorSpec
from ..stage import Arrays, Chunk, Stage, State, require_finite


def outer(inputs: Signal, present: str, rate: float | None) -> Signal:
    """Return the stream's signal, for a model that takes windows of it and `present`."""
    ticks = (TensorSpec(t.name, t.dtype, t.shape[1:]) for t in inputs.tensors if t.name != present)
    return Signal(tuple(ticks), rate)


def enclosed(model: Stage, blocks: Blocks, rate: float | None, present: str, kept: str) -> list[Stage]:
    """Return a block model between `Gather` and `Spread`; the names are those in its chunks."""
    return [
        Gather(model.inputs, blocks, present, rate),
        model,
        Spread(model.outputs, blocks, kept, rate),
    ]


class Gather(Stage):
    """Collect ticks into windows: step k is ticks ``[k*ticks, k*ticks + window)``.

    State: the ticks from the start of the next block, fewer than `window`. `flush` returns the incomplete
    blocks, padded with copies of the last tick; `present` holds the number of real ticks.
    """

    def __init__(self, windows: Signal, blocks: Blocks, present: str, rate: float | None) -> None:
        """`windows`: the model's input, (window, ...) per step, and `present`. `rate`: of the ticks."""
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
        # Copies of the last tick are typical input for the model; no output that is kept depends on them.
        padded = {n: np.concatenate((a, np.repeat(a[-1:], room - count, axis=0))) for n, a in state.items()}
        present = np.minimum(count - ticks * np.arange(steps), window).astype(np.int32)
        return self._initial, self._windows(padded, steps, present)

    def _windows(self, held: Arrays, steps: int, present: Array) -> Chunk:
        made: dict[str, Array] = {self._present: present}
        for name, array in held.items():
            tick = array.strides[0]
            shape = (steps, self.blocks.window, *array.shape[1:])
            strides = (self.blocks.ticks * tick, *array.strides)
            made[name] = np.ndarray(shape, array.dtype, array, 0, strides)  # overlapping windows as a view
        return made


class Spread(Stage):
    """Split blocks of output into ticks, without the padding. No state."""

    def __init__(self, blocked: Signal, blocks: Blocks, kept: str, rate: float | None) -> None:
        """`blocked`: the model's output, (ticks, ...) per step, and `kept`. `rate`: of the ticks."""
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
