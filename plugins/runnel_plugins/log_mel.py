"""Log mel energies of short frames, the usual input of speech recognisers (Kaldi's "fbank").

Each frame of `frame_ms`, one every `hop_ms`, is transformed by

    x = scale * samples                 x -= mean(x)
    y[0] = (1 - a) x[0]                 y[i] = x[i] - a x[i-1]         a: the pre-emphasis
    S = |FFT(window * y)| ** 2          over n_fft points, zeros after the frame
    out[j] = ln(max(floor, sum over f of S[f] * filter[j, f]))

with the window and the mel filters of `_spectrum.py`. (S. Davis and P. Mermelstein, IEEE Trans. ASSP 28,
1980; D. Povey et al., The Kaldi speech recognition toolkit, 2011, for the order of steps, without dither.)
All arithmetic is in float32: on speech, the logarithms are within 3e-5 of float64's, while Kaldi's own
float32 is within 6e-5; float64 would take a third longer.
"""

from __future__ import annotations

import math

import numpy as np

import runnel
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec

from ._framed import Framed, Padding
from ._spectrum import Function, mel_filters, window_function

MAX_FFT = 2**15  # points: 0.7 s at 48 kHz, longer than any frame of speech; bounds the tables
MAX_MELS = 1024  # bounds the tables
BLOCK = 256  # frames at once: their data stays in the cache, however long the chunk
FEW = 8  # up to this many frames, as in a live chunk, one product per frame is faster than one for all
FLOOR = 2.0**-23  # the spacing of float32 at 1, as in Kaldi


