"""Softmax: scores to probabilities, p[i] = exp(x[i] / temperature) / sum over j of exp(x[j] / temperature).

The largest score is subtracted first, which only prevents an overflow. With `log`, the logarithm of p is
computed as x[i] - log(sum of exp(x[j])), which is exact for small p. (J. Bridle, Probabilistic interpretation
of feedforward classification network outputs, 1990.) No unit, latency 0.
"""

from __future__ import annotations

import numpy as np

import runnel
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Signal
from runnel.stage import Chunk

from ._choose import is_classes, one

LEAST_TEMPERATURE = 1e-6  # below it 1/temperature times a score leaves float32's range; use labels instead


class Softmax(runnel.RowStage):
    """Turn scores into probabilities, or their logarithms.

    Input: a float32 array (T, ..., n) with the scores of n classes on its last axis; `of` names it if there
    are several such arrays. Output: the same array with probabilities that sum to 1 over that axis, float32;
    other arrays pass. `temperature` above 1 makes them more alike, below 1 less. `log`: the natural logarithm
    of the probabilities. A NaN passes, to all classes of its time step; a score of -inf is a probability of
    0.

    Raises PipelineError if no such array arrives, or the temperature is not in 1e-6..1e6.
    """

    name = "softmax"

    def __init__(
        self, inputs: Signal, temperature: float = 1.0, log: bool = False, of: str | None = None
    ) -> None:
        self._of = one(
            "softmax", inputs, of, is_classes, "a float32 array with classes on its last axis"
        ).name
        if not LEAST_TEMPERATURE <= temperature <= 1 / LEAST_TEMPERATURE:
            raise PipelineError(f"softmax: temperature must be in 1e-6..1e6, not {temperature:g}")
        self.inputs = self.outputs = inputs
        self._scale = np.float32(1 / temperature)
        self._plain = temperature == 1
        self._log = log

    def rows(self, arrays: Chunk) -> Chunk:
        scores = arrays[self._of]
        # Non-finite scores may give NaN, which is the documented result: no warning in a server's log.
        with np.errstate(invalid="ignore", over="ignore"):
            made = scores - np.maximum.reduce(scores, -1, keepdims=True)
            if not self._plain:
                made *= self._scale
            if self._log:
                made -= np.log(np.add.reduce(np.exp(made), -1, keepdims=True))
            else:
                np.exp(made, out=made)
                made /= np.add.reduce(made, -1, keepdims=True)
        return {**arrays, self._of: made}


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"softmax": Softmax}
