"""Neural codecs for sound: strides, transposed convolutions, a recurrent layer between them."""

from __future__ import annotations

import torch

from ..case import Built, Case

WAVE = {"time_axis": 2}


def encodec_slstm() -> Built:
    from encodec.modules import SLSTM

    return Built(SLSTM(512, 2), torch.randn(1, 512, 20), WAVE)


def encodec_residual(pad_mode: str) -> Built:
    from encodec.modules.seanet import SEANetResnetBlock

    block = SEANetResnetBlock(64, [3, 1], [1, 1], causal=True, pad_mode=pad_mode, true_skip=False)
    return Built(block, torch.randn(1, 64, 40), WAVE)


def encodec_encoder() -> Built:
    from encodec.modules import SEANetEncoder

    return Built(SEANetEncoder(causal=True), 0.1 * torch.randn(1, 1, 3200), WAVE)


def encodec_decoder() -> Built:
    from encodec.modules import SEANetDecoder

    return Built(SEANetDecoder(causal=True), torch.randn(1, 128, 20), WAVE)


MIMI = {
    "dimension": 512, "causal": True, "n_filters": 64, "n_residual_layers": 1, "compress": 2,
    "dilation_base": 2, "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3, "norm": "none",
    "pad_mode": "constant", "ratios": [8, 6, 5, 4], "true_skip": True,
}  # fmt: skip


def moshi_encoder() -> Built:
    from moshi.modules import SEANetEncoder

    return Built(SEANetEncoder(**MIMI), 0.1 * torch.randn(1, 1, 3840), WAVE, ticks=9600)


def moshi_decoder() -> Built:
    from moshi.modules import SEANetDecoder

    return Built(SEANetDecoder(**MIMI), torch.randn(1, 512, 8), WAVE)


def moshi_transformer() -> Built:
    from moshi.modules.transformer import StreamingTransformer

    model = StreamingTransformer(
        512,
        8,
        8,
        dim_feedforward=2048,
        causal=True,
        context=250,
        layer_scale=0.01,
        positional_embedding="rope",
    )
    return Built(model, torch.randn(1, 20, 512))


CASES = (
    Case("EnCodec SLSTM", "encodec", encodec_slstm, "today"),
    Case("EnCodec residual block, zeros", "encodec", lambda: encodec_residual("constant"), "today"),
    Case("EnCodec residual block", "encodec", lambda: encodec_residual("reflect"), "first"),
    Case("EnCodec encoder", "encodec", encodec_encoder, "first"),
    Case("EnCodec decoder", "encodec", encodec_decoder, "first"),
    Case("Mimi encoder", "moshi", moshi_encoder, "first"),
    Case("Mimi decoder", "moshi", moshi_decoder, "first"),
    Case("Mimi transformer", "moshi", moshi_transformer, "second"),
)
