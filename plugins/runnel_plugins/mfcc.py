"""Mel-frequency cepstral coefficients: the discrete cosine transform of `log_mel`'s output.

    c[k] = lift[k] * g[k] * sum over j of m[j] * cos(pi k (j + 1/2) / n_mels),   k in 0 .. n_ceps - 1

m are the log mel energies; g[0] = sqrt(1 / n_mels), and the other g[k] = sqrt(2 / n_mels); and lift[k] = 1 +
L/2 * sin(pi k / L) for a lifter L (1 for L = 0). With `use_energy`, c[0] is instead the log energy of the
frame: ln(max(floor, sum of x**2)), after the mean is subtracted, before pre-emphasis and window. (S. Davis
and P. Mermelstein, IEEE Trans. ASSP 28, 1980; B. Juang, L. Rabiner and J. Wilpon, IEEE Trans. ASSP 35, 1987,
for the lifter; the defaults are Kaldi's.)
"""

from __future__ import annotations

import numpy as np

import runnel
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec

from ._spectrum import Function
from .log_mel import FLOOR, LogMel


class Mfcc(LogMel):
    """Turn sound into mel-frequency cepstral coefficients.

    Input: one float32 array with one sample per time step, (T,), at a known rate. Output: (frames, n_ceps)
    float32 under the same name, one frame every `hop_ms`. `lifter` 0 leaves the coefficients unchanged. The
    other options, and the latency, are those of `log_mel`.

    Raises PipelineError for other inputs, an unknown rate, and options out of range; NonFiniteError for a NaN
    or an infinity in a chunk.
    """

    def __init__(
        self,
        inputs: Signal,
        n_ceps: int = 13,
        lifter: float = 22.0,
        use_energy: bool = True,
        frame_ms: float = 25.0,
        hop_ms: float = 10.0,
        n_mels: int = 23,
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
            "mfcc", inputs, frame_ms, hop_ms, n_mels, low_hz, high_hz, n_fft, window, pre_emphasis,
            remove_dc, power, floor, snip_edges, scale,
        )  # fmt: skip
        if not 1 <= n_ceps <= n_mels:
            raise PipelineError(f"mfcc: n_ceps must be in 1..{n_mels}, n_mels, not {n_ceps}")
        if not 0 <= lifter < float("inf"):
            raise PipelineError(f"mfcc: lifter must be at least 0, not {lifter:g}")
        (tensor,) = inputs.tensors
        self.outputs = Signal((TensorSpec(tensor.name, "float32", (n_ceps,)),), self._rate)
        self._transform = cosines(n_mels, n_ceps, lifter).astype(np.float32)
        self._use_energy = use_energy
        self._gain = np.float32(scale * scale)

    def features(self, frames: Array) -> Array:
        centered = self.centered(frames)
        made = self.log_energies(centered) @ self._transform
        if self._use_energy:
            energy = np.einsum("sni,sni->sn", centered, centered).ravel() * self._gain
            made[:, 0] = np.log(np.maximum(energy, self._floor))
        return made


def cosines(n_mels: int, n_ceps: int, lifter: float) -> Array:
    """Return the transform and the lifter as one table: float64 (n_mels, n_ceps)."""
    k = np.arange(n_ceps)
    table = np.cos(np.pi * k * (np.arange(n_mels)[:, None] + 0.5) / n_mels) * np.sqrt(2 / n_mels)
    table[:, 0] = np.sqrt(1 / n_mels)
    if lifter:
        table *= 1 + lifter / 2 * np.sin(np.pi * k / lifter)
    return np.asarray(table)


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"mfcc": Mfcc}
