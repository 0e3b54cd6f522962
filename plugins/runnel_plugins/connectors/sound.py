"""Sound files, by libsndfile: WAV, FLAC, OGG, AIFF. Floats are in -1..1; a channel is a column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from runnel import Signal, Sink, Source, TensorSpec, hookimpl
from runnel.columns import only_tensor
from runnel.errors import UsageError
from runnel.files import OutputFile, library, regular, warn
from runnel.hookspecs import SinkFactory, SourceFactory
from runnel.stage import Chunk

_DTYPES = ("float32", "float64", "int16", "int32")  # dtypes that libsndfile converts to


class Sound(Source):
    """Read a sound file at its own rate. `columns`: the channels, counted from 1, in that order."""

    def __init__(self, signal: Signal, path: Path, columns: list[str] | None = None) -> None:
        regular(path, "sound")
        soundfile = library("soundfile", f"{path}: sound files", "audio")
        tensor = only_tensor(str(path), signal)
        if tensor.dtype not in _DTYPES or len(tensor.shape) > 1:
            raise UsageError(f"{path}: the pipeline takes {tensor}, which a sound file cannot give")
        try:
            self._sound = soundfile.SoundFile(path)
        except soundfile.LibsndfileError as error:
            raise UsageError(f"{path}: not a sound file that libsndfile reads: {error}") from None
        try:
            self._check(signal, path)
            self._picked = self._channels(signal, path, columns)
        except BaseException:
            self._sound.close()
            raise
        self._tensor = tensor
        self._errors = soundfile.LibsndfileError
        self._path = path
        self.steps, self.rate = self._sound.frames, float(self._sound.samplerate)

    def _check(self, signal: Signal, path: Path) -> None:
        (tensor,) = signal.tensors
        subtype, rate = self._sound.subtype, float(self._sound.samplerate)
        if tensor.dtype.startswith("int") and subtype in ("FLOAT", "DOUBLE"):
            raise UsageError(f"{path}: holds {subtype} samples in -1..1, but the pipeline takes {tensor}")
        if signal.rate is None:
            warn(
                f"the pipeline states no rate; {path} is {rate:g} Hz: say rate under [model] (or export with "
                "rate=)"
            )
        elif rate != signal.rate:
            raise UsageError(
                f"{path}: {rate:g} Hz, but the pipeline takes {signal.rate:g} Hz: convert the file first, "
                f"for example sox {path} -r {signal.rate:g} out.wav, or let the pipeline resample, by rate = "
                f'{rate:g} under [input] and, under [[before]], use = "resample", rate = {signal.rate:g}'
            )

    def _channels(self, signal: Signal, path: Path, columns: list[str] | None) -> list[int]:
        (tensor,) = signal.tensors
        channels = self._sound.channels
        numbers = [str(n) for n in range(1, channels + 1)]
        for column in columns or ():
            if column not in numbers:
                raise UsageError(f"{path}: no channel {column!r}; it has the channels 1 to {channels}")
        picked = [int(column) - 1 for column in columns or numbers]
        wanted = tensor.shape[0] if tensor.shape else 1
        if channels < wanted:
            raise UsageError(
                f"{path}: the pipeline takes {wanted} numbers a time step ({tensor}), and the file has "
                f"{channels} channel{'s' * (channels > 1)}"
            )
        if len(picked) != wanted:
            raise UsageError(
                f"{path}: {len(picked)} of its {channels} channels are chosen, but the pipeline takes "
                f"{wanted} ({tensor}): choose them with --columns, for example --columns 1"
                f"{_mixed(tensor, channels)}"
            )
        return picked

    def chunks(self, block: int) -> Iterator[Chunk]:
        tensor = self._tensor
        while True:
            try:
                frames = self._sound.read(block, dtype=tensor.dtype, always_2d=True)
            except self._errors as error:
                raise UsageError(f"{self._path}: damaged: {error}") from None
            if not len(frames):
                return
            yield {tensor.name: np.ascontiguousarray(frames[:, self._picked]).reshape(-1, *tensor.shape)}

    def close(self) -> None:
        self._sound.close()


def _mixed(tensor: TensorSpec, channels: int) -> str:
    """Return advice for mixing the channels into one in the pipeline file."""
    if tensor.shape or not tensor.dtype.startswith("float"):
        return ""
    mixed = f'shape = [{channels}] under [input] and, under [[before]], use = "mono"'
    return f", or let the pipeline mix them: {mixed}"


class Wav(Sink):
    """Write a sound file of one float32 or int16 output at its rate: float32 stays float32."""

    format = "WAV"
    floats = True  # whether the format holds floats

    def __init__(self, signal: Signal, path: Path) -> None:
        soundfile = library("soundfile", f"{path}: sound files", "audio")
        tensor = signal.tensors[0]
        if len(signal.tensors) != 1 or tensor.dtype not in ("float32", "int16") or len(tensor.shape) > 1:
            raise UsageError(
                f"{path}: a sound file holds one float32 or int16 array of one or more channels, but the "
                f"pipeline gives {signal}: write a table or a .npy"
            )
        if not signal.rate or signal.rate != int(signal.rate):
            raise UsageError(
                f"{path}: a sound file needs a whole sample rate, but the pipeline's output has "
                f"{f'{signal.rate:g} Hz' if signal.rate else 'none'}: write a table or a .npy"
            )
        channels = tensor.shape[0] if tensor.shape else 1
        subtype = "FLOAT" if tensor.dtype == "float32" and self.floats else None
        self._name = tensor.name
        self._out = OutputFile(path, seek=True)
        try:
            self._sound = soundfile.SoundFile(
                self._out.file, "w", int(signal.rate), channels, subtype, format=self.format
            )
        except BaseException as error:
            self._out.close(False)
            if isinstance(error, soundfile.LibsndfileError | ValueError):
                raise UsageError(
                    f"{path}: libsndfile cannot write that: {channels} channels, {signal.rate:g} Hz: {error}"
                ) from None
            raise

    def write(self, chunk: Chunk) -> None:
        self._sound.write(chunk[self._name])

    def close(self, whole: bool) -> None:
        try:
            self._sound.close()  # writes the length
        except BaseException:
            self._out.close(False)
            raise
        self._out.close(whole)


class Flac(Wav):
    """Write a FLAC file of one float32 (in -1..1, stored in 16 bits) or int16 output at its rate."""

    format, floats = "FLAC", False


class Ogg(Wav):
    """Write an OGG Vorbis file (lossy) of one float32 (in -1..1) or int16 output at its rate."""

    format, floats = "OGG", False


class Aiff(Wav):
    """Write an AIFF file of one float32 or int16 output at its rate: float32 stays float32."""

    format = "AIFF"


@hookimpl
def runnel_sources() -> Mapping[str, SourceFactory]:
    return dict.fromkeys(("wav", "flac", "ogg", "aiff"), Sound)


@hookimpl
def runnel_sinks() -> Mapping[str, SinkFactory]:
    return {"wav": Wav, "flac": Flac, "ogg": Ogg, "aiff": Aiff}
