"""A small noise suppressor from waveform to waveform: spectrum, mask, and the inverse of the spectrum.

It is a convolutional encoder and decoder over frequencies with a recurrent layer in between, as in K. Tan
and D. Wang, A convolutional recurrent neural network for real-time speech enhancement, 2018. It is smaller,
and it computes a mask, not a spectrum. A frame's mask depends on the frames before it and on `AHEAD` frames
after it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATE = 16000  # Hz
WINDOW, HOP = 320, 160  # samples: 20 ms and 10 ms
AHEAD = 1  # frames
FEATURES = 64
_CHANNELS = (8, 16, 24)
_QUIET = 1e-3  # added to a magnitude before the logarithm: below it everything is silence


class Suppressor(nn.Module):
    """Clean a waveform (batch, samples) of whole hops; the result has the same shape."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        first, second, third = _CHANNELS
        # A sine is not 0 at either end, so torch.istft need not be centred.
        self.register_buffer("window", torch.sin(math.pi * (torch.arange(WINDOW) + 0.5) / WINDOW))
        # (batch, channels, frames, bins): 161 bins become 81, then 41, then 21.
        self.down1 = nn.Conv2d(1, first, (1, 5), (1, 2), (0, 2))
        self.down2 = nn.Conv2d(first, second, (3, 3), (1, 2), (0, 1))
        self.down3 = nn.Conv2d(second, third, (1, 3), (1, 2), (0, 1))
        self.squeeze = nn.Conv2d(third, FEATURES, (1, 21))
        self.memory = nn.GRU(FEATURES, FEATURES, batch_first=True)
        self.unsqueeze = nn.ConvTranspose2d(FEATURES, third, (1, 21))
        self.up3 = nn.ConvTranspose2d(third, second, (1, 3), (1, 2), (0, 1))
        self.up2 = nn.ConvTranspose2d(second, first, (1, 3), (1, 2), (0, 1))
        self.up1 = nn.ConvTranspose2d(first, 1, (1, 5), (1, 2), (0, 2))

    def forward(self, noisy: Tensor) -> Tensor:
        if noisy.shape[1] % HOP:
            raise ValueError(f"{noisy.shape[1]} samples are not a whole number of hops of {HOP}")
        overlap = WINDOW - HOP
        padded = F.pad(noisy, (overlap, overlap))
        spectrum = torch.stft(padded, WINDOW, HOP, window=self.window, center=False, return_complex=True)
        cleaned = spectrum * self.mask(spectrum.abs())
        sound = torch.istft(cleaned, WINDOW, HOP, window=self.window, center=False)
        return sound[:, overlap:-overlap]

    def mask(self, magnitude: Tensor) -> Tensor:
        """Return a gain between 0 and 1 for each value of (batch, bins, frames)."""
        level = (magnitude + _QUIET).log().mT[:, None]
        one = F.elu(self.down1(level))
        two = F.elu(self.down2(F.pad(one, (0, 0, 2 - AHEAD, AHEAD))))
        three = F.elu(self.down3(two))
        inner = F.elu(self.squeeze(three))[..., 0].mT
        inner = self.memory(inner)[0] + inner
        three = F.elu(self.unsqueeze(inner.mT[..., None])) + three
        two = F.elu(self.up3(three)) + two
        one = F.elu(self.up2(two)) + one
        return torch.sigmoid(self.up1(one))[:, 0].mT
