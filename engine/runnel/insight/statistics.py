"""Statistics of a state, and the input before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from zlib import crc32

import numpy as np

from ..spec import Array

SATURATED: Final = 0.99  # of a tanh: its input is beyond ±2.6

_HEAD: Final = 1024

_vdot = getattr(np.vdot, "_implementation", np.vdot)  # as in session.py


@dataclass(frozen=True, slots=True)
class StateHealth:
    """The current statistics of one state of one stream, in the state's own unit."""

    rms: float
    peak: float  # the largest magnitude
    distance: float  # from the initial state, rms
    saturated: float | None  # share of numbers beyond ±0.99; None if one is beyond ±1, which no tanh makes


def of_state(array: Array, initial: Array) -> StateHealth:
    """Compute the statistics of `array` in float64."""
    x = np.asarray(array, np.float64).ravel()
    size, scale = np.abs(x), math.sqrt(x.size)
    peak = float(size.max())
    return StateHealth(
        norm(x) / scale,
        peak,
        norm(x - np.asarray(initial, np.float64).ravel()) / scale,
        None if peak > 1 else float(np.mean(size >= SATURATED)),
    )


class StateColumn(NamedTuple):
    label: str
    column: Array  # (rows, n)
    initial: Array | None  # (n,), flat; None if all zeros
    scale: float  # sqrt(n)
    judged: bool


class ModelStates:
    """A model stage's float states, and the columns of the arena that hold them."""

    def __init__(self, stage: Any, at: int, label: str, ignore: Sequence[str]) -> None:
        self.stage, self.at = stage, at
        stage.label = label  # the name in its errors, so that refused chunks are counted here
        self.states = [
            StateColumn(
                f"{label}.{s.input}",
                stage.arena.columns[s.input].reshape(len(stage.arena.columns[s.input]), -1),
                s.initial.reshape(-1) if s.initial.any() else None,
                math.sqrt(s.initial.size),
                f"{label}.{s.input}" not in ignore,
            )
            for s in stage.spec.states
            if s.initial.dtype.kind == "f"
        ]
        self.largest = 0.0  # the largest projected input
        self._row_index: tuple[Sequence[int], dict[int, int]] = (), {}  # recorded rows, and the index of each
        self._weights = {
            t.name: _weights(math.prod(t.shape), at + i) for i, t in enumerate(stage.inputs.tensors)
        }

    def start_recording(self) -> None:
        """Record the stage's inputs until `stop_recording`."""
        self.stage.records_input, self.stage.last_input = True, None
        self.stage.landed.clear()

    def stop_recording(self) -> None:
        self.stage.records_input, self.stage.last_input = False, None
        self.stage.landed.clear()
        self._row_index = (), {}

    def given(self, row: int, at: int) -> float | None:
        """Return the last input of the stream now at `row`, as one number, or None.

        `at`: its index among the streams stepped together, valid here if all of them came this far.
        """
        if self.stage.last_input is None:
            return None
        rows, chunks = self.stage.last_input
        # A step reads the twin of the row that it writes: for a landed fork, of the fork's row.
        read = self.stage.landed.get(row, row) ^ 1
        if at >= len(rows) or rows[at] != read:
            if self._row_index[0] is not rows:  # indexed once per call: a search takes longer than a check
                self._row_index = rows, {row: i for i, row in enumerate(rows)}
            found = self._row_index[1].get(read)
            if found is None:
                return None
            at = found
        chunk = chunks[at]
        total = 0.0
        for name, weights in self._weights.items():
            if not len(chunk[name]):
                return None
            total += float(_vdot(chunk[name][-1].astype(np.float64).reshape(-1), weights))
        self.largest = max(self.largest, abs(total))
        return total

    def digest(self, row: int, still: int) -> int:
        """Return the CRC-32 of the states selected by the bit mask `still`."""
        found = 0
        for i, state in enumerate(self.states):
            if still >> i & 1:
                found = crc32(state.column[row].tobytes(), found)
        return found

    def names(self, still: int) -> str:
        return ", ".join(repr(s.label) for i, s in enumerate(self.states) if still >> i & 1)


def same(x: Array, y: Array) -> bool:
    """Whether two states are equal bit for bit, comparing their heads first."""
    return x[:_HEAD].tobytes() == y[:_HEAD].tobytes() and (len(x) <= _HEAD or x.tobytes() == y.tobytes())


def norm(x: Array) -> float:
    """Return the Euclidean norm, of x / max |x| if the sum would overflow."""
    if x.dtype.itemsize > 2:
        square = float(_vdot(x, x))
        if square < math.inf:
            return math.sqrt(square)
    largest = float(np.abs(x).max())
    if not largest:
        return 0.0
    scaled = x.astype(np.float64) / largest
    return largest * math.sqrt(float(_vdot(scaled, scaled)))


def _weights(size: int, seed: int) -> Array:
    """Return weights in -1..1: the cosine of a growing square, unlike any input."""
    weights: Array = np.cos((np.arange(size, dtype=np.float64) + 1.5 + seed) ** 2)
    return weights
