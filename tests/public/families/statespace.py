"""State-space models, linear recurrences and their relatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..bare import bare
from ..case import Built, Case


def mamba(*, parallel: bool) -> Built:
    from mambapy.mamba import Mamba, MambaConfig

    return Built(Mamba(MambaConfig(d_model=64, n_layers=2, pscan=parallel)), torch.randn(1, 12, 64))


class MambaStep(nn.Module):
    """One block's `step` with its cache as two arguments."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, h: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, inputs) = self.block.step(x, (h, inputs))
        return y, h, inputs


def mamba_step() -> Built:
    from mambapy.mamba import MambaBlock, MambaConfig

    block = MambaBlock(MambaConfig(d_model=64, n_layers=1))
    states = {"h": torch.zeros(1, 128, 16), "inputs": torch.zeros(1, 128, 3)}
    return Built(MambaStep(block), torch.randn(1, 64), {"time_axis": None, "state": states})


def mingru(layer: str) -> Built:
    module = bare(f"minGRU_pytorch.{layer}")
    return Built(getattr(module, layer)(64), torch.randn(1, 20, 64))


def s5() -> Built:
    from s5 import S5

    return Built(S5(64, 64), torch.randn(1, 20, 64))


def rwkv() -> Built:
    from transformers.models.rwkv.modeling_rwkv import RwkvConfig, RwkvModel

    model = RwkvModel(RwkvConfig(vocab_size=200, hidden_size=64, num_hidden_layers=2))
    return Built(FirstHidden(model), torch.randint(0, 200, (1, 12)))


class FirstHidden(nn.Module):
    """A model of transformers: its last hidden state alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x, use_cache=False).last_hidden_state


class Positions(nn.Module):
    """RG-LRU takes the positions, which say where a sequence begins."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        self.module.recurrent_states = None
        return self.module(x, torch.arange(x.shape[1])[None].expand(x.shape[0], -1))


def rg_lru() -> Built:
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
        RecurrentGemmaConfig,
        RecurrentGemmaRglru,
    )

    config = RecurrentGemmaConfig(hidden_size=64, lru_width=64, num_attention_heads=4)
    model = RecurrentGemmaRglru(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Built(Positions(model), torch.randn(1, 12, 64))


def gateloop() -> Built:
    from gateloop_transformer import SimpleGateLoopLayer

    return Built(SimpleGateLoopLayer(64), torch.randn(1, 20, 64))


def xlstm(block: str) -> Built:
    from xlstm import (
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMBlockStack,
        xLSTMBlockStackConfig,
    )

    config = xLSTMBlockStackConfig(
        mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig()) if block == "mLSTM" else None,
        slstm_block=sLSTMBlockConfig(slstm=sLSTMLayerConfig(backend="vanilla")) if block == "sLSTM" else None,
        slstm_at=[0] if block == "sLSTM" else [],
        context_length=64,
        num_blocks=1,
        embedding_dim=64,
    )
    return Built(xLSTMBlockStack(config), torch.randn(1, 12, 64), ticks=41)


def awd_lstm() -> Built:
    module = bare("fastai.text.models.awdlstm")
    return Built(module.AWD_LSTM(1000, 400, 1152, 3), torch.randint(2, 1000, (1, 12)))


def cached_convolution() -> Built:
    import cached_conv

    cached_conv.use_cached_conv(True)
    model = nn.Sequential(cached_conv.Conv1d(8, 16, 3, padding=cached_conv.get_padding(3)), nn.ReLU())
    return Built(model, torch.randn(1, 8, 24), {"time_axis": 2})


CASES = (
    Case("Mamba block's step", "mambapy", mamba_step, "today", "cache as two arguments"),
    Case("Mamba, parallel scan", "mambapy", lambda: mamba(parallel=True), "second"),
    Case("Mamba, sequential", "mambapy", lambda: mamba(parallel=False), "second"),
    Case("minGRU", "minGRU-pytorch", lambda: mingru("minGRU"), "second"),
    Case("minLSTM", "minGRU-pytorch", lambda: mingru("minLSTM"), "second"),
    Case("S5", "s5-pytorch", s5, "second"),
    Case("RWKV", "transformers", rwkv, "second", "last hidden state"),
    Case("RecurrentGemma RG-LRU", "transformers", rg_lru, "second", "positions made"),
    Case("GateLoop", "gateloop-transformer", gateloop, "second"),
    Case("xLSTM, sLSTM block", "xlstm", lambda: xlstm("sLSTM"), "second"),
    Case("xLSTM, mLSTM block", "xlstm", lambda: xlstm("mLSTM"), "second"),
    Case("AWD-LSTM", "fastai", awd_lstm, "second"),
    Case("cached_conv convolution", "cached-conv", cached_convolution, "second"),
)
