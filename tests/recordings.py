"""Recorded human speech, for tests and benchmarks: see recordings.sh. None of it is in the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_ROOTS = (Path(__file__).parent.parent / ".recordings", Path("/"))
REASON = "recorded speech is not here: `make recordings` fetches it where apt is"


def _files(folder: str, pattern: str) -> list[Path]:
    for root in _ROOTS:
        found = sorted((root / folder).rglob(pattern))
        if found:
            return found
    return []


def alsa() -> list[Path]:
    """A voice naming loudspeakers, 48 kHz; empty where not installed."""
    return [p for p in _files("usr/share/sounds/alsa", "*.wav") if "Noise" not in p.name]


def asterisk() -> list[Path]:
    """A telephone voice's prompts, 8 kHz; empty where not installed."""
    return _files("usr/share/asterisk/sounds", "*.wav")


def read(path: Path) -> tuple[np.ndarray, int]:
    """((samples,) float32, rate in Hz)."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.mean(axis=1), rate


def at_16k(path: Path) -> np.ndarray:
    """(samples,) float32 at 16 kHz, resampled by scipy."""
    from scipy.signal import resample_poly

    samples, rate = read(path)
    return resample_poly(samples, 16000, rate).astype(np.float32)
