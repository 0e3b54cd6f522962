"""Files of the demo and the README, taken from installed packages: the vendor's model and a sound clip."""

from __future__ import annotations

import io
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path

import soundfile

from runnel.errors import UsageError
from runnel.spec import Array

MODEL = "silero_vad.onnx"
SPEECH = "speech.wav"


def vendor_file(name: str) -> Path:
    """Return a data file of the package silero-vad. Raises UsageError if it is not installed."""
    try:
        path = Path(str(distribution("silero-vad").locate_file(f"silero_vad/data/{name}")))
    except PackageNotFoundError:
        raise UsageError(
            "the package silero-vad, which holds the trained weights, is not installed: "
            "pip install 'runnel[demo]'"
        ) from None
    if not path.exists():
        raise UsageError(f"{path} is not in the installed silero-vad: runnel[demo] asks for version 6")
    return path


def clip() -> tuple[Array, int]:
    """Return (samples, rate) of the clip: 12 s at 16 kHz, spoken by espeak-ng, with a little noise."""
    with (files("runnel_export.demo") / "clip.ogg").open("rb") as file:
        samples, rate = soundfile.read(file, dtype="float32")
    return samples, rate


def put(folder: Path) -> list[tuple[Path, str]]:
    """Write Silero's own model and the clip into `folder`. Return each path with a description.

    No file is overwritten. If another file has one of these names, UsageError is raised and no file is
    written.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}: make it first")
    samples, rate = clip()
    sound = io.BytesIO()
    soundfile.write(sound, samples, rate, format="WAV", subtype="PCM_16")
    wanted = {
        MODEL: (vendor_file(MODEL).read_bytes(), "a speech detector, from the package silero-vad"),
        SPEECH: (sound.getvalue(), f"{len(samples) / rate:.0f} s of speech at {rate} Hz"),
    }
    missing = []
    for name, (data, _) in wanted.items():
        path = folder / name
        if not path.exists():
            missing.append(name)
        elif not path.is_file() or path.read_bytes() != data:
            raise UsageError(f"{path} is there already, and is another: move it, or name another folder")
    try:
        for name in missing:
            with (folder / name).open("xb") as file:
                file.write(wanted[name][0])
    except OSError as error:
        raise UsageError(f"{folder}: cannot write there: {error.strerror or error}") from error
    return [(folder / name, about) for name, (_, about) in wanted.items()]
