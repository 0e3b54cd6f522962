"""Mono: one channel from several, y[t] = the mean of x[t, c] over the chosen channels c.

Units are the input's. Latency 0.
"""

from __future__ import annotations

import numpy as np

import runnel
from runnel.batch import RowStage
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Signal, TensorSpec
from runnel.stage import Chunk


class Mono(RowStage):
    """Make one channel from several.

    Input: a float array (T, channels). Output: (T,) under the same name, in the same dtype: the mean of
    `channels`, which are counted from 0, or of all. `of` names the array if several have channels; other
    arrays pass unchanged. A NaN in a chosen channel passes. Latency 0.

    Raises PipelineError if no array, or several and no `of`, has channels, and for channels that do not exist
    or are named twice.
    """

    name = "mono"

    def __init__(self, inputs: Signal, channels: list[int] | None = None, of: str | None = None) -> None:
        fit = [
            t for t in inputs.tensors if np.dtype(t.dtype).kind == "f" and len(t.shape) == 1 and t.shape[0]
        ]
        if of is not None:
            fit = [t for t in fit if t.name == of]
        if len(fit) != 1:
            which = f"'of' is {of!r}" if of is not None else "'of' must name one" if fit else "there is none"
            raise PipelineError(
                f"mono takes a float array of shape (T, channels); {which}, and {inputs} arrive"
            )
        (tensor,) = fit
        count = tensor.shape[0]
        self._channels = list(range(count)) if channels is None else list(channels)
        good = all(0 <= c < count for c in self._channels)
        if not good or not self._channels or len(set(self._channels)) < len(self._channels):
            raise PipelineError(
                f"mono: channels must be some of 0..{count - 1}, each once, since {tensor} arrives, "
                f"not {channels}"
            )
        self._name = tensor.name
        self._share = np.dtype(tensor.dtype).type(1 / len(self._channels))
        self.inputs = inputs
        made = [TensorSpec(t.name, t.dtype) if t is tensor else t for t in inputs.tensors]
        self.outputs = Signal(tuple(made), inputs.rate)

    def rows(self, arrays: Chunk) -> Chunk:
        given = arrays[self._name]
        # One addition per channel: numpy's mean over a short last axis takes ten times as long.
        total = given[..., self._channels[0]].copy()
        for channel in self._channels[1:]:
            total += given[..., channel]
        total *= self._share
        return {**arrays, self._name: total}


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"mono": Mono}
