"""Silero VAD as a PyTorch module, with the weights of its own package.

The vendor publishes the network as ONNX and TorchScript files, and its weights as safetensors. Here the
network is ordinary PyTorch code. Each window passes a short-time Fourier magnitude (by convolution) and four
convolutions; an `nn.LSTM` runs over the windows; each window gets a probability. The code has no streaming
in it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from runnel import Framing

from .files import vendor_file

RATE = 16000  # Hz
FRAMING = Framing(window=576, hop=512)  # 64 samples of context before each 32 ms
_BINS = 129  # bins of a Fourier transform over 256 samples


class SileroVAD(nn.Module):
    """(batch, time, 576) float32 windows -> (batch, time, 1) probabilities of speech."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * _BINS, 256, stride=128, bias=False)  # real parts, imaginary parts
        self.conv1 = nn.Conv1d(_BINS, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final = nn.Linear(128, 1)

    def forward(self, frames: Tensor) -> Tensor:
        batch, time, window = frames.shape
        x = functional.pad(frames.reshape(batch * time, window), (0, 64), mode="reflect")
        x = x.reshape(batch * time, 5, 128)
        x = functional.linear(torch.cat([x[:, :4], x[:, 1:]], -1), self.stft_conv.weight[:, 0])
        x = (x[..., :_BINS] ** 2 + x[..., _BINS:] ** 2).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = _convolve(x, conv).relu()
        x, _ = self.lstm(x.reshape(batch, time, 128))
        probability: Tensor = self.final(x.relu()).sigmoid()
        return probability


def _convolve(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Compute a convolution of width 3 over (n, positions, channels) as one product of matrices.

    A window has one to four positions. In batches, this is several times as fast there as onnxruntime's
    convolution, with the same result.
    """
    x = functional.pad(x, (0, 0, 1, 1))
    stop, stride = x.shape[1] - 2, conv.stride[0]
    taps = torch.cat([x[:, i : i + stop : stride] for i in range(3)], -1)
    return functional.linear(taps, conv.weight.transpose(1, 2).flatten(1), conv.bias)


def load() -> SileroVAD:
    """Return the module with its trained weights, in eval mode."""
    from safetensors.torch import load_file

    weights = load_file(vendor_file("silero_vad_16k.safetensors"))
    names = {
        "lstm_cell.weight_ih": "lstm.weight_ih_l0",
        "lstm_cell.weight_hh": "lstm.weight_hh_l0",
        "lstm_cell.bias_ih": "lstm.bias_ih_l0",
        "lstm_cell.bias_hh": "lstm.bias_hh_l0",
        "final_conv.weight": "final.weight",
        "final_conv.bias": "final.bias",
    }
    renamed = {names.get(name, name): value for name, value in weights.items()}
    renamed["final.weight"] = renamed["final.weight"].squeeze(-1)  # a convolution of width 1 is a Linear
    module = SileroVAD()
    module.load_state_dict(renamed)
    return module.eval()


def example() -> Tensor:
    """Return windows of quiet noise, (2, 16, 576)."""
    return torch.randn(2, 16, FRAMING.window, generator=torch.Generator().manual_seed(0)) * 0.1