class LogMel(Framed):
    """Turn sound into log mel energies.

    Input: one float32 array with one sample per time step, (T,), at a known rate. Output: (frames, n_mels)
    float32 under the same name, one frame every `hop_ms`; natural logarithms. Frames and hops are whole
    numbers of samples, rounded down.

    `scale` multiplies the samples: 32768 if the model was trained on 16-bit numbers and samples lie in -1..1.
    If `high_hz` is 0 or negative, half the rate is added to it. `n_fft` defaults to the next power of two
    that holds a frame. `power` = false uses magnitudes instead of their squares. `snip_edges` = false puts
    frame k around the middle of hop k, and mirrors the samples at both ends; with `snip_edges`, an incomplete
    frame at the end is dropped. Latency: frame - hop samples, about half of that without `snip_edges`.

    Raises PipelineError for other inputs, an unknown rate, and options out of range; NonFiniteError for a NaN
    or an infinity in a chunk.
    """

    def __init__(
        self,
        inputs: Signal,
        frame_ms: float = 25.0,
        hop_ms: float = 10.0,
        n_mels: int = 80,
        low_hz: float = 20.0,
        high_hz: float = 0.0,
        n_fft: int | None = None,
        window: Function = "povey",
        pre_emphasis: float = 0.97,
        remove_dc: bool = True,
        power: bool = True,
        floor: float = FLOOR,
        snip_edges: bool = True,
        scale: float = 1.0,
    ) -> None:
        self._make(
            "log_mel", inputs, frame_ms, hop_ms, n_mels, low_hz, high_hz, n_fft, window, pre_emphasis,
            remove_dc, power, floor, snip_edges, scale,
        )  # fmt: skip
        (tensor,) = inputs.tensors
        self.outputs = Signal((TensorSpec(tensor.name, "float32", (n_mels,)),), self._rate)

    def _make(
        self,
        name: str,
        inputs: Signal,
        frame_ms: float,
        hop_ms: float,
        n_mels: int,
        low_hz: float,
        high_hz: float,
        n_fft: int | None,
        window: Function,
        pre_emphasis: float,
        remove_dc: bool,
        power: bool,
        floor: float,
        snip_edges: bool,
        scale: float,
    ) -> None:
        """Initialize all but `outputs`, for the stage called `name`."""
        for tensor in inputs.tensors:
            if (tensor.dtype, tensor.shape) != ("float32", ()):
                raise PipelineError(
                    f"{name} takes one float32 sample a time step, but {tensor} arrives: "
                    "'mono' makes one channel of several, 'cast' makes float32"
                )
        if inputs.rate is None:
            raise PipelineError(f"{name}: the rate of what comes in is not known: give [input] rate, in Hz")
        rate = inputs.rate
        for what, value, good in (
            ("frame_ms", frame_ms, 0 < frame_ms < math.inf),
            ("hop_ms", hop_ms, 0 < hop_ms < math.inf),
            ("pre_emphasis", pre_emphasis, 0 <= pre_emphasis <= 1),
            ("floor", floor, 1e-37 <= floor < math.inf),  # below, it is not a normal float32
            ("scale", scale, 1e-6 <= scale <= 1e6),
        ):
            if not good:
                ranges = {"pre_emphasis": "in 0..1", "scale": "in 1e-6..1e6", "floor": "at least 1e-37"}
                raise PipelineError(f"{name}: {what} must be {ranges.get(what, 'above 0')}, not {value:g}")
        # Slightly more, so that 1.1 ms at 10 kHz are 11 samples and not 10.
        size, hop = (int(min(rate * ms / 1000 + 1e-6, 2**40)) for ms in (frame_ms, hop_ms))
        padding: Padding = "none" if snip_edges else "mirror"
        super().__init__(name, inputs, size, hop, padding, "drop" if snip_edges else "fill")
        points = 2 ** (size - 1).bit_length() if n_fft is None else n_fft
        if not size <= points <= MAX_FFT:
            raise PipelineError(
                f"{name}: n_fft must be in {size}..{MAX_FFT}, from the frame's samples on, not {points}"
            )
        top = high_hz if high_hz > 0 else rate / 2 + high_hz
        if not 0 <= low_hz < top <= rate / 2:
            raise PipelineError(
                f"{name}: 0 <= low_hz < high_hz <= {rate / 2:g} Hz, half the rate, must hold, but low_hz is "
                f"{low_hz:g} and high_hz is {top:g}"
            )
        if not 1 <= n_mels <= MAX_MELS:
            raise PipelineError(f"{name}: n_mels must be in 1..{MAX_MELS}, not {n_mels}")
        self._n_fft = points
        self._filters = mel_filters(name, n_mels, points, rate, low_hz, top).astype(np.float32)
        self._floor = np.float32(floor)
        self._power = power
        self._scale = scale
        self._mean = np.float32(1 / size) if remove_dc else None
        # Scale, pre-emphasis and window in two tables: y[i] = now[i] x[i] - before[i] x[i-1].
        weights = scale * window_function(name, window, size)
        now, before = weights.copy(), pre_emphasis * weights[1:]
        now[0] *= 1 - pre_emphasis
        self._now, self._before = now.astype(np.float32), before.astype(np.float32)
        self._emphasised = pre_emphasis > 0

    def rows(self, frames: Array) -> Array:
        streams, count = frames.shape[:2]
        if streams * count <= BLOCK:
            return self.features(frames).reshape(streams, count, -1)
        out = np.empty((streams, count, *self.outputs.tensors[0].shape), np.float32)
        each = max(1, BLOCK // streams)
        for start in range(0, count, each):
            made = self.features(frames[:, start : start + each])
            out[:, start : start + each] = made.reshape(streams, -1, *out.shape[2:])
        return out

    def features(self, frames: Array) -> Array:
        """Return one row per frame, float32: (streams, n, window) to (streams * n, n_mels)."""
        return self.log_energies(self.centered(frames))

    def centered(self, frames: Array) -> Array:
        """Subtract the mean of each frame, if requested: (streams, n, window)."""
        if self._mean is None:
            return frames
        return np.asarray(frames - np.add.reduce(frames, axis=-1, keepdims=True) * self._mean)

    def log_energies(self, frames: Array) -> Array:
        """Transform centered frames (streams, n, window) to (streams * n, n_mels)."""
        streams, count, size = frames.shape
        padded = np.zeros((streams * count, self._n_fft), np.float32)  # rfft's own padding is slower
        shaped = padded.reshape(streams, count, self._n_fft)[..., :size]
        np.multiply(frames, self._now, out=shaped)
        if self._emphasised:
            shaped[..., 1:] -= frames[..., :-1] * self._before
        lines = np.fft.rfft(padded)
        real, imaginary = lines.real, lines.imag
        energy = real * real
        energy += imaginary * imaginary
        if not self._power:
            np.sqrt(energy, out=energy)
        energy = np.asarray(energy, np.float32)  # as the FFT's lines are, but numpy 1 returns float64
        made: Array
        if len(energy) <= FEW:
            made = (energy[:, None] @ self._filters)[:, 0]
        else:
            made = energy @ self._filters
        np.maximum(made, self._floor, out=made)
        np.log(made, out=made)
        return made


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"log_mel": LogMel}
