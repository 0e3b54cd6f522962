"""How good a cleaned sound is, and what a classical filter makes of the same sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from runnel.spec import Array

from . import noises, sounds
from .network import HOP, WINDOW, Suppressor
from .sounds import RECORDED, Mixture, Speech

SETS = {sounds.PROMPTS: False, sounds.NAMES: True}  # held out: whether the set has frequencies above 4 kHz
RATIOS = (-5.0, 0.0, 5.0, 10.0, 15.0)
KINDS = (*noises.KINDS, RECORDED)
_FLOOR = 0.1  # the least gain of the classical filter, as is usual


@dataclass(frozen=True)
class Measured:
    """SI-SDR in dB, of one mixture."""

    wide: bool
    kind: str
    ratio: float
    noisy: float
    classical: float
    cleaned: float

    @property
    def better(self) -> float:
        return self.cleaned - self.noisy


def si_sdr(made: Array, clean: Array) -> float:
    """Scale-invariant signal-to-distortion ratio in dB.

    J. Le Roux, S. Wisdom, H. Erdogan and J. R. Hershey, SDR: half-baked or well done?, 2019.
    """
    made, clean = made.astype(np.float64), clean.astype(np.float64)
    part = clean * (made @ clean) / (clean @ clean)
    return float(10 * np.log10(part @ part / ((made - part) @ (made - part))))


def measure(network: Suppressor, speech: Speech, seconds: float, each: int, seed: int) -> list[Measured]:
    """`each`: mixtures of `seconds` for each set of recordings, kind of noise, and ratio."""
    found = []
    for wide in SETS.values():
        for kind in KINDS:
            for ratio in RATIOS:
                for number in range(each):
                    mixture = sounds.held_out(speech, wide, kind, ratio, seconds, seed + number)
                    made = clean(network, mixture.noisy)
                    values = (si_sdr(y, mixture.clean) for y in (mixture.noisy, wiener(mixture), made))
                    found.append(Measured(wide, kind, ratio, *values))
    return found


def clean(network: Suppressor, noisy: Array) -> Array:
    """Return what torch makes of the whole sound at once."""
    with torch.no_grad():
        made: Array = network(torch.from_numpy(noisy)[None])[0].numpy()
    return made


def wiener(mixture: Mixture) -> Array:
    """Return the output of a Wiener filter that is given the mean spectrum of the mixture's noise.

    A real filter must estimate that spectrum in the pauses.
    """
    noisy, noise = (_spectrum(x) for x in (mixture.noisy, mixture.noisy - mixture.clean))
    power = np.mean(np.abs(noise) ** 2, axis=0)
    gain = np.maximum(1 - power / np.maximum(np.abs(noisy) ** 2, 1e-12), _FLOOR)
    return _sound(noisy * gain, len(mixture.noisy))


def _spectrum(sound: Array) -> Array:
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, HOP), WINDOW)[::HOP]
    spectrum: Array = np.fft.rfft(frames * _WINDOW)
    return spectrum


def _sound(spectrum: Array, samples: int) -> Array:
    frames = np.fft.irfft(spectrum, WINDOW) * _WINDOW
    made = np.zeros(samples + 2 * HOP)
    for number, frame in enumerate(frames):
        made[number * HOP : number * HOP + WINDOW] += frame
    return made[HOP:-HOP]


_WINDOW = np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW)


def mean(rows: Sequence[Measured], what: str) -> float:
    return float(np.mean([getattr(row, what) for row in rows]))
