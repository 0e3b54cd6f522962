"""Decimation: keep one time step of every n, y[j] = x[j*n + phase], or the mean of x[j*n] … x[j*n + n - 1].

Only that mean is a filter: frequencies above half the new rate fold into lower ones (the sampling theorem; C.
Shannon, Proc. IRE 37, 1949). For audio and other waves use `resample`, which has the filter. Units: those of
x. Latency 0; with the mean n - 1, because the mean waits for the last of its n time steps.
"""

from __future__ import annotations

import numpy as np

import runnel
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal
from runnel.stage import Arrays, Chunk, Stage, State, require_finite

from . import _given

MAX_EVERY = 2**20  # time steps: twelve days of seconds


class Decimate(Stage):
    """Keep one time step of every `every`, or their mean.

    All arrays, of any dtype: the time steps t with t modulo `every` equal to `phase`. With `mean`, float
    arrays only: the mean of `every` time steps, computed in float64; the flush returns the mean of the rest.
    There is no other filter: use `resample` for waves.

    Raises PipelineError if `every` or `phase` is out of range, and for a mean of arrays that are not float32
    or float16; with `mean`, NonFiniteError for a NaN or an infinity in a chunk.
    """

    name = "decimate"

    def __init__(self, inputs: Signal, every: int, phase: int = 0, mean: bool = False) -> None:
        if not 1 <= every <= MAX_EVERY:
            raise PipelineError(f"decimate: every must be in 1..{MAX_EVERY} rows, not {every}")
        if not 0 <= phase < every or (mean and phase):
            raise PipelineError(
                f"decimate: phase must be {'0 with a mean' if mean else f'in 0..{every - 1}'}, not {phase}"
            )
        for t in inputs.tensors:
            if mean and t.dtype not in ("float32", "float16"):  # a sum of float64 can be infinite
                raise PipelineError(
                    f"decimate: a mean is of float32 or float16, but {t} arrives: cast it first"
                )
        self.every, self.phase, self.mean = every, phase, mean
        self.inputs = inputs
        self.outputs = Signal(inputs.tensors, None if inputs.rate is None else inputs.rate / every)
        self.ratio = (1, every)
        self.latency = every - 1 if mean else 0

    def initial(self) -> Arrays:
        """The state.

        - `position`: int64 (), time steps of the current group of `every`, 0 to every - 1.
        - `sum.NAME` with a mean: float64 in the shape of one time step, their sum.
        """
        sums = {f"sum.{t.name}": np.zeros(t.shape) for t in self.inputs.tensors} if self.mean else {}
        return {"position": np.zeros((), np.int64), **sums}

    def load(self, state: State, arrays: Arrays) -> State:
        """Check that a sum is no larger than `position` time steps can make it."""
        _given.require_state(self.name, arrays, self.initial())
        _given.require_range(self.name, "position", arrays["position"], 0, self.every - 1)
        for t in self.inputs.tensors if self.mean else ():
            most = float(np.finfo(t.dtype).max) * int(arrays["position"])
            _given.require_range(self.name, f"sum.{t.name}", arrays[f"sum.{t.name}"], -most, most)
        return super().load(state, arrays)

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        position = int(state["position"])
        steps = len(next(iter(chunk.values())))
        after: dict[str, Array] = {"position": np.array((position + steps) % self.every, np.int64)}
        if not self.mean:
            first = (self.phase - position) % self.every
            return after, {name: rows[first :: self.every].copy() for name, rows in chunk.items()}
        made = {}
        for t in self.inputs.tensors:
            require_finite(t.name, chunk[t.name], self.name)
            key = f"sum.{t.name}"
            made[t.name], after[key] = self._means(state[key], position, chunk[t.name])
        return after, made

    def _means(self, total: Array, position: int, rows: Array) -> tuple[Array, Array]:
        """Return the means that `rows` complete, and the sum of the rest."""
        if position + len(rows) < self.every:
            return rows[:0].copy(), np.asarray(total + rows.sum(axis=0, dtype=np.float64))
        first = self.every - position
        count = (len(rows) - first) // self.every
        end = first + count * self.every
        means = np.empty((1 + count, *rows.shape[1:]), rows.dtype)
        means[0] = (total + rows[:first].sum(axis=0, dtype=np.float64)) / self.every
        groups = rows[first:end].reshape(count, self.every, *rows.shape[1:])
        means[1:] = groups.sum(axis=1, dtype=np.float64) / self.every
        return means, np.asarray(rows[end:].sum(axis=0, dtype=np.float64))

    def flush(self, state: State) -> tuple[State, Chunk]:
        """With a mean, return the mean of the rest, if there is any."""
        position = int(state["position"])
        if not (self.mean and position):
            return state, self.outputs.empty()
        made = {
            t.name: (state[f"sum.{t.name}"] / position).astype(t.dtype)[None] for t in self.inputs.tensors
        }
        return self.initial(), made


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"decimate": Decimate}
