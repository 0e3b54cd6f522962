"""Framing: cut samples into windows, before a model that sees one window per step."""

from __future__ import annotations

import numpy as np

from ..errors import SnapshotError
from ..grouping import Framing
from ..spec import Array, Signal, TensorSpec
from ..stage import Arrays, Chunk, Stage, State, require_finite


class Frame(Stage):
    """Cut a signal into overlapping windows, one per time step.

    Step k sees samples ``[k*hop - context, k*hop + hop)`` with ``context = window - hop`` and zeros before
    the first sample. Chunks of (T, ...) become chunks of (steps, window, ...). State: the last `context`
    samples and the samples of an incomplete hop, fewer than `window` in total. `flush` pads an incomplete hop
    with zeros. `latency`, in samples, is that of the model after it.
    """

    def __init__(
        self, source: TensorSpec, target: str, framing: Framing, rate: float | None, latency: int = 0
    ) -> None:
        self.name = "frame"
        self.framing = framing
        self._source, self._target = source.name, target
        framed = TensorSpec(target, source.dtype, (framing.window, *source.shape))
        self.inputs = Signal((source,), rate)
        self.outputs = Signal((framed,), rate / framing.hop if rate else None)
        self.ratio = (1, framing.hop)
        self.latency = latency
        self._initial = np.zeros((framing.context, *source.shape), source.dtype)
        self._initial.setflags(write=False)

    def initial(self) -> Arrays:
        return {"samples": self._initial}

    def load(self, state: State, arrays: Arrays) -> State:
        shape = arrays["samples"].shape
        if shape[1:] != self._initial.shape[1:] or not self.framing.context <= shape[0] < self.framing.window:
            raise SnapshotError(
                f"{self.name}: the samples held have shape {shape}, expected {self.framing.context} to "
                f"{self.framing.window - 1} of shape {self._initial.shape[1:]}"
            )
        if arrays["samples"].dtype.kind == "f" and not np.isfinite(arrays["samples"]).all():
            # The model would refuse every window with that sample, and the stream would never advance.
            raise SnapshotError(f"{self.name}: the samples held are not finite")
        return super().load(state, arrays)

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        fresh = chunk[self._source]
        require_finite(self._source, fresh, self.name)
        held = np.concatenate((state["samples"], fresh))
        window, hop = self.framing.window, self.framing.hop
        steps = (len(held) - window) // hop + 1
        if steps <= 0:
            return {"samples": held}, self.outputs.empty()
        # Overlapping windows as a view: as numpy's sliding_window_view, but 10 µs faster.
        sample = held.strides[0]
        frames: Array = np.ndarray(
            (steps, window, *held.shape[1:]), held.dtype, held, 0, (hop * sample, *held.strides)
        )
        return {"samples": held[steps * hop :].copy()}, {self._target: frames}

    def flush(self, state: State) -> tuple[State, Chunk]:
        held = state["samples"]
        if len(held) == self.framing.context:
            return state, self.outputs.empty()
        missing = np.zeros((self.framing.window - len(held), *held.shape[1:]), held.dtype)
        return self.step(state, {self._source: missing})
