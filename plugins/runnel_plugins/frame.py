"""Framing: cut a signal into frames, y[k, i] = w[i] * x[k*hop - lead + i], for i in 0 .. window - 1.

Window, hop and lead are in samples. `_framed.py` defines the paddings, with their lead, their end and their
latency; `_spectrum.py` has the window functions w. (L. Rabiner and R. Schafer, Digital Processing of Speech
Signals, 1978, chapter 4.)
"""

from __future__ import annotations

import numpy as np

import runnel
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec

from ._framed import Framed, Last, Padding
from ._spectrum import Function, window_function


class Frame(Framed):
    """Cut a signal into overlapping frames, one per output time step.

    Input: one array (T, ...) of any dtype. Output: (frames, window, ...) of the same dtype and name, one
    frame for each `hop` samples; `hop` defaults to `window`. `padding` defines the samples before the first:
    ``none`` (the first frame waits for a whole window), zeros so that each hop makes a frame at once
    (``left``), zeros so that sample k*hop is in the middle of frame k (``center``), or the first samples
    mirrored (``mirror``). `last`: whether an incomplete frame at the end is padded, or dropped. `function`
    weighs the samples of a float32 frame; `periodic` computes it over window samples instead of window - 1,
    for spectra. Latency: window - hop samples without padding, 0 with ``left``.

    Raises PipelineError for several arrays, a window or a hop out of range, and a function for arrays that
    are not float32; NonFiniteError for a NaN or an infinity in a chunk.
    """

    def __init__(
        self,
        inputs: Signal,
        window: int,
        hop: int | None = None,
        padding: Padding = "none",
        last: Last = "fill",
        function: Function = "rectangular",
        periodic: bool = False,
    ) -> None:
        super().__init__("frame", inputs, window, window if hop is None else hop, padding, last)
        (tensor,) = inputs.tensors
        weights = window_function("frame", function, window, periodic).astype(np.float32)
        if function != "rectangular" and tensor.dtype != "float32":
            raise PipelineError(f"frame: function {function!r} takes float32, but {tensor} arrives")
        self._weights = None
        if function != "rectangular":
            self._weights = weights.reshape(window, *[1] * len(tensor.shape))
        self.outputs = Signal((TensorSpec(tensor.name, tensor.dtype, (window, *tensor.shape)),), self._rate)

    def rows(self, frames: Array) -> Array:
        if self._weights is None:
            return frames.copy()
        return np.asarray(frames * self._weights)


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"frame": Frame}
