"""Log mel energies of short frames, as speech recognisers take them (Kaldi's "fbank").

Each frame of `frame_ms`, one every `hop_ms`, goes through

    x = scale * samples                 x -= mean(x)
    y[0] = (1 - a) x[0]                 y[i] = x[i] - a x[i-1]         a: the pre-emphasis
    S = |FFT(window * y)| ** 2          over n_fft points, zeros after the frame
    out[j] = ln(max(floor, sum over f of S[f] * filter[j, f]))

with the window and the mel filters of `_spectrum.py`. (S. Davis and P. Mermelstein, IEEE Trans. ASSP 28,
1980; D. Povey et al., The Kaldi speech recognition toolkit, 2011, whose order of steps this is, dither left
out.) All arithmetic is in float32: on speech, logarithms within 3e-5 of float64's, where Kaldi's own float32
is within 6e-5; float64 would take a third longer.
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

MAX_FFT = 2**15  # points: 0.7 s at 48 kHz, beyond any frame of speech; bounds the tables
MAX_MELS = 1024  # bounds the tables
BLOCK = 256  # frames at once: what they take stays in the cache, however long a chunk
FEW = 8  # frames up to which a product for each is faster than one for all: a live chunk has that many
FLOOR = 2.0**-23  # the spacing of float32 at 1, as Kaldi has it


class LogMel(Framed):
    """Turn sound into log mel energies.

    Input: one float32 array of one sample a time step, (T,), at a known rate. Output: (rows, n_mels) float32
    under the same name, a row every `hop_ms`; natural logarithms. Frames and hops are whole numbers of
    samples, rounded down.

    `scale` multiplies the samples: 32768 where a model was trained on 16-bit numbers and samples lie in
    -1..1. `high_hz` at or below 0 is counted from half the rate. `n_fft` is the next power of two that holds
    a frame where it is not given. `power` = false takes magnitudes instead of their squares. `snip_edges` =
    false puts frame k around the middle of hop k, and mirrors the samples at both ends; with it, what is left
    at the end is dropped. Latency: frame - hop samples, about half of that without `snip_edges`.

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
        """Everything but `outputs`, under the name of the stage that it is made for."""
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
            ("floor", floor, 1e-37 <= floor < math.inf),  # below, it is no normal float32
            ("scale", scale, 1e-6 <= scale <= 1e6),
        ):
            if not good:
                ranges = {"pre_emphasis": "in 0..1", "scale": "in 1e-6..1e6", "floor": "at least 1e-37"}
                raise PipelineError(f"{name}: {what} must be {ranges.get(what, 'above 0')}, not {value:g}")
        # A hair more, since 0.1 ms at 44100 Hz is 4.41 samples, but 1.1 ms at 10 kHz is not 10.999.
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
        """A row for each frame, float32: (streams, n, window) to (streams * n, n_mels)."""
        return self.log_energies(self.centered(frames))

    def centered(self, frames: Array) -> Array:
        """The frames without their mean, if that is asked for: (streams, n, window)."""
        if self._mean is None:
            return frames
        return np.asarray(frames - np.add.reduce(frames, axis=-1, keepdims=True) * self._mean)

    def log_energies(self, frames: Array) -> Array:
        """From centered frames (streams, n, window) to (streams * n, n_mels)."""
        streams, count, size = frames.shape
        padded = np.zeros((streams * count, self._n_fft), np.float32)  # rfft's own padding takes longer
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
        energy = np.asarray(energy, np.float32)  # as the FFT's lines are, but numpy 1's knows only float64
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
