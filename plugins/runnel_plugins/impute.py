"""Imputation: fill missing values, which are NaN.

- hold: y[t] is the last number, and `value` before the first.
- linear: a gap of up to max_gap NaNs is filled by a straight line, y[t] = x[a] + (x[b] - x[a]) * (t - a) / (b
  - a), where a < t < b are the nearest time steps with a number. A longer gap, and a gap at the start or the
  end of the stream, is held. Latency max_gap time steps.
- constant: y[t] is `value`.

Each element of an array has its own gaps. For time steps that are absent altogether, use `tick`. Latency 0
except for linear; units are those of the input.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

import runnel
from runnel.batch import RowStage, StackedStage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk, Stage, State, require_finite

from . import _given

MAX_GAP = 1024  # time steps held back in each stream's state


def impute(
    inputs: Signal,
    method: Literal["hold", "linear", "constant"] = "hold",
    value: float = 0.0,
    max_gap: int | None = None,
    mark: bool = False,
    of: str | None = None,
) -> Stage:
    """Fill NaNs by the last number, by a straight line, or by a constant.

    Each float array, or the one named `of`, is filled; other arrays pass. `value` (0) is used before the
    first number by the methods "hold" and "linear", and always by "constant". "linear" needs `max_gap`, in
    time steps: the longest gap that is filled by a line, and the delay of all arrays. With `mark`, each
    filled NAME gets an array ``NAME.missing``, float32 of the same shape: 1 for a NaN, else 0.

    An infinity raises NonFiniteError, and so does a NaN that "linear" would hold back in an array that it
    does not fill. Raises PipelineError for options that do not fit each other or the arrays.
    """
    _given.finite_option("impute", "value", value)
    if method == "linear":
        if max_gap is None or not 1 <= max_gap <= MAX_GAP:
            raise PipelineError(f"impute: method 'linear' needs max_gap in 1..{MAX_GAP} rows, not {max_gap}")
        return Linear(inputs, value, max_gap, mark, of)
    if max_gap is not None:
        raise PipelineError(f"impute: max_gap is for method 'linear', not for {method!r}")
    return (Hold if method == "hold" else Constant)(inputs, value, mark, of)


def _filled(inputs: Signal, of: str | None) -> tuple[TensorSpec, ...]:
    return _given.floats("impute", inputs, of)


def _outputs(inputs: Signal, filled: tuple[TensorSpec, ...], mark: bool) -> Signal:
    marks = tuple(TensorSpec(f"{t.name}.missing", "float32", t.shape) for t in filled) if mark else ()
    for tensor in marks:
        if tensor.name in inputs.names:
            raise PipelineError(f"impute: mark would make {tensor.name!r}, and there is one already")
    return Signal((*inputs.tensors, *marks), inputs.rate)


def _missing(name: str, array: Array, leading: int) -> Array:
    """Return a mask of NaNs; NonFiniteError for an infinity. `leading`: axes before time."""
    missing = np.isnan(array)
    infinite = np.isinf(array)
    if infinite.any():
        where = tuple(int(i) for i in np.argwhere(infinite)[0])
        raise NonFiniteError(
            f"impute: {name!r} has {array[where]} at time step {where[leading]}; only NaN stands for a "
            "missing tick, and the chunk was not applied"
        )
    return missing


class Constant(RowStage):
    """Replace each NaN by a constant; see `impute`."""

    name = "impute"

    def __init__(self, inputs: Signal, value: float, mark: bool, of: str | None = None) -> None:
        self.filled, self.mark = _filled(inputs, of), mark
        self.inputs, self.outputs = inputs, _outputs(inputs, self.filled, mark)
        self.values = {t.name: _given.per_feature(self.name, "value", value, t) for t in self.filled}

    def rows(self, arrays: Chunk) -> Chunk:
        made = dict(arrays)
        for t in self.filled:
            missing = _missing(t.name, arrays[t.name], arrays[t.name].ndim - len(t.shape) - 1)
            made[t.name] = np.where(missing, self.values[t.name], arrays[t.name])
            if self.mark:
                made[f"{t.name}.missing"] = missing.astype(np.float32)
        return made


class Hold(StackedStage):
    """Replace each NaN by the last number; see `impute`."""

    name = "impute"
    finite = False  # NaN is expected, and never stored

    def __init__(self, inputs: Signal, value: float, mark: bool, of: str | None = None) -> None:
        self.filled, self.mark = _filled(inputs, of), mark
        self.inputs, self.outputs = inputs, _outputs(inputs, self.filled, mark)
        self.values = {t.name: _given.per_feature(self.name, "value", value, t) for t in self.filled}

    def initial(self) -> Arrays:
        """The state `last.NAME`: the last number, or `value`, in the dtype and shape of one time step."""
        return {f"last.{t.name}": np.full(t.shape, self.values[t.name]) for t in self.filled}

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        after, made = dict[str, Array](), {name: array.copy() for name, array in chunk.items()}
        for t in self.filled:
            given, last = chunk[t.name], state[f"last.{t.name}"]
            steps = given.shape[1]
            missing = _missing(t.name, given, 1)
            if missing.any():
                # Row i of `seen` is input i - 1; each missing one takes the newest before it.
                seen = np.concatenate([last[:, None], given], axis=1)
                row = np.arange(1, steps + 1).reshape(1, steps, *(1 for _ in t.shape))
                newest = np.maximum.accumulate(np.where(missing, 0, row), axis=1)
                made[t.name] = np.take_along_axis(seen, newest, axis=1)
            after[f"last.{t.name}"] = (made[t.name][:, -1] if steps else last).copy()
            if self.mark:
                made[f"{t.name}.missing"] = missing.astype(np.float32)
        return after, made


class Linear(Stage):
    """Fill each short gap by a straight line; see `impute`."""

    name = "impute"

    def __init__(self, inputs: Signal, value: float, max_gap: int, mark: bool, of: str | None = None) -> None:
        self.filled, self.mark = _filled(inputs, of), mark
        self.inputs, self.outputs = inputs, _outputs(inputs, self.filled, mark)
        self.values = {t.name: _given.per_feature(self.name, "value", value, t) for t in self.filled}
        _given.require_small(self.name, max_gap, inputs.tensors)
        self.latency = self.max_gap = max_gap

    def initial(self) -> Arrays:
        """The state.

        - `held.NAME` for all arrays: the time steps held back, (up to max_gap, ...) in its dtype, 0 for a
          NaN.
        - `missing.NAME` for filled arrays: bool of that shape, whether it was a NaN.
        - `last.NAME` for filled arrays: the last number before them, in one time step's dtype and shape.
        - `age.NAME` for filled arrays: int64 of one time step's shape, the time steps since then, up to
          max_gap; also max_gap if there was no number.
        """
        state: dict[str, Array] = {f"held.{t.name}": t.empty() for t in self.inputs.tensors}
        for t in self.filled:
            state[f"missing.{t.name}"] = np.zeros((0, *t.shape), bool)
            state[f"last.{t.name}"] = np.full(t.shape, self.values[t.name])
            state[f"age.{t.name}"] = np.full(t.shape, self.max_gap)
        return state

    def load(self, state: State, arrays: Arrays) -> State:
        """Check that all arrays hold back equally many time steps, at most max_gap."""
        held = len(arrays[f"held.{self.inputs.names[0]}"])
        if held > self.max_gap:
            raise SnapshotError(f"impute: {held} rows are held back; at most {self.max_gap}")
        like = dict(self.initial())
        for name in like:
            if name.startswith(("held.", "missing.")):
                like[name] = np.zeros((held, *like[name].shape[1:]))
        _given.require_state(self.name, arrays, like)
        for t in self.filled:
            _given.require_range(self.name, f"age.{t.name}", arrays[f"age.{t.name}"], 0, self.max_gap)
        return super().load(state, arrays)

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        return self._advance(state, chunk, self.max_gap)

    def flush(self, state: State) -> tuple[State, Chunk]:
        """Return the time steps held back; a gap at their end is held."""
        return self._advance(state, self.inputs.empty(), 0)

    def _advance(self, state: State, chunk: Chunk, hold_back: int) -> tuple[State, Chunk]:
        after: dict[str, Array] = {}
        made: dict[str, Array] = {}
        filled = {t.name for t in self.filled}
        for name, given in chunk.items():
            key = f"held.{name}"
            missing = _missing(name, given, 0) if name in filled else None
            if missing is None:
                require_finite(name, given, self.name)  # it is stored for a while
            elif missing.any():
                given = np.where(missing, given.dtype.type(0), given)
            seen = np.concatenate([state[key], given])
            rows = max(0, len(seen) - hold_back)
            after[key], made[name] = seen[rows:].copy(), seen[:rows]
            if missing is None:
                continue
            missing = np.concatenate([state[f"missing.{name}"], missing])
            after[f"missing.{name}"] = missing[rows:].copy()
            if self.mark:
                made[f"{name}.missing"] = missing[:rows].astype(np.float32)
            last, age = state[f"last.{name}"], state[f"age.{name}"]
            if rows and missing[:rows].any():
                made[name], last, age = self._fill(seen, missing, rows, last, age)
            elif rows:
                last, age = seen[rows - 1, ...], np.zeros_like(age)
            after[f"last.{name}"], after[f"age.{name}"] = last.copy(), age.copy()
        return after, made

    def _fill(
        self, seen: Array, missing: Array, rows: int, last: Array, age: Array
    ) -> tuple[Array, Array, Array]:
        """Return the first `rows` of `seen` filled, the last number in them, and the time steps since."""
        steps = len(seen)
        at = np.arange(steps).reshape(steps, *(1 for _ in age.shape))
        before = np.maximum.accumulate(np.where(missing, -1, at))[:rows]  # the nearest number, -1: none
        behind = np.minimum.accumulate(np.where(missing, steps, at)[::-1])[::-1][:rows]  # steps: none
        start = np.where(before < 0, -1 - age, before)
        low = np.where(before < 0, last, np.take_along_axis(seen, np.maximum(before, 0), 0))
        high = np.take_along_axis(seen, np.minimum(behind, steps - 1), 0)
        drawn = (behind < steps) & (behind - start - 1 <= self.max_gap)
        share = np.where(drawn, (at[:rows] - start) / np.maximum(behind - start, 1), 0.0)
        # A weighted mean, because high - low could overflow.
        line = (low * (1 - share) + high * share).astype(seen.dtype)
        out = np.where(missing[:rows], line, seen[:rows])
        since = np.minimum(rows - 1 - start, self.max_gap)
        return out, low[-1, ...], since[-1, ...]  # `...` keeps rank 0 an array


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"impute": impute}
