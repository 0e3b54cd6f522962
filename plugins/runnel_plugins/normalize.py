"""Normalization to mean 0 and standard deviation 1, by fixed statistics or the stream's own.

Fixed: y[t] = (x[t] - mean) / std.

Running, over all time steps so far including t, each with the weight decay**(its age in time steps):

    W[t]    = decay * W[t-1] + 1
    mean[t] = mean[t-1] + d / W[t],                               d = x[t] - mean[t-1]
    S[t]    = decay * S[t-1] + d**2 * (1 - 1 / W[t])
    y[t]    = (x[t] - mean[t]) / sqrt(S[t] / W[t] + eps)

decay = 1 is the method of B. Welford (Technometrics 4, 1962), decay = exp(-1 / time_constant) that of T.
Finch (Incremental calculation of weighted mean and variance, 2009). A block of time steps is summed at once
around the mean before it, as by T. Chan, G. Golub and R. LeVeque (The American Statistician 37, 1983). Units:
those of x for mean and std, time steps for time_constant. Latency 0.
"""

from __future__ import annotations

import math

import numpy as np

import runnel
from runnel.batch import RowStage, StackedStage
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk, Stage, State

from . import _given

BLOCK = 64  # time steps summed at once: bounds the matrix of weights, and the loss by rounding
MAX_WEIGHT = 2.0**48  # time steps: nine years at a million per second; a restored stream may claim no more
MAX_TIME_CONSTANT = 1e9  # time steps: beyond it the decay has the same effect as 1
DEFAULT_EPS = 1e-8


def normalize(
    inputs: Signal,
    mean: float | list[float] | None = None,
    std: float | list[float] | None = None,
    running: bool = False,
    time_constant: float | None = None,
    warm_up: int | None = None,
    eps: float | None = None,
    of: str | None = None,
) -> Stage:
    """Bring numbers to mean 0 and standard deviation 1, by fixed or by running statistics.

    Each float array, or the one named `of`, is changed; other arrays pass. `mean` and `std`: a number, or one
    for each element of the last axis; they default to 0 and 1 if only the other is given. If `running` is
    false, that is all: there is no state, and a NaN passes.

    With ``running = true`` each element has its own statistics, over the stream's time steps so far including
    the current one: over all with equal weight, or with a memory of `time_constant` time steps. During the
    first `warm_up` time steps (default 1, because a single one has no variance) the statistics are only
    collected. The output of these steps is normalized by `mean` and `std`, or is 0 if neither is given.
    `eps`, 1e-8, is added to the variance. The arrays are float32 or float16; a NaN or an infinity in a chunk
    raises NonFiniteError.

    Raises PipelineError for options that do not fit each other or the arrays.
    """
    if running:
        count = 1 if warm_up is None else warm_up
        return Running(inputs, mean, std, time_constant, count, DEFAULT_EPS if eps is None else eps, of)
    for name, value in (("time_constant", time_constant), ("warm_up", warm_up), ("eps", eps)):
        if value is not None:
            raise PipelineError(
                f"normalize: {name} is for running statistics: set running = true, or drop it"
            )
    if mean is None and std is None:
        raise PipelineError("normalize: give mean and std, or set running = true")
    return Fixed(inputs, 0.0 if mean is None else mean, 1.0 if std is None else std, of)


class Fixed(RowStage):
    """Compute (x - mean) / std; see `normalize`."""

    name = "normalize"

    def __init__(
        self, inputs: Signal, mean: float | list[float], std: float | list[float], of: str | None = None
    ) -> None:
        self.inputs = self.outputs = inputs
        self._maps = [
            (t.name, *scaling("normalize", mean, std, t)) for t in _given.floats(self.name, inputs, of)
        ]

    def rows(self, arrays: Chunk) -> Chunk:
        made = dict(arrays)
        for name, mean, scale in self._maps:
            if mean is None:
                made[name] = arrays[name] * scale
            else:
                made[name] = arrays[name] - mean
                made[name] *= scale
        return made


def scaling(
    stage: str, mean: float | list[float], std: float | list[float], tensor: TensorSpec
) -> tuple[Array | None, Array]:
    """Return the mean, None if it is 0, and 1/std, in the tensor's dtype."""
    deviations = _given.per_feature(stage, "std", std, tensor)
    with np.errstate(divide="ignore", over="ignore"):
        scale = np.asarray(1 / deviations, tensor.dtype)
    if not ((deviations > 0) & np.isfinite(scale)).all():
        raise PipelineError(
            f"{stage}: std must be above 0, not {std!r}: leave out a feature that never changes, or give it 1"
        )
    means = _given.per_feature(stage, "mean", mean, tensor)
    return (means if means.any() else None), scale


