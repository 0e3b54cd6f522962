"""Real recorded speech, from Debian's packages alsa-utils (48 kHz) and asterisk-core-sounds-en-wav (8 kHz)."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from runnel.spec import Array

RATE = 16000
FOLDERS = (Path("/usr/share/sounds/alsa"), Path("/usr/share/asterisk/sounds"))
PACKAGES = "alsa-utils asterisk-core-sounds-en-wav"


def speech(samples: int) -> Array | None:
    """So many samples of people speaking, float32 in -1..1 at 16 kHz; None where too little is installed."""
    parts, held = [], 0
    for path in _files():
        parts.append(_read(path))
        held += len(parts[-1])
        if held >= samples:
            return np.concatenate(parts)[:samples]
    return None


def _files() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (p for p in sorted(folder.rglob("*.wav")) if p.stem != "Noise")


def _read(path: Path) -> Array:
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2:
            return np.zeros(0, np.float32)
        rate, channels = file.getframerate(), file.getnchannels()
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
    mono = data.reshape(-1, channels).mean(axis=1)
    even: Array = resample_poly(mono, RATE, rate).astype(np.float32)
    return even
