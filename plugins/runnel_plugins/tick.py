"""A regular clock for rows with time stamps.

Tick k lies at T[k] = t[0] + k / rate seconds: the clock starts with the stream's first row. The output at
tick k is:

- hold: the row at T[k], else the last one before it;
- linear: a point of the straight line between the rows a and b on both sides, x[a] + (x[b] - x[a]) * (T[k] -
  t[a]) / (t[b] - t[a]);
- mean: the mean of the rows with T[k] <= t < T[k+1]; if there is none, the mean before.

A tick is output with the first row at or after it (mean: after its interval), so that rows which are regular
already are not delayed. Units: seconds and Hz; the values keep theirs. Latency: 0 after the row that decides.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

import runnel
from runnel.errors import ChunkError, PipelineError, SnapshotError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal
from runnel.stage import Arrays, Chunk, Stage, State, require_finite

from . import _given

NEAR = 1e-3  # of a period: a time stamp this near to a tick is on it, because clocks are rounded
MAX_GAP_TICKS = 2**16  # between two rows: a time stamp in milliseconds, or of another year, exceeds it
MAX_MADE = 2**28  # bytes of memory for making the ticks of one chunk
TICK_BYTES = 80  # of these, per tick: its number, the rows on both sides, its share
NUMBER_BYTES = 32  # and per number of a tick: as computed, in float64, and as output
MAX_TICKS = 2.0**48  # of one stream: up to this a tick's number and its fraction are exact


class Tick(Stage):
    """Put rows that come at irregular times on a clock of `rate` Hz.

    Input: one float64 number per row, named `time`, in seconds from any origin, beside the arrays with the
    measured values. Output: those arrays without `time`, at `rate`; the first output is at the first row's
    time. `how` "hold" works on any dtype, "linear" and "mean" on floats ("mean": float32 or float16). Rows
    may share a time; a tick there takes the first of them. Ticks after the last row's time are not output,
    except that of a mean's open interval, at the flush.

    `max_gap`, in seconds: if two rows are further apart, `gap` defines the ticks between: "error" (the
    default) refuses the chunk, "hold" repeats the values before the gap, "nan" makes them NaN, for `impute`.
    Without `max_gap` no gap is too long; but one that would make more than 65536 ticks is always refused.

    Raises PipelineError for options that do not fit each other or the arrays; NonFiniteError for a NaN or an
    infinity; ChunkError if time goes backwards, for a gap as above, and for a chunk that would need more than
    256 MiB.
    """

    name = "tick"
    ratio = None  # the output is regular, but its length depends on the time stamps

    def __init__(
        self,
        inputs: Signal,
        rate: float,
        how: Literal["hold", "linear", "mean"] = "hold",
        max_gap: float | None = None,
        gap: Literal["error", "hold", "nan"] | None = None,
        time: str = "time",
    ) -> None:
        self.rate = _given.finite_option(self.name, "rate", rate, above=0)
        if max_gap is None and gap is not None:
            raise PipelineError(f"tick: gap = {gap!r} needs max_gap, in seconds: how long a gap is one?")
        if max_gap is not None:
            _given.finite_option(self.name, "max_gap", max_gap, above=0)
        self.how, self.gap, self.time = how, gap or "error", time
        self.max_gap = math.inf if max_gap is None else max_gap
        stamp = next((t for t in inputs.tensors if t.name == time), None)
        if stamp is None or stamp.dtype != "float64" or stamp.shape:
            raise PipelineError(
                f"tick takes a float64 number {time!r} a row, in seconds, but {inputs} arrives: declare it "
                "under [input.tensors], or name it with time = …"
            )
        self.tensors = tuple(t for t in inputs.tensors if t.name != time)
        if not self.tensors:
            raise PipelineError(f"tick: nothing stands beside {time!r} that could be put onto a clock")
        floats = ("float16", "float32") if how == "mean" else ("float16", "float32", "float64")
        for t in self.tensors:
            if (how != "hold" or self.gap == "nan") and t.dtype not in floats:
                what = f"how = {how!r}" if how != "hold" else "gap = 'nan'"
                raise PipelineError(
                    f"tick: {what} is for {', '.join(floats)}, but {t} arrives: cast it first"
                )
        self.inputs, self.outputs = inputs, Signal(self.tensors, rate)
        self.row_bytes = TICK_BYTES + NUMBER_BYTES * sum(math.prod(t.shape) for t in self.tensors)

    def initial(self) -> Arrays:
        """The state.

        - `begun`: bool (), whether there was a row.
        - `start`, `time`: float64 (), seconds, the time of the first row and of the last.
        - `last.NAME` for each array, unless `how` is "mean": the last row, in its dtype and shape.
        - `sum.NAME` (float64, a row's shape) and `count` (int64 ()), for means: of the open interval's rows.
        """
        state = {"begun": np.zeros((), bool), "start": np.zeros(()), "time": np.zeros(())}
        if self.how == "mean":
            sums = {f"sum.{t.name}": np.zeros(t.shape) for t in self.tensors}
            return {**state, **sums, "count": np.zeros((), np.int64)}
        return {**state, **{f"last.{t.name}": np.zeros(t.shape, t.dtype) for t in self.tensors}}

    def load(self, state: State, arrays: Arrays) -> State:
        """Check that a clock can have reached these times."""
        _given.require_state(self.name, arrays, self.initial())
        with np.errstate(over="ignore"):
            passed = float((arrays["time"] - arrays["start"]) * self.rate)
        if not 0 <= passed <= MAX_TICKS or (passed and not arrays["begun"]):
            raise SnapshotError(f"tick: {passed:g} ticks have passed: a stream cannot have come to that")
        if self.how == "mean":
            _given.require_range(self.name, "count", arrays["count"], int(arrays["begun"]), 2**48)
            for t in self.tensors:
                most = float(np.finfo(t.dtype).max) * int(arrays["count"])
                _given.require_range(self.name, f"sum.{t.name}", arrays[f"sum.{t.name}"], -most, most)
        return super().load(state, arrays)

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        stamps = chunk[self.time]
        if not len(stamps):
            return state, self.outputs.empty()
        for name, array in chunk.items():
            require_finite(name, array, self.name)
        begun = bool(state["begun"])
        if begun:
            stamps = np.concatenate([state["time"][None], stamps])
        start = state["start"] if begun else stamps[0]
        # From here on with the row before the chunk, if there was one.
        apart = self._apart(stamps, begun)
        at = self._clock(stamps - start)
        after: dict[str, Array] = {
            "begun": np.ones((), bool), "start": np.array(start), "time": np.array(stamps[-1])
        }  # fmt: skip
        last = math.floor(at[-1])
        if self.how == "mean":  # `last` is still open
            ticks = np.arange(math.floor(at[0]), self._bounded(math.floor(at[0]), last))
        else:
            first = math.floor(at[0]) + 1 if begun else 0
            ticks = np.arange(first, self._bounded(first, last + 1))
        behind = np.searchsorted(at, ticks)  # the first row at or after each tick
        far = np.append(apart > self.max_gap, False)[np.maximum(behind - 1, 0)]  # from the row before that
        if self.how == "mean":
            made = self._means(state, chunk, after, np.floor(at[begun:]).astype(np.int64), ticks, far)
        else:
            made = self._points(state, chunk, after, at, ticks, behind, far)
        return after, made

    def _points(
        self,
        state: State,
        chunk: Chunk,
        after: dict[str, Array],
        at: Array,
        ticks: Array,
        behind: Array,
        far: Array,
    ) -> dict[str, Array]:
        """Return the value held or interpolated at each tick; write the last row to `after`."""
        on = at[behind] == ticks
        before = np.where(on, behind, behind - 1)
        share = np.zeros(len(ticks))
        if self.how == "linear":
            drawn = ~on & ~far
            share[drawn] = (ticks[drawn] - at[before[drawn]]) / (at[behind[drawn]] - at[before[drawn]])
        made = {}
        for t in self.tensors:
            key, seen = f"last.{t.name}", chunk[t.name]
            after[key] = seen[-1, ...].copy()
            if state["begun"]:
                seen = np.concatenate([state[key][None], seen])
            rows = seen[before]
            if share.any():
                weight = share.reshape(-1, *(1 for _ in t.shape))
                # A weighted mean: the difference of two large numbers could overflow.
                rows = (rows * (1 - weight) + seen[behind] * weight).astype(t.dtype)
            if self.gap == "nan":
                rows[far & ~on] = np.nan
            made[t.name] = rows
        return made

    def _means(
        self, state: State, chunk: Chunk, after: dict[str, Array], interval: Array, ticks: Array, far: Array
    ) -> dict[str, Array]:
        """Return the mean of each complete interval; write the sum of the open one to `after`."""
        size = len(ticks) + 1  # the open one is last
        index = interval - (interval[-1] - len(ticks))
        counts = np.bincount(index, minlength=size)
        counts[0] += state["count"]
        after["count"] = np.array(counts[-1], np.int64)
        # An empty interval repeats the newest that is not empty; the first is never empty, as it was open.
        source = np.maximum.accumulate(np.where(counts[:-1] > 0, np.arange(size - 1), 0))
        made = {}
        for t in self.tensors:
            sums = np.zeros((size, *t.shape))
            sums[0] = state[f"sum.{t.name}"]
            np.add.at(sums, index, chunk[t.name])
            after[f"sum.{t.name}"] = sums[-1, ...].copy()
            divisor = counts[source].reshape(-1, *(1 for _ in t.shape))
            rows = (sums[source] / divisor).astype(t.dtype)
            if self.gap == "nan":
                rows[far & (counts[:-1] == 0)] = np.nan
            made[t.name] = rows
        return made

    def flush(self, state: State) -> tuple[State, Chunk]:
        """Return the mean of the open interval."""
        if self.how != "mean" or not state["count"]:
            return state, self.outputs.empty()
        made = {t.name: (state[f"sum.{t.name}"] / state["count"]).astype(t.dtype)[None] for t in self.tensors}
        return self.initial(), made

    def _apart(self, stamps: Array, begun: bool) -> Array:
        """Return the seconds between consecutive rows; ChunkError for those that no clock can have."""
        with np.errstate(over="ignore"):
            apart: Array = np.diff(stamps)
            ticks = apart * self.rate
        for wrong, what in (
            (apart < 0, "time goes backwards"),
            (
                ticks > MAX_GAP_TICKS,
                f"the gap is of more than {MAX_GAP_TICKS} ticks (is {self.time!r} in seconds?)",
            ),
            (
                (apart > self.max_gap) & (self.gap == "error"),
                f"the gap is longer than max_gap, {self.max_gap:g} s (gap = 'hold' or 'nan' would allow it)",
            ),
        ):
            if wrong.any():
                i = int(np.argmax(wrong))
                raise ChunkError(
                    f"tick: {what}: from {stamps[i]!s} to {stamps[i + 1]!s} s at time step {i + 1 - begun}; "
                    "the chunk was not applied"
                )
        return apart

    def _clock(self, passed: Array) -> Array:
        """Convert seconds since the start to ticks (floats), rounded if they are near one."""
        ticks: Array = passed * self.rate
        near = np.rint(ticks)
        return np.where(np.abs(ticks - near) <= NEAR, near, ticks)

    def _bounded(self, first: int, end: int) -> int:
        if (end - first) * self.row_bytes > MAX_MADE:
            raise ChunkError(
                f"tick: this chunk would make {end - first} rows, which takes more than {MAX_MADE} bytes: "
                "cut it"
            )
        return end


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"tick": Tick}
