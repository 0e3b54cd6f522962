"""Forecasting: recurrent encoders, temporal convolutions, and what stands around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..bare import bare
from ..case import Built, Case
from ..wrappers import Pick


class History(nn.Module):
    """neuralforecast's models take a dict; without exogenous series only the history is read."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module({"insample_y": x, "futr_exog": None, "hist_exog": None, "stat_exog": None})


class FromLags(nn.Module):
    """The network of DeepAR behind its lagged inputs: the distribution's parameters."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.rnn, self.projection = module.rnn, module.param_proj

    def forward(self, x: Tensor) -> Any:
        return self.projection(self.rnn(x)[0])


class Past(nn.Module):
    """darts' modules take a named tuple of past, future and static series; only the past is read."""

    def __init__(self, module: nn.Module, taken: Any) -> None:
        super().__init__()
        self.module, self.taken = module, taken

    def forward(self, x: Tensor) -> Any:
        return self.module(self.taken(x, None, None)).prediction


def neuralforecast(model: str, horizon: int, **options: Any) -> Built:
    module = bare(f"neuralforecast.models.{model.lower()}")
    built = getattr(module, model)(h=horizon, input_size=48, **options)
    return Built(History(built), torch.randn(1, 48, 1), last=True)


def neuralforecast_tcn() -> Built:
    bare("neuralforecast.models.tcn")
    modules = bare("neuralforecast.common._modules")
    encoder = modules.TemporalConvolutionEncoder(1, 128, kernel_size=2, dilations=[1, 2, 4, 8, 16])
    return Built(encoder, torch.randn(1, 48, 1))


def deepar() -> Built:
    from gluonts.torch.model.deepar.module import DeepARModel

    model = DeepARModel("h", 72, 24, lags_seq=[1, 2, 3, 24, 168], cardinality=[10])
    width = model.rnn.input_size
    return Built(FromLags(model), torch.randn(1, 72, width))


def forecasting_rnn(layer: str) -> Built:
    from pytorch_forecasting.models.nn import rnn

    model = getattr(rnn, layer)(input_size=10, hidden_size=64, num_layers=2, batch_first=True)
    return Built(Pick(model), torch.randn(1, 24, 10))


def gated_residual() -> Built:
    from pytorch_forecasting.models.temporal_fusion_transformer.sub_modules import GatedResidualNetwork

    return Built(GatedResidualNetwork(16, 32, 32), torch.randn(1, 24, 16))


class Variables(nn.Module):
    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, x: Tensor) -> Any:
        return self.module({name: x[..., i : i + 1] for i, name in enumerate(self.names)})[0]


def variable_selection() -> Built:
    from pytorch_forecasting.models.temporal_fusion_transformer.sub_modules import VariableSelectionNetwork

    names = ["a", "b", "c", "d"]
    model = VariableSelectionNetwork(
        input_sizes=dict.fromkeys(names, 16),
        hidden_size=32,
        input_embedding_flags={},
        single_variable_grns={},
        prescalers={name: nn.Linear(1, 16) for name in names},
    )
    return Built(Variables(model, names), torch.randn(1, 24, 4))


def darts_block_rnn(horizon: int) -> Built:
    module = bare("darts.models.forecasting.block_rnn_model", below="darts")
    model = module._BlockRNNModule(
        name="LSTM", input_size=1, hidden_dim=25, num_layers=1, target_size=1, nr_params=1,
        num_layers_out_fc=[], dropout=0.0, future_cov_dim=0, input_chunk_length=48,
        output_chunk_length=horizon,
    )  # fmt: skip
    return Built(Past(model, _module_input()), torch.randn(1, 48, 1), last=True)


def _module_input() -> Any:
    return bare("darts.utils.data.torch_datasets.utils").PLModuleInput


def tsai_lstm_fcn() -> Built:
    module = bare("tsai.models.RNN_FCN")
    return Built(module.LSTM_FCN(3, 5, shuffle=False), torch.randn(1, 3, 40), {"time_axis": 2}, last=True)


CASES = (
    Case(
        "neuralforecast LSTM, h=1",
        "neuralforecast",
        lambda: neuralforecast("LSTM", 1),
        "today",
        "dict of inputs",
    ),
    Case(
        "neuralforecast RNN, h=1",
        "neuralforecast",
        lambda: neuralforecast("RNN", 1),
        "today",
        "dict of inputs",
    ),
    Case(
        "neuralforecast LSTM, h=12",
        "neuralforecast",
        lambda: neuralforecast("LSTM", 12),
        "first",
        "dict of inputs",
    ),
    Case("neuralforecast TCN's encoder", "neuralforecast", neuralforecast_tcn, "today"),
    Case("GluonTS DeepAR's network", "gluonts", deepar, "today", "inputs are lagged already"),
    Case(
        "PyTorch Forecasting LSTM",
        "pytorch-forecasting",
        lambda: forecasting_rnn("LSTM"),
        "today",
        "first output",
    ),
    Case(
        "PyTorch Forecasting GRU",
        "pytorch-forecasting",
        lambda: forecasting_rnn("GRU"),
        "today",
        "first output",
    ),
    Case("TFT gated residual network", "pytorch-forecasting", gated_residual, "today"),
    Case(
        "TFT variable selection",
        "pytorch-forecasting",
        variable_selection,
        "today",
        "dict of inputs, first output",
    ),
    Case("darts BlockRNN, 12 ahead", "darts", lambda: darts_block_rnn(12), "first", "named tuple of inputs"),
    Case("tsai LSTM_FCN", "tsai", tsai_lstm_fcn, "never"),
)
