"""Spectra, resampling and what is made of them: frames, strides, overlap-add."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..case import Built, Case

SAMPLES = {"time_axis": 2}


def sound(samples: int = 1600) -> Tensor:
    return 0.1 * torch.randn(1, samples)


def torchaudio(transform: str, **options: Any) -> Built:
    from torchaudio import transforms

    return Built(getattr(transforms, transform)(**options), sound())


def deltas() -> Built:
    from torchaudio.transforms import ComputeDeltas

    return Built(ComputeDeltas(), torch.randn(1, 40, 20), SAMPLES)


def julius(filter: str, *arguments: float, **options: Any) -> Built:
    import julius as package

    return Built(getattr(package, filter)(*arguments, **options), sound())


def speechbrain_stft() -> Built:
    from speechbrain.processing.features import STFT

    return Built(STFT(16000), sound())


class ThereAndBack(nn.Module):
    """A transform, a gain that depends on the spectrum, and the inverse."""

    def __init__(self, forth: nn.Module, back: nn.Module) -> None:
        super().__init__()
        self.forth, self.back = forth, back

    def forward(self, x: Tensor) -> Any:
        spectrum = self.forth(x)
        return self.back(spectrum * torch.sigmoid(spectrum))


def speechbrain_there_and_back() -> Built:
    from speechbrain.processing.features import ISTFT, STFT

    return Built(ThereAndBack(STFT(16000), ISTFT(16000)), sound(1601))


def asteroid_there_and_back(filters: str) -> Built:
    from asteroid_filterbanks import make_enc_dec

    pair = make_enc_dec(filters, n_filters=512, kernel_size=400, stride=160)
    return Built(ThereAndBack(*pair), sound()[None], SAMPLES)


def vocos() -> Built:
    from vocos.heads import ISTFTHead
    from vocos.models import VocosBackbone

    backbone = VocosBackbone(input_channels=100, dim=512, intermediate_dim=1536, num_layers=8)
    return Built(nn.Sequential(backbone, ISTFTHead(512, 1024, 256)), torch.randn(1, 100, 20), SAMPLES)


MEL = {"sample_rate": 16000, "n_fft": 400, "hop_length": 160, "n_mels": 80}
RESAMPLE = {"orig_freq": 48000, "new_freq": 16000}
BOTH = "one after the other"
CASES = (
    Case("Spectrogram", "torchaudio", lambda: torchaudio("Spectrogram", n_fft=400, hop_length=160), "first"),
    Case("Mel spectrogram", "torchaudio", lambda: torchaudio("MelSpectrogram", **MEL), "first"),
    Case("Resample, 48 to 16 kHz", "torchaudio", lambda: torchaudio("Resample", **RESAMPLE), "first"),
    Case("ComputeDeltas", "torchaudio", deltas, "first"),
    Case("Julius resampling, 4 to 5", "julius", lambda: julius("ResampleFrac", 4, 5), "first"),
    Case("Julius low-pass", "julius", lambda: julius("LowPassFilter", 0.1, fft=False), "first"),
    Case("SpeechBrain STFT", "speechbrain", speechbrain_stft, "first"),
    Case("SpeechBrain STFT, ISTFT", "speechbrain", speechbrain_there_and_back, "first", BOTH),
    Case("Asteroid STFT", "asteroid-filterbanks", lambda: asteroid_there_and_back("stft"), "first", BOTH),
    Case(
        "Asteroid free filters",
        "asteroid-filterbanks",
        lambda: asteroid_there_and_back("free"),
        "first",
        BOTH,
    ),
    Case("Vocos, mel 24 kHz", "vocos", vocos, "first", "backbone, then head"),
)
