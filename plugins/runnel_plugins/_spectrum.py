"""Tables for spectra: window functions and mel filters, for `frame`, `log_mel` and `mfcc`.

Windows of N samples: the weight of sample n is, with c(k) = cos(2 pi k n / (N - 1)),

    hann         0.5 - 0.5 c(1)
    hamming      0.54 - 0.46 c(1)
    blackman     0.42 - 0.5 c(1) + 0.08 c(2)
    povey        hann ** 0.85, Kaldi's own
    rectangular  1

(F. Harris, On the use of windows for harmonic analysis, Proc. IEEE 66, 1978; D. Povey et al., The Kaldi
speech recognition toolkit, 2011.) Mel filters: triangles of height 1 that are straight, and half overlap, on
the scale mel(f) = 1127 ln(1 + f / 700 Hz) (D. O'Shaughnessy, Speech Communication, 1987).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from runnel.errors import PipelineError
from runnel.spec import Array

Function = Literal["rectangular", "hann", "hamming", "blackman", "povey"]


def window_function(name: str, kind: str, length: int, periodic: bool = False) -> Array:
    """Return the weights of `kind` as float64 (length,).

    `periodic`: over N instead of N - 1, for spectra. `name`: the stage's name, for the PipelineError of an
    unknown kind.
    """
    if kind not in get_args(Function):
        raise PipelineError(f"{name}: the window function must be one of {get_args(Function)}, not {kind!r}")
    if length == 1 or kind == "rectangular":
        return np.ones(length)
    turn = 2 * np.pi * np.arange(length) / (length if periodic else length - 1)
    if kind == "hamming":
        return np.asarray(0.54 - 0.46 * np.cos(turn))
    if kind == "blackman":
        return np.asarray(0.42 - 0.5 * np.cos(turn) + 0.08 * np.cos(2 * turn))
    hann = 0.5 - 0.5 * np.cos(turn)
    return np.asarray(hann if kind == "hann" else hann**0.85)


def mel(hertz: Array | float) -> Array:
    return np.asarray(1127 * np.log1p(np.asarray(hertz) / 700))


def mel_filters(name: str, count: int, n_fft: int, rate: float, low: float, high: float) -> Array:
    """Return each filter's weights: float64 (n_fft // 2 + 1, count).

    A row is a line of a spectrum of `n_fft` points. The filters lie between `low` and `high` Hz. Raises
    PipelineError, with the stage's `name`, if a filter contains no line.
    """
    edges = np.linspace(mel(low), mel(high), count + 2)
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    lines = mel(np.arange(n_fft // 2 + 1) * rate / n_fft)[:, None]
    weights = np.minimum((lines - left) / (middle - left), (right - lines) / (right - middle)).clip(0)
    blank = np.flatnonzero(weights.sum(axis=0) == 0)
    if blank.size:
        raise PipelineError(
            f"{name}: {count} mel filters between {low:g} and {high:g} Hz are too many: filter {blank[0]} "
            f"holds none of the spectrum's lines, {rate / n_fft:g} Hz apart: fewer n_mels, or a larger n_fft"
        )
    return np.asarray(weights)
