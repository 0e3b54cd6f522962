"""Noises made here, each from a seeded generator: (samples,) float64 with a mean square of 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from runnel.spec import Array

from .network import RATE

VOICES = 5  # in babble
_CLICKS = 6.0  # a second, on average: fast typing

# (random numbers, samples, recordings for babble) -> noise
Noise = Callable[[np.random.Generator, int, Sequence[Array]], Array]


def white(random: np.random.Generator, samples: int, speech: Sequence[Array]) -> Array:
    return random.standard_normal(samples)


def pink(random: np.random.Generator, samples: int, speech: Sequence[Array]) -> Array:
    """Noise whose power falls with frequency, by an exponent between 0.7 and 1.6."""
    return _shaped(random.standard_normal(samples), random.uniform(0.7, 1.6))


def coloured(random: np.random.Generator, samples: int, speech: Sequence[Array]) -> Array:
    """Noise with a random spectrum that is smooth over an octave: engines, fans, streets."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    octave = np.log2(np.maximum(np.arange(len(spectrum)) * RATE / samples, 30.0))
    levels = np.interp(octave, np.arange(4, 14), random.uniform(-15, 15, 10))  # dB, from 16 Hz to 8 kHz
    made: Array = np.fft.irfft(spectrum * 10 ** (levels / 20), samples)
    return made


def hum(random: np.random.Generator, samples: int, speech: Sequence[Array]) -> Array:
    """A mains hum of 45 to 65 Hz with its harmonics, over a weak rumble."""
    time = np.arange(samples) / RATE
    base, fall = random.uniform(45, 65), random.uniform(0.5, 1.2)
    orders = np.arange(1, random.integers(8, 30))
    strength = random.uniform(0.3, 1.0, len(orders)) / orders**fall
    turns = np.outer(orders * base, time) + random.uniform(0, 1, (len(orders), 1))
    tones: Array = strength @ np.sin(2 * np.pi * turns)
    return tones + 0.1 * _shaped(random.standard_normal(samples), 1.5)


def clicks(random: np.random.Generator, samples: int, speech: Sequence[Array]) -> Array:
    """Keys of a keyboard: short bursts that ring, at random times, over weak noise."""
    made = 0.02 * random.standard_normal(samples)
    for start in random.integers(0, samples, max(2, random.poisson(_CLICKS * samples / RATE))):
        time = np.arange(min(samples - start, RATE // 20)) / RATE
        ring = np.sin(2 * np.pi * random.uniform(800, 5000) * time) + random.standard_normal(len(time))
        made[start : start + len(time)] += (
            random.uniform(0.3, 1) * np.exp(-time / random.uniform(0.002, 0.01)) * ring
        )
    return made


def babble(random: np.random.Generator, samples: int, speech: Sequence[Array]) -> Array:
    """Several voices at once, each slower or faster than it was recorded."""
    made = np.zeros(samples)
    for _ in range(VOICES):
        speed, gain = random.uniform(0.75, 1.3), random.uniform(0.5, 1)
        needed = int(samples * speed) + 2
        row: list[Array] = []
        while sum(map(len, row)) < needed:
            row.append(unit(speech[int(random.integers(len(speech)))]))
        voice = np.concatenate(row)
        at = random.integers(0, len(voice) - needed + 1)
        made += gain * at_speed(voice[at : at + needed], speed)[:samples]
    return made


KINDS: Mapping[str, Noise] = {
    "white": white,
    "pink": pink,
    "coloured": coloured,
    "hum": hum,
    "clicks": clicks,
    "babble": babble,
}


def make(kind: str, random: np.random.Generator, samples: int, speech: Sequence[Array]) -> Array:
    """`speech`: recordings that babble may be made of."""
    return unit(KINDS[kind](random, samples, speech))


def at_speed(sound: Array, speed: float) -> Array:
    """The sound as it is when played at another speed: pitch and resonances change with it."""
    places = np.arange(int((len(sound) - 1) / speed) + 1) * speed
    played: Array = np.interp(places, np.arange(len(sound)), sound)
    return played


def unit(sound: Array) -> Array:
    """The sound with a mean square of 1; silence stays silence."""
    scaled: Array = sound / max(float(np.sqrt(np.mean(np.square(sound)))), 1e-9)
    return scaled


def _shaped(white: Array, exponent: float) -> Array:
    """White noise whose power is made proportional to frequency ** -exponent."""
    spectrum = np.fft.rfft(white)
    frequency = np.maximum(np.arange(len(spectrum)) * RATE / len(white), 30.0)
    made: Array = np.fft.irfft(spectrum * frequency ** (-exponent / 2), len(white))
    return unit(made)
