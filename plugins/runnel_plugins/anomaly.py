"""Anomaly scores of samples, against the mean and the deviation of the samples before.

    z[t] = (x[t] - mean[t-1]) / deviation[t-1],        unusual if |z[t]| > threshold

Then the sample is learned, with d = x[t] - mean[t-1], w = 1 / min(n, memory), and n the number of samples
learned:

    mean[t] = mean[t-1] + w*d,        variance[t] = (1 - w) * (variance[t-1] + w*d*d)

For the first `memory` samples these are exactly their mean and variance; later, samples are forgotten
exponentially. (B. P. Welford, Technometrics, 1962; T. Finch, Incremental calculation of weighted mean and
variance, 2009.) z has no unit. Latency 0.
"""

from __future__ import annotations

import math

import numpy as np

import runnel
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk, State

from . import _given
from ._choose import is_float, one, with_tensors

MAX_COUNT = 2**53  # samples: the largest count that float64 holds; the limit with `memory = 0`
LARGEST_Z = 1e6  # a larger z means a wrong deviation, such as of a series that never moved


class Anomaly(runnel.StackedStage):
    """Score each sample against running statistics, and mark unusual samples.

    Input: a float32 array (T, ...), a series or a residual; `of` names it if there are several. Output: all
    input arrays and, of the same shape, with statistics of its own for each element:

    - ``z`` float32: deviations from the mean, within ±1e6;
    - ``anomaly`` bool: whether |z| > `threshold`.

    The first `warm_up` samples are learned, and their z is 0. `memory`: the number of samples after which an
    old one counts 1/e; 0: none is forgotten. `floor`: the least deviation, in the unit of the series; without
    it, the smallest step of a constant series would be unusual. Unusual samples are not learned, unless
    `learn_all` is set. After `restart` unusual samples in a row (0: never) they are the new normal, and the
    statistics start again with a warm-up.

    NaN means "no value": its z is NaN, it is not unusual, and nothing is learned from it.

    Raises PipelineError if no such array arrives, if an array named z or anomaly arrives, or if an option is
    out of range; NonFiniteError for an infinity in a chunk.
    """

    name = "anomaly"
    finite = False  # NaN is allowed, infinities are refused in `advance`

    def __init__(
        self,
        inputs: Signal,
        threshold: float = 4.0,
        memory: int = 1000,
        warm_up: int = 30,
        floor: float = 1e-6,
        learn_all: bool = False,
        restart: int = 0,
        of: str | None = None,
    ) -> None:
        self._taken = one("anomaly", inputs, of, is_float, "a float32 array")
        for name, value in (("threshold", threshold), ("floor", floor)):
            if not (math.isfinite(value) and value > 0):
                raise PipelineError(f"anomaly: {name} must be a positive number, not {value:g}")
        for name, count, least in (("memory", memory, 0), ("warm_up", warm_up, 2), ("restart", restart, 0)):
            if not least <= count <= MAX_COUNT:
                raise PipelineError(f"anomaly: {name} must be at least {least} samples, not {count}")
        self._memory = memory or MAX_COUNT
        self._most = max(self._memory, warm_up)
        self._threshold, self._warm_up, self._floor = threshold, warm_up, floor
        self._learn_all, self._restart = learn_all, restart
        self.inputs = inputs
        shape = self._taken.shape
        self.outputs = with_tensors(
            "anomaly", inputs, None, TensorSpec("z", "float32", shape), TensorSpec("anomaly", "bool", shape)
        )

    def initial(self) -> Arrays:
        """The state, each array in the shape of one time step.

        - `mean`, `variance`: float64, in the series' unit and its square.
        - `learned`: int64, the number of samples in them, up to the largest count that matters.
        - `run`: int64, unusual samples in a row.
        """
        shape = self._taken.shape
        return {
            "mean": np.zeros(shape), "variance": np.zeros(shape),
            "learned": np.zeros(shape, np.int64), "run": np.zeros(shape, np.int64),
        }  # fmt: skip

    def load(self, state: State, arrays: Arrays) -> State:
        after = super().load(state, arrays)
        if (arrays["learned"] < 0).any() or (arrays["run"] < 0).any():
            raise SnapshotError("anomaly: a count is below 0")
        if (arrays["learned"] > self._most).any() or (arrays["run"] > MAX_COUNT).any():
            raise SnapshotError("anomaly: a count is higher than any stream's can be")
        # Beyond what float32 samples can add up to, the next variance could be infinite, and then NaN.
        most = float(np.finfo(np.float32).max)
        _given.require_range(self.name, "mean", arrays["mean"], -most, most)
        _given.require_range(self.name, "variance", arrays["variance"], 0, (2 * most) ** 2)
        return after

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        x = chunk[self._taken.name]
        infinite = np.isinf(x)
        if infinite.any():
            step = int(np.nonzero(infinite)[1][0])
            raise NonFiniteError(
                f"anomaly: {self._taken.name!r} has an infinity at time step {step}; the chunk was "
                "not applied"
            )
        known = ~np.isnan(x)
        series = np.where(known, x, 0).astype(np.float64)
        scores = np.empty(x.shape, np.float32)
        unusual = np.empty(x.shape, bool)
        track = _Track(self, state)
        for t in range(x.shape[1]):
            scores[:, t], unusual[:, t] = track.take(series[:, t], known[:, t])
        scores[~known] = np.nan
        rows = {name: array.copy() for name, array in chunk.items()}
        return track.state(), {**rows, "z": scores, "anomaly": unusual}


class _Track:
    """The streams' statistics during one call."""

    def __init__(self, rule: Anomaly, state: Arrays) -> None:
        self._rule = rule
        self._mean, self._variance = state["mean"].copy(), state["variance"].copy()
        self._learned, self._run = state["learned"].copy(), state["run"].copy()

    def state(self) -> Arrays:
        """Return the state as `Anomaly.initial` describes it."""
        return {
            "mean": self._mean, "variance": self._variance, "learned": self._learned, "run": self._run
        }  # fmt: skip

    def take(self, x: Array, known: Array) -> tuple[Array, Array]:
        """Return z and whether it is unusual, for one sample of each element.

        x is 0 if not `known`.
        """
        rule = self._rule
        away = x - self._mean
        z = away / np.maximum(np.sqrt(self._variance), rule._floor)
        z = np.clip(z, -LARGEST_Z, LARGEST_Z)
        z[self._learned < rule._warm_up] = 0
        unusual = known & (np.abs(z) > rule._threshold)
        learn = known if rule._learn_all else known & ~unusual
        self._learned = np.minimum(self._learned + learn, rule._most)
        weight = np.where(learn, 1 / np.clip(self._learned, 1, rule._memory), 0.0)
        step = weight * away
        self._mean = self._mean + step
        self._variance = (1 - weight) * (self._variance + away * step)
        self._run = np.where(unusual, np.minimum(self._run + 1, MAX_COUNT), np.where(known, 0, self._run))
        if rule._restart:
            anew = self._run >= rule._restart
            for values in (self._mean, self._variance, self._learned, self._run):
                values[anew] = 0
        return z, unusual


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"anomaly": Anomaly}
