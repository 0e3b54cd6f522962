"""Edges of an on-off series: when it changes, and how long it had been unchanged.

A rising edge is a sample that is on after one that was off, a falling edge the reverse; before the first
sample all is off. Sample k lies at k / rate seconds. An edge is output at its own sample: latency 0.
"""

from __future__ import annotations

import math

import numpy as np

import runnel
from runnel.errors import PipelineError, SnapshotError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk, State

from . import _given
from ._choose import one
from ._sparse import SparseStage

MAX_SAMPLES = 2**53  # of a stream: the largest count that float64 holds, which `time` is


class Event(SparseStage):
    """Find the rising and falling edges of an on-off series, one output row per edge.

    Input: an array (T, ...) of bool or integers, in which 0 is off and any other value on; `of` names it if
    there are several. Other arrays are dropped, because the output has a row per edge, not per sample.
    Output:

    - ``edge`` int8: 1 for rising, -1 for falling;
    - ``index`` int64: the sample of the edge, counted from 0 at the stream's start;
    - ``length`` int64: samples since the previous edge, or since the start: the length of the phase that
      ends;
    - ``time``, ``duration`` float64: index and length in seconds, if the rate is known;
    - ``channel`` int64: the index within a time step in C order, if a time step has several numbers.

    Edges come in the order of time, then of channel. `rate`, in Hz, is for a signal without a rate. With
    `close`, the flush ends what is on: a falling edge at the sample that would have come next.

    Raises PipelineError if no such array arrives (of float32, `threshold` makes one), and for a rate that is
    not positive or contradicts the signal's.
    """

    name = "event"

    def __init__(
        self, inputs: Signal, close: bool = False, rate: float | None = None, of: str | None = None
    ) -> None:
        fits = "an array of bool or whole numbers (a 'threshold' stage makes one)"
        self._taken = one("event", inputs, of, _fits, fits)
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise PipelineError(f"event: rate must be a positive number of Hz, not {rate:g}")
        if rate and inputs.rate and not math.isclose(rate, inputs.rate, rel_tol=1e-6):
            raise PipelineError(f"event: rate is {rate:g} Hz, but {inputs.rate:g} Hz arrive")
        self._rate = rate or inputs.rate
        self._close = close
        self._many = math.prod(self._taken.shape) > 1
        made = [TensorSpec("edge", "int8"), TensorSpec("index", "int64"), TensorSpec("length", "int64")]
        if self._rate:
            made += [TensorSpec("time", "float64"), TensorSpec("duration", "float64")]
        if self._many:
            made.append(TensorSpec("channel", "int64"))
        self.inputs = inputs
        self.outputs = Signal(tuple(made))

    def initial(self) -> Arrays:
        """The state.

        - `on`: bool in the shape of one time step, the last sample.
        - `since`: int64 in that shape, the sample of the last edge, or 0.
        - `samples`: int64 (), samples so far.
        """
        shape = self._taken.shape
        return {
            "on": np.zeros(shape, bool), "since": np.zeros(shape, np.int64), "samples": np.array(0, np.int64)
        }  # fmt: skip

    def load(self, state: State, arrays: Arrays) -> State:
        for name, like in self.initial().items():
            if arrays[name].shape != like.shape:
                raise SnapshotError(f"event: {name!r} has shape {arrays[name].shape}, expected {like.shape}")
        if not (arrays["since"] >= 0).all() or not (arrays["since"] <= arrays["samples"]).all():
            raise SnapshotError(f"event: an edge outside of the {int(arrays['samples'])} samples before")
        _given.require_range(self.name, "samples", arrays["samples"], 0, MAX_SAMPLES)
        return super().load(state, arrays)

    def find(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Array, Chunk]:
        given = chunk[self._taken.name]
        streams, steps = given.shape[:2]
        channels = math.prod(self._taken.shape)
        before = state["on"].reshape(streams, 1, channels)
        on = np.concatenate([before, (given != 0).reshape(streams, steps, channels)], axis=1)
        owners, at, channel = np.nonzero(on[:, 1:] != on[:, :-1])
        index = state["samples"][owners] + at
        # In this order the edges of one channel of one stream are adjacent, and still sorted by time.
        series = owners * channels + channel
        order = np.argsort(series, kind="stable")
        series, when = series[order], index[order]
        new = np.diff(series, prepend=-1) != 0
        since = state["since"].reshape(-1).copy()
        before_it = np.where(new, since[series], np.roll(when, 1))
        length = np.empty_like(index)
        length[order] = when - before_it
        last = np.diff(series, append=-1) != 0
        since[series[last]] = when[last]
        after = {
            "on": on[:, -1].reshape(state["on"].shape).copy(),
            "since": since.reshape(state["since"].shape),
            "samples": state["samples"] + steps,
        }
        return after, owners, self._rows(on[owners, at + 1, channel], index, length, channel)

    def flush(self, state: State) -> tuple[State, Chunk]:
        """With `close`, end what is on."""
        if not self._close or not state["on"].any():
            return state, self.outputs.empty()
        (channel,) = np.nonzero(state["on"].reshape(-1))
        index = np.full(len(channel), state["samples"])
        rows = self._rows(
            np.zeros(len(channel), bool), index, index - state["since"].reshape(-1)[channel], channel
        )
        since = np.where(state["on"], state["samples"], state["since"])
        return {"on": np.zeros_like(state["on"]), "since": since, "samples": state["samples"].copy()}, rows

    def _rows(self, rising: Array, index: Array, length: Array, channel: Array) -> Chunk:
        edge = np.where(rising, np.int8(1), np.int8(-1))
        rows: dict[str, Array] = {"edge": edge, "index": index, "length": length}
        if self._rate:
            rows |= {"time": index / self._rate, "duration": length / self._rate}
        if self._many:
            rows["channel"] = channel.astype(np.int64, copy=False)
        return rows


def _fits(tensor: TensorSpec) -> bool:
    return tensor.dtype == "bool" or np.dtype(tensor.dtype).kind in "iu"


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"event": Event}
