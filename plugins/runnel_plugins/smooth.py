"""Smoothing of a series by an exponential average, or by the median of the last samples.

Exponential: y[t] = y[t-1] + weight * (x[t] - y[t-1]), with y[0] = x[0]. The weight for a time constant tau in
seconds, after which y has followed 63 % of a jump, is 1 - exp(-1 / (rate * tau)). (R. G. Brown, Statistical
Forecasting for Inventory Control, 1959.) Latency 0: each output describes the latest sample, in part.

Median: y[t] = the middle one by size of x[t-window+1] ... x[t], where samples before the first count as equal
to it. It removes single outliers and keeps edges. (J. W. Tukey, Exploratory Data Analysis, 1977.) Latency
(window - 1) / 2: an edge is delayed by that.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import runnel
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk, Stage, State

from . import _given
from ._choose import is_float, one

BLOCK = 64  # time steps that one matrix product smooths
LARGEST = float(np.finfo(np.float32).max) * (1 + 1e-9)  # average of samples, with rounding
LEAST_WEIGHT = 1e-12  # a smaller weight changes nothing in float64
MAX_WINDOW = 1023  # samples: the median of more costs more than it is worth
MAX_SORTED = 2**20  # numbers sorted at once: bounds the memory for a long chunk


class _Smooth(runnel.StackedStage):
    """Common part of both kinds: their arrays and their state."""

    name = "smooth"
    _held: str  # name of an array's state

    def __init__(self, inputs: Signal, of: str | None) -> None:
        if of is None:
            self._taken: tuple[TensorSpec, ...] = tuple(filter(is_float, inputs.tensors))
        else:
            self._taken = (one("smooth", inputs, of, is_float, "a float32 array"),)
        if not self._taken:
            raise PipelineError(f"smooth takes float32 arrays, but {inputs} arrives")
        self.inputs = self.outputs = inputs

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        names = {t.name for t in self._taken}
        made = {name: array if name in names else array.copy() for name, array in chunk.items()}
        streams, steps = chunk[self._taken[0].name].shape[:2]
        if not steps:
            made = {name: array.copy() for name, array in chunk.items()}
            return {name: array.copy() for name, array in state.items()}, made
        after = {"started": np.ones(streams, bool)}
        started = state["started"][:, None, None]
        for name in names:
            x = chunk[name]
            key = f"{self._held}.{name}"
            after[key], rows = self._smooth(state[key], x.reshape(streams, steps, -1), started)
            made[name] = rows.reshape(x.shape)
        return after, made

    def _smooth(self, held: Array, x: Array, started: Array) -> tuple[Array, Array]:
        """Return the next state and output for x (streams, T > 0, features).

        `started`: (streams, 1, 1).
        """
        raise NotImplementedError


class Exponential(_Smooth):
    """Smooth by an exponential average; see `smooth`."""

    _held = "level"

    def __init__(self, inputs: Signal, weight: float, of: str | None) -> None:
        super().__init__(inputs, of)
        steps = np.arange(BLOCK + 1)
        powers = (1.0 - weight) ** steps
        self._decay = powers[1:, None]
        # Output t of a block is the sum over s <= t of weight * (1 - weight)^(t - s) * x[s], plus the decayed
        # level before the block: one matrix product for many time steps.
        ages = steps[:-1, None] - steps[None, :-1]
        self._mix = np.where(ages >= 0, weight * powers[np.abs(ages)], 0.0)

    def initial(self) -> Arrays:
        """The state.

        - `level.NAME`: float64 in the shape of one time step, the last output, 0 before the first.
        - `started`: bool (), whether there was a first sample.
        """
        levels = {f"level.{t.name}": np.zeros(t.shape) for t in self._taken}
        return {**levels, "started": np.zeros((), bool)}

    def load(self, state: State, arrays: Arrays) -> State:
        """Refuse a level larger than float32, which no average has: the output would be infinite."""
        after = super().load(state, arrays)
        for t in self._taken:
            _given.require_range(self.name, f"level.{t.name}", arrays[f"level.{t.name}"], -LARGEST, LARGEST)
        return after

    def _smooth(self, held: Array, x: Array, started: Array) -> tuple[Array, Array]:
        made = np.empty(x.shape, np.float32)
        level = held.reshape(len(x), 1, -1)
        level = np.where(started, level, x[:, :1])
        for start in range(0, x.shape[1], BLOCK):
            block = x[:, start : start + BLOCK].astype(np.float64)
            count = block.shape[1]
            rows = self._mix[:count, :count] @ block + self._decay[:count] * level
            made[:, start : start + count] = rows
            level = rows[:, -1:]
        return level.reshape(held.shape).copy(), made


class Median(_Smooth):
    """Smooth by the median of the last samples; see `smooth`."""

    _held = "tail"

    def __init__(self, inputs: Signal, window: int, of: str | None) -> None:
        super().__init__(inputs, of)
        self._window = window
        self.latency = (window - 1) // 2

    def initial(self) -> Arrays:
        """The state.

        - `tail.NAME`: float32 (window - 1, ...), the last samples, zeros before the first.
        - `started`: bool (), whether there was a first sample.
        """
        tails = {f"tail.{t.name}": np.zeros((self._window - 1, *t.shape), np.float32) for t in self._taken}
        return {**tails, "started": np.zeros((), bool)}

    def _smooth(self, held: Array, x: Array, started: Array) -> tuple[Array, Array]:
        streams, steps, features = x.shape
        tail = held.reshape(streams, self._window - 1, features)
        tail = np.where(started, tail, x[:, :1])
        seen = np.concatenate([tail, x], axis=1)
        windows = sliding_window_view(seen, self._window, axis=1)  # (streams, T, features, window)
        made = np.empty(x.shape, np.float32)
        middle = self._window // 2
        block = max(1, MAX_SORTED // (streams * features * self._window))
        for start in range(0, steps, block):
            part = np.partition(windows[:, start : start + block], middle, axis=-1)
            made[:, start : start + block] = part[..., middle]
        return seen[:, steps:].reshape(held.shape).copy(), made


def smooth(
    inputs: Signal,
    weight: float | None = None,
    time_constant: float | None = None,
    median: int | None = None,
    of: str | None = None,
) -> Stage:
    """Smooth each number over time, by an exponential average or the median of the last samples.

    Input: float32 arrays (T, ...), all of which are smoothed, or the one that `of` names; other arrays pass.
    Output: the same arrays, float32. Give one of these:

    - `weight`, above 0 and at most 1: exponential, with this weight for each new sample. Latency 0;
    - `time_constant`, in seconds: exponential; the signal's rate must be known. Latency 0;
    - `median`, an odd number of samples from 1 to 1023: the median of that many, up to the latest. Latency
      (median - 1) / 2.

    Raises PipelineError unless exactly one of them is given, if it is out of range, or if there is nothing to
    smooth; NonFiniteError for a NaN or an infinity in a chunk.
    """
    ways = {"weight": weight, "time_constant": time_constant, "median": median}
    chosen = [name for name, value in ways.items() if value is not None]
    if len(chosen) != 1:
        found = " and ".join(chosen) or "none"
        raise PipelineError(f"smooth needs one of weight, time_constant and median, not {found}")
    if median is not None:
        if not 1 <= median <= MAX_WINDOW or median % 2 == 0:
            raise PipelineError(
                f"smooth: median must be an odd number of samples in 1..{MAX_WINDOW}, not {median}"
            )
        return Median(inputs, median, of)
    if time_constant is not None:
        if inputs.rate is None:
            raise PipelineError("smooth: the rate of what arrives is not known: give weight, or [input] rate")
        if not (math.isfinite(time_constant) and time_constant > 0):
            raise PipelineError(f"smooth: time_constant must be a positive number, not {time_constant:g}")
        weight = -math.expm1(-1 / (inputs.rate * time_constant))
    assert weight is not None
    if not LEAST_WEIGHT <= weight <= 1:
        raise PipelineError(
            f"smooth: weight must be above 0 (at least {LEAST_WEIGHT:g}) and at most 1, not {weight:g}"
        )
    return Exponential(inputs, weight, of)


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"smooth": smooth}
