"""Guitar amplifiers: valid convolutions behind one padding, and an LSTM."""

from __future__ import annotations

import torch

from ..case import Built, Case


def head(channels: int, *, bias: bool) -> dict[str, object]:
    return {"out_channels": channels, "kernel_size": 1, "bias": bias}


LAYER = {
    "kernel_size": 3, "dilations": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
    "activation": "Tanh", "gated": False,
}  # fmt: skip
STANDARD = {
    "layers_configs": [
        {"input_size": 1, "condition_size": 1, "channels": 16, "head": head(8, bias=False), **LAYER},
        {"input_size": 16, "condition_size": 1, "channels": 8, "head": head(1, bias=True), **LAYER},
    ],
    "head_scale": 0.02,
}


def wavenet() -> Built:
    from nam.models.wavenet import WaveNet

    return Built(WaveNet.init_from_config(STANDARD), 0.1 * torch.randn(1, 6000), ticks=9000)


def lstm() -> Built:
    from nam.models.recurrent import LSTM

    return Built(LSTM(hidden_size=24, num_layers=1), 0.1 * torch.randn(1, 100))


CASES = (
    Case("NAM WaveNet", "neural-amp-modeler", wavenet, "first"),
    Case("NAM LSTM", "neural-amp-modeler", lstm, "first"),
)
