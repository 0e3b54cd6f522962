"""A microphone, by sounddevice (PortAudio): live sound at the pipeline's rate, floats in -1..1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from runnel import Signal, Source, hookimpl
from runnel.columns import only_tensor
from runnel.errors import UsageError
from runnel.files import warn
from runnel.hookspecs import SourceFactory
from runnel.stage import Chunk

_DTYPES: Final = ("float32", "int16", "int32", "int8", "uint8")  # dtypes that PortAudio converts to
_AT_ONCE: Final = 0.1  # seconds of sound per read: a longer delay is audible


class Microphone(Source):
    """Record from a microphone at the pipeline's rate, one channel per number.

    `device`: its number, or a part of its name, as `python -m sounddevice` lists them; default: the system's
    default. `rate`: Hz, if the pipeline states none.
    """

    live = True

    def __init__(self, signal: Signal, device: int | str | None = None, rate: float | None = None) -> None:
        tensor = only_tensor("microphone", signal)
        if tensor.dtype not in _DTYPES or len(tensor.shape) > 1:
            raise UsageError(f"microphone: the pipeline takes {tensor}, which a microphone cannot give")
        if signal.rate and rate and rate != signal.rate:
            raise UsageError(f"microphone: rate is {rate:g} Hz, but the pipeline takes {signal.rate:g} Hz")
        self.rate = signal.rate or rate
        if not self.rate:
            raise UsageError("microphone: the pipeline states no rate: say it, as in microphone:?rate=16000")
        sounddevice = _library()
        self._tensor = tensor
        self._errors = sounddevice.PortAudioError
        self._lost = 0
        try:
            self._stream: Any = sounddevice.InputStream(
                samplerate=self.rate,
                device=device,
                channels=tensor.shape[0] if tensor.shape else 1,
                dtype=tensor.dtype,
            )
        except (self._errors, ValueError) as error:  # ValueError: no such device, or several
            shown = "the default one" if device is None else repr(device)
            raise UsageError(
                f"microphone: {shown} does not open for {tensor} at {self.rate:g} Hz: {error}; what there "
                "is: python -m sounddevice"
            ) from None

    def chunks(self, block: int) -> Iterator[Chunk]:
        tensor = self._tensor
        block = min(block, max(1, round(_AT_ONCE * (self.rate or 1.0))))
        self._stream.start()
        while True:
            try:
                frames, overflowed = self._stream.read(block)
            except self._errors as error:  # unplugged: end normally, so that the sound so far is not lost
                warn(f"microphone: it is gone: {error}")
                return
            self._lost += bool(overflowed)
            yield {tensor.name: np.ascontiguousarray(frames, tensor.dtype).reshape(-1, *tensor.shape)}

    def close(self) -> None:
        self._stream.close()
        if self._lost:
            warn(f"microphone: sound was lost {self._lost} times: the pipeline is slower than the sound")


def _library() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise UsageError(
            f"microphone: it needs the package sounddevice ({error}): pip install 'runnel[microphone]'"
        ) from None
    except OSError as error:
        raise UsageError(
            f"microphone: sounddevice needs the library PortAudio ({error}): apt install libportaudio2, brew "
            "install portaudio, or the like"
        ) from None
    return sounddevice


@hookimpl
def runnel_sources() -> Mapping[str, SourceFactory]:
    return {"microphone": Microphone}
