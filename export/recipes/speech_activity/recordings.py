"""Recorded human speech from Debian packages. The project contains none of it.

If apt is installed, `tests/recordings.sh` unpacks the packages into .recordings. alsa-utils has a voice that
names loudspeakers, and a noise, at 48 kHz. asterisk-core-sounds-en-wav has Allison Smith's telephone prompts,
at 8 kHz.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import soundfile
from measured import Say

from runnel.errors import RunnelError
from runnel.spec import Array

_ROOT = Path(__file__).parents[3]
_PLACES = (_ROOT / ".recordings", Path("/"))  # in the second if the packages are installed
_WITHIN = 600.0  # time-out of apt, seconds; it may fetch its lists first
_FOLDERS = {"loudspeakers named": "usr/share/sounds/alsa", "telephone prompts": "usr/share/asterisk/sounds"}


def sets(say: Say) -> dict[str, list[Path]]:
    """Return the files of each set, and fetch those that are missing. Raises RunnelError if that fails."""
    found = _found()
    if not all(found.values()):
        say("fetching recorded speech: tests/recordings.sh")
        script = ["sh", str(_ROOT / "tests" / "recordings.sh")]
        done = subprocess.run(script, capture_output=True, text=True, timeout=_WITHIN)
        say(f"  {done.stdout.strip() or done.stderr.strip()}")
        found = _found()
    missing = [_FOLDERS[name] for name, files in found.items() if not files]
    if missing:
        raise RunnelError(
            f"there is no recorded speech here: neither in {_ROOT / '.recordings'} nor installed is "
            f"{' or '.join(missing)}. They are in Debian's alsa-utils and asterisk-core-sounds-en-wav: "
            "install these, or run `make recordings` where apt is"
        )
    return found


def _found() -> dict[str, list[Path]]:
    # Skip a folder that was unpacked only in part.
    places = [place for place in _PLACES if place == Path("/") or (place / "complete").exists()]
    found: dict[str, list[Path]] = {}
    for name, folder in _FOLDERS.items():
        every = [sorted((place / folder).rglob("*.wav")) for place in places]
        found[name] = next(filter(None, every), [])
    return found


def read(path: Path) -> tuple[Array, int]:
    """Return ((samples,) float32, rate in Hz)."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.mean(axis=1), rate


def at_16k(samples: Array, rate: int) -> Array:
    """Resample by scipy, which shares no code with the stage `resample`."""
    from scipy.signal import resample_poly  # type: ignore[import-untyped]

    made: Array = resample_poly(samples, 16000, rate).astype(np.float32)
    return made
