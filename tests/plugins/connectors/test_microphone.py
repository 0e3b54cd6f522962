"""A microphone, with a stand-in for sounddevice, since test machines have no sound."""

from __future__ import annotations

import builtins
import sys
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from runnel import Signal, TensorSpec
from runnel.errors import UsageError
from runnel_plugins.connectors.microphone import Microphone

MONO = Signal((TensorSpec("x", "float32"),), 16000.0)


class PortAudioError(Exception):
    pass


class Stream:
    """Like sounddevice's InputStream: frames of shape (frames, channels), and whether some were lost."""

    made: list[dict[str, Any]]

    def __init__(self, **options: Any) -> None:
        if options["device"] == "none":
            raise ValueError("No input device matching 'none'")
        if options["samplerate"] == 1.0:
            raise PortAudioError("Invalid sample rate")
        self.made.append(options)
        self.options, self.at, self.open, self.started = options, 0, True, False

    def start(self) -> None:
        self.started = True

    def read(self, frames: int) -> tuple[np.ndarray, bool]:
        assert self.started
        if self.at >= 4000:
            raise PortAudioError("Device unavailable")
        channels = self.options["channels"]
        part = np.arange(self.at, self.at + frames)[:, None] + np.arange(channels) / 4
        self.at += frames
        return part.astype(self.options["dtype"]), self.at > 2000

    def close(self) -> None:
        self.open = False


@pytest.fixture
def sounddevice(monkeypatch: pytest.MonkeyPatch) -> type[Stream]:
    module = ModuleType("sounddevice")
    Stream.made = []
    module.InputStream, module.PortAudioError = Stream, PortAudioError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return Stream


def test_sound_at_the_pipelines_rate(sounddevice: type[Stream]) -> None:
    source = Microphone(Signal((TensorSpec("x", "float32", (2,)),), 16000.0), device=3)
    assert sounddevice.made == [{"samplerate": 16000.0, "device": 3, "channels": 2, "dtype": "float32"}]
    assert source.live
    assert source.rate == 16000.0
    first, second = islice(source.chunks(100), 2)
    assert first["x"].shape == (100, 2)
    assert second["x"][0].tolist() == [100, 100.25]
    source.close()
    assert not source._stream.open


def test_blocks_are_at_most_a_tenth_of_a_second_and_losses_are_reported(
    sounddevice: type[Stream], capsys: pytest.CaptureFixture[str]
) -> None:
    source = Microphone(MONO)
    chunks = list(source.chunks(10**6))
    source.close()
    assert [chunk["x"].shape for chunk in chunks] == [(1600,)] * 3
    told = capsys.readouterr().err
    assert "microphone: it is gone: Device unavailable" in told
    assert "sound was lost 2 times" in told


@pytest.mark.parametrize(
    ("signal", "options", "says"),
    [
        (Signal((TensorSpec("x", "float32"),)), {}, r"states no rate: say it, as in microphone:\?rate=16000"),
        (MONO, {"rate": 8000.0}, "rate is 8000 Hz, but the pipeline takes 16000 Hz"),
        (Signal((TensorSpec("x", "int64"),), 1.0), {}, "takes x: int64 .*which a microphone cannot give"),
        (Signal((TensorSpec("x", "float32"), TensorSpec("y", "float32"))), {}, "holds one array"),
        (MONO, {"device": "none"}, "'none' does not open .*No input device.* python -m sounddevice"),
        (Signal(MONO.tensors, 1.0), {}, "the default one does not open .*Invalid sample rate"),
    ],
)
def test_invalid_options_are_refused(
    sounddevice: type[Stream], signal: Signal, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        Microphone(signal, **options)


def test_error_for_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(
        UsageError, match=r"needs the package sounddevice .*pip install 'runnel\[microphone\]'"
    ):
        Microphone(MONO)
    monkeypatch.delitem(sys.modules, "sounddevice")
    found = builtins.__import__

    def without_portaudio(name: str, *rest: Any) -> Any:
        if name == "sounddevice":
            raise OSError("PortAudio library not found")
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_portaudio)
    with pytest.raises(UsageError, match=r"library PortAudio .*apt install libportaudio2"):
        Microphone(MONO)
