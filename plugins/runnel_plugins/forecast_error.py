"""Errors of a forecast, computed when the forecast time has come.

    residual[t] = actual[t] - forecast[t - horizon]

in the unit of the series; for t < horizon there is no forecast, and the residual is NaN. Latency 0:
residual[t] describes sample t.
"""

from __future__ import annotations

import numpy as np

import runnel
from runnel.errors import PipelineError, SnapshotError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk, State

from . import _given
from ._choose import is_float, one, with_tensors

MAX_HORIZON = 65_536  # time steps: the number of forecasts held for each stream
RESIDUAL = "residual"


class ForecastError(runnel.StackedStage):
    """Compare each sample with the forecast that was made for it.

    Input: two float32 arrays (T, ...) of one shape in the same chunk, at the same times. `forecast`, whose
    time step t was made at time t for time t + horizon. `actual`, the series itself, which need not be named
    if only one other array has the forecast's shape. Output: all input arrays, and ``residual`` float32 (T,
    ...). Its first `horizon` time steps are NaN, because there was no forecast for them; `anomaly` and the
    sinks treat NaN as "none". Forecasts for times after the end of the stream are not compared.

    A model returns only its own outputs, not its input. So let it return both: ``return self.head(h), x`` at
    the end of `forward`, exported as y0 and y1, and in the pipeline file

        [model.outputs]
        y0 = "forecast"
        y1 = "x"

    Raises PipelineError if there are no two such arrays, if a `residual` arrives, or if the horizon is not in
    1..65536 or needs more than 16 MiB; NonFiniteError for a NaN or an infinity in a chunk.
    """

    name = "forecast_error"

    def __init__(
        self, inputs: Signal, forecast: str = "forecast", actual: str | None = None, horizon: int = 1
    ) -> None:
        made = one("forecast_error", inputs, forecast, is_float, "a float32 array", "forecast")

        def like_it(tensor: TensorSpec) -> bool:
            return is_float(tensor) and tensor.shape == made.shape and tensor.name != made.name

        what = f"a second float32 array of the shape of {made}"
        self._actual = one("forecast_error", inputs, actual, like_it, what, "actual").name
        if not 1 <= horizon <= MAX_HORIZON:
            raise PipelineError(f"forecast_error: horizon must be in 1..{MAX_HORIZON} steps, not {horizon}")
        _given.require_small(self.name, horizon, [made])
        self._forecast, self._shape, self._horizon = made.name, made.shape, horizon
        self.inputs = inputs
        residual = TensorSpec(RESIDUAL, "float32", made.shape)
        self.outputs = with_tensors("forecast_error", inputs, None, residual)

    def initial(self) -> Arrays:
        """The state.

        - `held`: float32 (horizon, ...), the last forecasts, oldest first, zeros before the first.
        - `made`: int64 (), the number of forecasts in `held`.
        """
        return {
            "held": np.zeros((self._horizon, *self._shape), np.float32),
            "made": np.array(0, np.int64),
        }

    def load(self, state: State, arrays: Arrays) -> State:
        after, made = super().load(state, arrays), int(arrays["made"])
        if not 0 <= made <= self._horizon:
            raise SnapshotError(f"forecast_error: {made} forecasts of a horizon of {self._horizon}")
        return after

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        actual = chunk[self._actual]
        steps = actual.shape[1]
        seen = np.concatenate([state["held"], chunk[self._forecast]], axis=1)
        residual: Array = np.subtract(actual, seen[:, :steps])
        # Time step t of the chunk meets forecast t of `seen`; the first horizon - made do not exist.
        none = np.arange(steps) < self._horizon - state["made"][:, None]
        residual[none] = np.nan
        made = np.minimum(state["made"] + steps, self._horizon)
        rows = {name: array.copy() for name, array in chunk.items()}
        return {"held": seen[:, steps:].copy(), "made": made}, {**rows, RESIDUAL: residual}


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"forecast_error": ForecastError}
