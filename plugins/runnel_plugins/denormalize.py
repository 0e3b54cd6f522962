"""Inverse of a fixed `normalize`: y[t] = x[t] * std + mean.

Units: those of mean and std. Latency 0.
"""

from __future__ import annotations

import numpy as np

import runnel
from runnel.batch import RowStage
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Signal
from runnel.stage import Chunk

from . import _given


class Denormalize(RowStage):
    """Bring normalized numbers back to their own units.

    Each float array, or the one named `of`, is changed; other arrays pass. `mean` and `std`: a number, or one
    for each element of the last axis, as given to `normalize`. A NaN passes.

    Raises PipelineError if neither is given, for a std that is not above 0, and for lists that do not fit the
    arrays.
    """

    name = "denormalize"

    def __init__(
        self,
        inputs: Signal,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        of: str | None = None,
    ) -> None:
        if mean is None and std is None:
            raise PipelineError("denormalize: give mean and std, those of the normalize stage")
        self.inputs = self.outputs = inputs
        self._maps = []
        for t in _given.floats(self.name, inputs, of):
            scale = _given.per_feature(self.name, "std", 1.0 if std is None else std, t)
            if not (scale > 0).all():
                raise PipelineError(f"denormalize: std must be above 0, not {std!r}")
            shift = _given.per_feature(self.name, "mean", 0.0 if mean is None else mean, t)
            self._maps.append((t.name, scale, shift))

    def rows(self, arrays: Chunk) -> Chunk:
        made = dict(arrays)
        for name, scale, shift in self._maps:
            made[name] = np.multiply(arrays[name], scale)
            made[name] += shift
        return made


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"denormalize": Denormalize}
