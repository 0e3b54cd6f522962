"""Speech enhancement and separation, waveform to waveform or on spectra."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..bare import bare
from ..case import Built, Case


def demucs(hidden: int) -> Built:
    from denoiser.demucs import Demucs

    return Built(Demucs(hidden=hidden, normalize=False), 0.1 * torch.randn(1, 1, 2560), {"time_axis": 2})


def torchaudio_convtasnet() -> Built:
    from torchaudio.models import conv_tasnet_base

    return Built(conv_tasnet_base(), 0.1 * torch.randn(1, 1, 800), {"time_axis": 2})


def torchaudio_mask() -> Built:
    from torchaudio.models.conv_tasnet import MaskGenerator

    model = MaskGenerator(
        input_dim=512, num_sources=2, kernel_size=3, num_feats=128, num_hidden=512, num_layers=8,
        num_stacks=3, msk_activate="relu",
    )  # fmt: skip
    return Built(model, torch.randn(1, 512, 40), {"time_axis": 2})


def asteroid_convtasnet(norm: str) -> Built:
    from asteroid.models import ConvTasNet

    model = ConvTasNet(n_src=2, causal=True, norm_type=norm)
    return Built(model, 0.1 * torch.randn(1, 1, 800), {"time_axis": 2})


def asteroid_tdconvnet(norm: str) -> Built:
    from asteroid.masknn import TDConvNet

    model = TDConvNet(512, 2, causal=True, norm_type=norm)
    return Built(model, torch.randn(1, 512, 40), {"time_axis": 2})


def asteroid_lstm_masker() -> Built:
    from asteroid.masknn import LSTMMasker

    return Built(LSTMMasker(64, 2, bidirectional=False), torch.randn(1, 64, 20), {"time_axis": 2})


def asteroid_dprnn() -> Built:
    from asteroid.masknn import DPRNN

    return Built(DPRNN(64, 2, bidirectional=False), torch.randn(1, 64, 200), {"time_axis": 2})


def deepfilternet() -> Any:
    """The module of DeepFilterNet 3, configured as published."""
    module, config = bare("df.deepfilternet3"), bare("df.config")
    config.config.use_defaults(allow_reload=True)
    for name, value in PUBLISHED.items():
        config.config.set(name, value, type(value), "deepfilternet")
    for name, value in {"df_lookahead": 2, "df_order": 5}.items():
        config.config.set(name, value, int, "df")
    return module


PUBLISHED = {
    "conv_lookahead": 2, "conv_ch": 64, "emb_hidden_dim": 256, "emb_num_layers": 3, "df_hidden_dim": 256,
    "df_num_layers": 2, "df_gru_skip": "groupedlinear", "df_pathway_kernel_size_t": 5, "enc_concat": True,
    "linear_groups": 16, "enc_linear_groups": 32,
}  # fmt: skip


def deepfilternet_encoder() -> Built:
    example = {"feat_erb": torch.randn(1, 1, 20, 32), "feat_spec": torch.randn(1, 2, 20, 96)}
    return Built(deepfilternet().Encoder(), example, {"time_axis": 2})


class FilterDecoder(nn.Module):
    """The decoder of the filters, its second input with the time axis in front like the first's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, emb: Tensor, c0: Tensor) -> Any:
        return self.module(emb, c0.transpose(1, 2))


def deepfilternet_decoder() -> Built:
    example = {"emb": torch.randn(1, 20, 512), "c0": torch.randn(1, 20, 64, 96)}
    return Built(FilterDecoder(deepfilternet().DfDecoder()), example)


def deepfilternet_whole() -> Built:
    module = deepfilternet()
    filters = torch.rand(481, 32)
    net = module.DfNet(filters, filters.T.contiguous())
    example = {
        "spec": torch.randn(1, 1, 20, 481, 2), "feat_erb": torch.randn(1, 1, 20, 32),
        "feat_spec": torch.randn(1, 1, 20, 96, 2),
    }  # fmt: skip
    return Built(net, example, {"time_axis": 2})


CASES = (
    Case("Demucs, hidden 48", "denoiser", lambda: demucs(48), "first"),
    Case("Demucs, hidden 16", "denoiser", lambda: demucs(16), "first"),
    Case("torchaudio Conv-TasNet", "torchaudio", torchaudio_convtasnet, "never"),
    Case("torchaudio Conv-TasNet's mask", "torchaudio", torchaudio_mask, "never"),
    Case("Asteroid Conv-TasNet, cLN", "asteroid", lambda: asteroid_convtasnet("cLN"), "first"),
    Case("Asteroid TDConvNet, cLN", "asteroid", lambda: asteroid_tdconvnet("cLN"), "first"),
    Case("Asteroid Conv-TasNet, cgLN", "asteroid", lambda: asteroid_convtasnet("cgLN"), "second"),
    Case("Asteroid LSTM masker", "asteroid", asteroid_lstm_masker, "second"),
    Case("Asteroid DPRNN", "asteroid", asteroid_dprnn, "second"),
    Case("DeepFilterNet encoder", "deepfilternet", deepfilternet_encoder, "first"),
    Case("DeepFilterNet filter decoder", "deepfilternet", deepfilternet_decoder, "first", "axes swapped"),
    Case("DeepFilterNet", "deepfilternet", deepfilternet_whole, "first"),
)
