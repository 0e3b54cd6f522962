"""Resampling by any rational factor, exactly as if the whole signal were known.

With up/down = rate/from_rate in lowest terms, the output is

    y[m] = sum over n of x[n] * h[m*down - n*up + half]

where h is a low-pass filter of 2*half + 1 taps at from_rate*up: a sinc that cuts at the lower of the two
Nyquist frequencies, under a Kaiser window, with unit gain at 0 Hz. Only the taps that meet a sample are
multiplied: the polyphase form. (R. Crochiere and L. Rabiner, Multirate Digital Signal Processing, 1983,
chapter 4; J. Kaiser, IEEE ISCAS 1974.) y[m] describes input time m*down/up: the filter's delay is held back,
not left in the signal.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from fractions import Fraction

import numpy as np

import runnel
from runnel.errors import PipelineError, SnapshotError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal
from runnel.stage import Arrays, Chunk, State

from . import _given
from ._phased import PhasedStage

MAX_FACTOR = 4096  # up and down: the filter has 2 * half_width * max(up, down) + 1 taps
MAX_HALF_WIDTH = 256
ROUNDING = Fraction(1, 2**48)  # of a ratio of rates: earlier stages may have rounded their rates
MAX_BETA = 500  # the window's Bessel function is infinite beyond 700; 40 attenuates below float32's precision
BLOCK = 4096  # output time steps gathered at once: bounds the memory for a long chunk
SWEEP = 64  # time steps per phase from which on a loop over phases is faster than gathering


class Resample(PhasedStage):
    """Resample to `rate` Hz by a polyphase low-pass filter.

    Input: float32 arrays, each (T, ...) at `from_rate` Hz, which defaults to the signal's rate; for the first
    stage that is the rate under ``[input]``. Output: the same arrays at `rate`; n samples give
    ceil(n*up/down), the last of them at the flush. `half_width` is the filter's length on either side, in
    zero crossings of its sinc: a larger one is steeper and has more latency. `beta` is the Kaiser window's: a
    larger one attenuates more and is less steep. The defaults are those of ``scipy.signal.resample_poly``.
    Latency: half_width periods of the lower of the two rates. Equal rates change nothing.

    Raises PipelineError for rates that are unknown, not positive, or whose ratio is not one of integers up to
    4096, and for arrays that are not float32; NonFiniteError for a NaN or an infinity in a chunk.
    """

    name = "resample"

    def __init__(
        self,
        inputs: Signal,
        rate: float,
        from_rate: float | None = None,
        half_width: int = 10,
        beta: float = 5.0,
    ) -> None:
        source = _source_rate(inputs, from_rate)
        self.up, self.down = _ratio(rate, source)
        for tensor in inputs.tensors:
            if tensor.dtype != "float32":
                raise PipelineError(f"resample takes float32, but {tensor} arrives: convert it first")
        if not 1 <= half_width <= MAX_HALF_WIDTH:
            raise PipelineError(f"resample: half_width must be in 1..{MAX_HALF_WIDTH}, not {half_width}")
        if not 0 <= beta <= MAX_BETA:
            raise PipelineError(f"resample: beta must be in 0..{MAX_BETA}, not {beta:g}")
        taps = low_pass(self.up, self.down, half_width, beta)
        self.half = len(taps) // 2
        self.phases = _polyphase(taps, self.up)
        self.inputs = Signal(inputs.tensors, source)
        self.outputs = Signal(inputs.tensors, rate)
        self.ratio = (self.up, self.down)
        # y[m] needs input floor((m*down + half)/up) and describes floor(m*down/up); periodic in m.
        self.latency = max(
            (m * self.down + self.half) // self.up - m * self.down // self.up for m in range(self.up)
        )

    def initial(self) -> Arrays:
        """The state.

        - `tail.NAME`: float32 (taps per phase - 1, ...), the last samples of each array that the filter
          needs.
        - `position`: int64 (), the next output's position after the input so far, in steps of the common
          rate. The output is due once its filter's last sample is in.
        """
        width = self.phases.shape[1] - 1
        tails = {f"tail.{t.name}": np.zeros((width, *t.shape), np.float32) for t in self.inputs.tensors}
        return {**tails, "position": np.array(self.half, np.int64)}

    def phase(self, state: Arrays) -> Hashable:
        return int(state["position"])

    def load(self, state: State, arrays: Arrays) -> State:
        """Load a state; SnapshotError for a position far away.

        Its outputs would fill the memory.
        """
        position = int(arrays["position"])
        if not 0 <= position <= max(self.half, self.down):
            raise SnapshotError(f"{self.name}: position {position} is none that a stream can have")
        _given.require_state(self.name, arrays, self.initial())
        return super().load(state, arrays)

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        steps = next(iter(chunk.values())).shape[1]
        position = int(state["position"][0])
        rows = max(0, -(-(steps * self.up - position) // self.down))
        return self._advance(state, chunk, position, rows, position + rows * self.down - steps * self.up)

    def flush(self, state: State) -> tuple[State, Chunk]:
        """Return the outputs due for the last samples, as if zeros followed."""
        position = int(state["position"])
        rows = max(0, -(-(self.half - position) // self.down))
        steps = self.half // self.up + 1
        zeros = {t.name: np.zeros((1, steps, *t.shape), np.float32) for t in self.inputs.tensors}
        # No outputs remain, so the next position does not matter; 0 is one that `load` accepts.
        after, made = self._advance({n: a[None] for n, a in state.items()}, zeros, position, rows, 0)
        return {n: a[0, ...] for n, a in after.items()}, {n: a[0] for n, a in made.items()}

    def _advance(
        self, state: Arrays, chunk: Chunk, position: int, rows: int, next_position: int
    ) -> tuple[Arrays, Chunk]:
        new: dict[str, Array] = {"position": np.full(len(state["position"]), next_position, np.int64)}
        made: dict[str, Array] = {}
        for name, samples in chunk.items():
            seen = np.concatenate((state[f"tail.{name}"], samples), axis=1)
            # A copy: a view would keep the chunk in memory.
            new[f"tail.{name}"] = seen[:, samples.shape[1] :].copy()
            if seen.ndim == 2:
                made[name] = self._filter(seen, position, rows)
                continue
            # Each number of a sample is a signal of its own; its samples must be contiguous.
            streams, shape = len(seen), seen.shape[2:]
            lines = np.ascontiguousarray(np.moveaxis(seen, 1, -1))
            lines = lines.reshape(streams * math.prod(shape), seen.shape[1])
            out = self._filter(lines, position, rows).reshape(streams, *shape, rows)
            made[name] = np.ascontiguousarray(np.moveaxis(out, -1, 1))
        return new, made

    def _filter(self, seen: Array, position: int, rows: int) -> Array:
        """Filter (signals, taps per phase - 1 + T), which begins with the tail, to (signals, rows).

        einsum sums in an order that depends on the taps only, so the cuts do not affect the result.
        """
        taps = self.phases.shape[1]
        signals, length = seen.shape
        out = np.empty((signals, rows), np.float32)
        stride, item = seen.strides
        if rows >= SWEEP * self.up or self.up == 1:
            # Phase by phase: the windows of one phase's outputs are `down` samples apart, a view.
            for first in range(min(self.up, rows)):
                newest, phase = divmod(position + first * self.down, self.up)
                count = (rows - first - 1) // self.up + 1
                windows: Array = np.ndarray(
                    (signals, count, taps), np.float32, seen, newest * item, (stride, self.down * item, item)
                )
                np.einsum("smk,k->sm", windows, self.phases[phase], out=out[:, first :: self.up])
            return out
        # Few outputs per phase: gather the window and the taps of each output.
        every: Array = np.ndarray(
            (signals, length - taps + 1, taps), np.float32, seen, 0, (stride, item, item)
        )
        each = max(1, BLOCK // signals)
        for start in range(0, rows, each):
            at = position + np.arange(start, min(rows, start + each)) * self.down
            newest_of, phase_of = np.divmod(at, self.up)
            np.einsum(
                "smk,mk->sm", every[:, newest_of], self.phases[phase_of], out=out[:, start : start + each]
            )
        return out


def low_pass(up: int, down: int, half_width: int, beta: float) -> Array:
    """Return the filter h: float64 (2*half + 1,), with gain `up` at 0 Hz.

    half is half_width * max(up, down).
    """
    if up == down == 1:
        return np.ones(1)
    widest = max(up, down)
    half = half_width * widest
    at = np.arange(-half, half + 1)
    taps = np.sinc(at / widest) * np.kaiser(2 * half + 1, beta)
    scaled: Array = taps * (up / taps.sum())
    return scaled


def _polyphase(taps: Array, up: int) -> Array:
    """Return the taps by phase: float32 (up, taps per phase).

    Row p has the taps p, p + up, p + 2*up, …, latest sample last.
    """
    each = -(-len(taps) // up)
    padded = np.zeros(each * up)
    padded[: len(taps)] = taps
    return np.ascontiguousarray(padded.reshape(each, up).T[:, ::-1], np.float32)


def _source_rate(inputs: Signal, from_rate: float | None) -> float:
    """Return `from_rate`, or the signal's rate; the pipeline checks whether they agree."""
    rate = inputs.rate if from_rate is None else from_rate
    if rate is None:
        raise PipelineError(
            "resample: the rate of what comes in is not known: give from_rate, or [input] rate, in Hz"
        )
    return rate


def _ratio(rate: float, from_rate: float) -> tuple[int, int]:
    for name, value in (("rate", rate), ("from_rate", from_rate)):
        if not (math.isfinite(value) and value > 0):
            raise PipelineError(f"resample: {name} must be a positive number of Hz, not {value:g}")
    exact = Fraction(rate) / Fraction(from_rate)
    ratio = exact.limit_denominator(MAX_FACTOR)
    # A third of 16 kHz is not a float: allow a difference by rounding.
    if abs(ratio - exact) > exact * ROUNDING or ratio.numerator > MAX_FACTOR:
        raise PipelineError(
            f"resample: {from_rate:.12g} Hz to {rate:.12g} Hz is no ratio of whole numbers up to "
            f"{MAX_FACTOR}: choose rates with a simpler one"
        )
    return ratio.numerator, ratio.denominator


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"resample": Resample}