class Running(StackedStage):
    """Compute (x - mean so far) / (standard deviation so far); see `normalize`."""

    name = "normalize"

    def __init__(
        self,
        inputs: Signal,
        mean: float | list[float] | None,
        std: float | list[float] | None,
        time_constant: float | None,
        warm_up: int,
        eps: float,
        of: str | None = None,
    ) -> None:
        self.inputs = self.outputs = inputs
        self.tensors = _given.floats(self.name, inputs, of, "ef")  # a float64's square can be infinite
        if not 1 <= warm_up <= MAX_WEIGHT:
            raise PipelineError(f"normalize: warm_up must be at least 1 row, not {warm_up}")
        if time_constant is not None and not 0 < time_constant <= MAX_TIME_CONSTANT:
            raise PipelineError(
                f"normalize: time_constant must be above 0 and at most {MAX_TIME_CONSTANT:g} rows, "
                f"not {time_constant:g}"
            )
        self.warm_up, self.eps = warm_up, _given.finite_option(self.name, "eps", eps, above=0)
        self.before: dict[str, tuple[Array | None, Array]] = {}
        if mean is not None or std is not None:
            known = 0.0 if mean is None else mean, 1.0 if std is None else std
            self.before = {t.name: scaling("normalize", *known, t) for t in self.tensors}
        decay = 1.0 if time_constant is None else math.exp(-1 / time_constant)
        self.limit = MAX_WEIGHT if time_constant is None else 1 / (1 - decay)
        age = np.arange(BLOCK)[:, None] - np.arange(BLOCK)
        # Weight of time step j (column) at time step i.
        self.weights = np.where(age >= 0, decay ** np.maximum(age, 0), 0.0)
        self.fade = decay ** np.arange(1.0, BLOCK + 1)  # weight of the time steps before the block

    def initial(self) -> Arrays:
        """The state.

        - `weight`: float64 (), W, in time steps.
        - `seen`: int64 (), time steps so far, at most warm_up.
        - `mean.NAME`, `spread.NAME` for each array: float64 in the shape of one time step, the mean and S,
          the weighted sum of squared deviations.
        """
        state = {"weight": np.zeros(()), "seen": np.zeros((), np.int64)}
        for t in self.tensors:
            state |= {f"mean.{t.name}": np.zeros(t.shape), f"spread.{t.name}": np.zeros(t.shape)}
        return state

    def load(self, state: State, arrays: Arrays) -> State:
        """Refuse numbers that floats cannot add up to: they would become infinite, and then NaN."""
        after = super().load(state, arrays)
        _given.require_range(self.name, "weight", arrays["weight"], 0, self.limit * (1 + 1e-9))
        _given.require_range(self.name, "seen", arrays["seen"], 0, self.warm_up)
        for t in self.tensors:
            most = float(np.finfo(t.dtype).max)
            _given.require_range(self.name, f"mean.{t.name}", arrays[f"mean.{t.name}"], -most, most)
            spread = float(arrays["weight"]) * (2 * most) ** 2
            _given.require_range(self.name, f"spread.{t.name}", arrays[f"spread.{t.name}"], 0, spread)
        return after

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        made = {name: np.empty_like(array) for name, array in chunk.items()}
        for name in made.keys() - {t.name for t in self.tensors}:
            made[name][...] = chunk[name]
        steps = next(iter(chunk.values())).shape[1]
        after = {name: array.copy() for name, array in state.items()}
        for start in range(0, steps, BLOCK):
            rows = slice(start, min(start + BLOCK, steps))
            size = rows.stop - start
            weight = self.fade[:size] * after["weight"][:, None] + self.weights[:size, :size].sum(axis=1)
            early = after["seen"][:, None] + np.arange(size) < self.warm_up
            for t in self.tensors:
                made[t.name][:, rows] = self._block(after, t, chunk[t.name][:, rows], weight, early)
            after["weight"] = weight[:, -1].copy()
            after["seen"] = np.minimum(after["seen"] + size, self.warm_up)
        return after, made

    def _block(
        self, after: dict[str, Array], t: TensorSpec, given: Array, weight: Array, early: Array
    ) -> Array:
        """Return time steps (streams, size, ...) normalized, and write their statistics to `after`."""
        streams, size = given.shape[:2]
        x = given.reshape(streams, size, -1).astype(np.float64)
        spread = after[f"spread.{t.name}"].reshape(streams, 1, -1)
        # Summed around the mean so far, or the first value: small numbers, little rounding.
        centre = after[f"mean.{t.name}"].reshape(streams, 1, -1)
        centre = np.where(after["weight"][:, None, None] > 0, centre, x[:, :1])
        weight, fade, weights = weight[:, :, None], self.fade[:size, None], self.weights[:size, :size]
        x -= centre
        total, squares = (x, x * x) if size == 1 else (weights @ x, weights @ (x * x))
        mean = total / weight
        spread = np.maximum(fade * spread + squares - total * mean, 0)
        after[f"mean.{t.name}"] = (centre[:, 0] + mean[:, -1]).reshape(streams, *t.shape)
        after[f"spread.{t.name}"] = spread[:, -1].reshape(streams, *t.shape).copy()
        y: Array = ((x - mean) / np.sqrt(spread / weight + self.eps)).reshape(given.shape)
        if early.any():
            y = np.where(early.reshape(streams, size, *(1 for _ in t.shape)), self._early(t.name, given), y)
        return y

    def _early(self, name: str, given: Array) -> Array:
        """Return the output of time steps in the warm-up."""
        if name not in self.before:
            return np.zeros_like(given)
        mean, scale = self.before[name]
        early: Array = (given if mean is None else given - mean) * scale
        return early


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"normalize": normalize}
