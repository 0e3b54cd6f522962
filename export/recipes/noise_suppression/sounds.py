"""Speech and noise to train and to measure on: mixtures at a given ratio, with the speech alone beside each.

The speech is that of the recipe speech_activity, from Debian packages. The telephone prompts were recorded at
8 kHz, so that they hold nothing above 4 kHz. Two things keep this from flattering the results:

- In training, half of the examples have a made upper band, from the rectified sound (J. Makhoul and
  M. Berouti, High-frequency regeneration in speech coding systems, 1979). The others have none.
- The noise has the band of its speech. Otherwise a filter that removes everything above 4 kHz would win 3 dB.

There is one voice in the prompts. Training plays it slower and faster, so that the network does not learn its
pitch by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measured import Say
from speech_activity import recordings

from runnel.spec import Array

from . import noises
from .network import HOP, RATE

PROMPTS, NAMES = "telephone prompts", "loudspeakers named"
RECORDED = "recorded"  # the noise of alsa-utils, of which nothing is used in training
LEAST_RATIO, MOST_RATIO = -5.0, 15.0  # dB, in training
_SHORTEST = 1.0  # seconds of a prompt that is used
_HELD_OUT = 5  # every fifth recording
_SLOWEST, _FASTEST = 0.8, 1.25  # as training plays the voice
_LOUDEST, _QUIETEST = -15.0, -35.0  # dB of full scale: the root mean square of the speech
_WEAKEST, _STRONGEST = 0.02, 0.3  # a made upper band, as a part of the speech
_EDGE = 3500.0  # Hz: from there on a telephone has nothing


@dataclass(frozen=True)
class Speech:
    """Recordings at 16 kHz, (samples,) each."""

    train: list[Array]  # telephone prompts
    upper: list[Array]  # a made upper band for each of them
    prompts: list[Array]  # held out, and to make the babble of
    names: list[Array]  # another voice, recorded at 48 kHz, held out altogether
    noise: Array


@dataclass(frozen=True)
class Mixture:
    """(samples,) float32 each, of whole hops."""

    noisy: Array
    clean: Array


def load(say: Say, most: int | None = None) -> Speech:
    """Return the recordings, at most `most` of the telephone prompts."""
    files = recordings.sets(say)
    train: list[Array] = []
    upper: list[Array] = []
    prompts: list[Array] = []
    for path in files[PROMPTS]:
        sound, rate = recordings.read(path)
        if len(sound) < _SHORTEST * rate or "silence" in path.parts:
            continue
        low = recordings.at_16k(sound, rate)
        if (len(train) + len(prompts)) % _HELD_OUT == 0:
            prompts.append(low)
        else:
            train.append(low)
            upper.append(_upper(low))
        if most is not None and len(train) + len(prompts) >= most:
            break
    voice = [path for path in files[NAMES] if "Noise" not in path.name]
    return Speech(train, upper, prompts, [_read(path) for path in voice], _noise(files[NAMES]))


def _read(path: Path) -> Array:
    return recordings.at_16k(*recordings.read(path))


def _noise(files: Sequence[Path]) -> Array:
    [path] = [path for path in files if "Noise" in path.name]
    return _read(path)


def _upper(low: Array) -> Array:
    """A made upper band: that of the rectified sound, as strong as the sound itself."""
    spectrum = np.fft.rfft(np.abs(np.diff(low, prepend=0.0)))
    spectrum[: int(_EDGE * len(low) / RATE)] = 0
    made: Array = noises.unit(np.fft.irfft(spectrum, len(low))) * np.sqrt(np.mean(low**2))
    return made.astype(np.float32)


def draw(speech: Speech, random: np.random.Generator, samples: int) -> Mixture:
    """A mixture to train with."""
    wide = random.random() < 0.5
    clean = _row(speech, random, samples, random.uniform(_WEAKEST, _STRONGEST) if wide else 0.0)
    kinds = random.choice(list(noises.KINDS), 1 + (random.random() < 0.3), replace=False)
    noise = sum(random.uniform(0.3, 1) * noises.make(k, random, samples, speech.train) for k in kinds)
    ratio = random.uniform(LEAST_RATIO, MOST_RATIO)
    return mix(clean, np.asarray(noise), ratio, random.uniform(_QUIETEST, _LOUDEST), wide)


def _row(speech: Speech, random: np.random.Generator, samples: int, upper: float) -> Array:
    """Prompts in a row, from a random place of the first, with a made upper band of that strength."""
    row: list[Array] = []
    while sum(map(len, row)) < samples:
        which = int(random.integers(len(speech.train)))
        sound = speech.train[which] + upper * speech.upper[which]
        sound = noises.unit(noises.at_speed(sound, random.uniform(_SLOWEST, _FASTEST)))
        row.append(sound if row else sound[random.integers(0, len(sound) // 2) :])
    joined: Array = np.concatenate(row)[:samples]
    return joined


def held_out(speech: Speech, wide: bool, kind: str, ratio: float, seconds: float, seed: int) -> Mixture:
    """A mixture to measure with: recordings and noise that training had nothing of.

    `wide`: the other voice with noise up to 8 kHz; otherwise telephone prompts with noise up to 4 kHz.
    """
    random = np.random.default_rng(seed)
    samples = int(seconds * RATE) // HOP * HOP
    voices = speech.names if wide else speech.prompts
    row: list[Array] = []
    while sum(map(len, row)) < samples:
        row.append(noises.unit(voices[random.integers(len(voices))]))
    clean = np.concatenate(row)[:samples]
    if kind == RECORDED:
        noise = np.roll(np.resize(speech.noise, samples), random.integers(samples))
    else:
        noise = noises.make(kind, random, samples, speech.prompts)
    return mix(clean, noise, ratio, (_QUIETEST + _LOUDEST) / 2, wide)


def mix(clean: Array, noise: Array, ratio: float, level: float, wide: bool) -> Mixture:
    """`ratio`: dB of the speech over the noise. `level`: dB of the speech below full scale."""
    noise = noises.unit(noise if wide else _narrow(noise)) * 10 ** (-ratio / 20)
    gain = 10 ** (level / 20)
    clean = noises.unit(clean) * gain
    return Mixture((clean + noise * gain).astype(np.float32), clean.astype(np.float32))


def _narrow(noise: Array) -> Array:
    """Nothing above 4 kHz, as a sound that was recorded at 8 kHz."""
    spectrum = np.fft.rfft(noise)
    spectrum[len(spectrum) // 2 :] = 0
    cut: Array = np.fft.irfft(spectrum, len(noise))
    return cut
