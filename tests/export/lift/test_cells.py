"""Cells called in a Python loop over time: torch unrolls it, the exporter rolls it up again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..stepping import assert_streams, op_types


def _h(state: Any) -> Tensor:
    h: Tensor = state[0] if isinstance(state, tuple) else state
    return h


class TwoCells(nn.Module):
    """Two cells and a head; results collected in the way that `collect` names."""

    def __init__(self, kind: type[nn.RNNCellBase], collect: str, **options: Any) -> None:
        super().__init__()
        self.first = kind(5, 7, **options)
        self.second = kind(7, 6, **options)
        self.head = nn.Linear(6, 2)
        self.collect = collect

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        a: Any = None
        b: Any = None
        filled = torch.zeros(batch, time, 2)
        collected = []
        for t in range(time):
            a = self.first(x[:, t], a)
            b = self.second(torch.relu(_h(a)), b)
            y = self.head(_h(b))
            filled[:, t] = y
            collected.append(y)
        match self.collect:
            case "filled":
                return filled
            case "stack":
                return torch.stack(collected, dim=1)
            case "stack first":
                return torch.stack(collected).transpose(0, 1)
            case "cat":
                return torch.cat([y.unsqueeze(1) for y in collected], dim=1)
            case "last":
                return collected[-1]
        raise AssertionError(self.collect)


@pytest.mark.parametrize(
    ("kind", "options", "op"),
    [
        (nn.LSTMCell, {}, "LSTM"),
        (nn.GRUCell, {}, "GRU"),
        (nn.RNNCell, {}, "RNN"),
        (nn.RNNCell, {"nonlinearity": "relu"}, "RNN"),
        (nn.LSTMCell, {"bias": False}, "LSTM"),
    ],
)
def test_every_kind_of_cell(kind: type[nn.RNNCellBase], options: dict[str, Any], op: str) -> None:
    lifted = assert_streams(TwoCells(kind, "filled", **options), torch.randn(2, 5, 5))
    assert op_types(lifted) == [op, "Squeeze", "Relu", op, "Squeeze", "MatMul", "Add"]
    assert lifted.spec.states[0].input == "first.h"
    assert lifted.spec.any_ticks


@pytest.mark.parametrize("collect", ["stack", "stack first", "cat", "last"])
def test_every_way_of_collecting_results(collect: str) -> None:
    last = [0] if collect == "last" else []
    lifted = assert_streams(TwoCells(nn.LSTMCell, collect), torch.randn(2, 5, 5), last=last)
    assert op_types(lifted) == ["LSTM", "Squeeze", "Relu", "LSTM", "Squeeze", "MatMul", "Add"]


class Sine(nn.Module):
    """Split, explicit zeros, and a join along the axis of size 1."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(1, 7)
        self.head = nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 7)
        c = x.new_zeros(x.size(0), 7)
        outputs = []
        for tick in x.split(1, dim=1):
            h, c = self.cell(tick, (h, c))
            outputs.append(self.head(h))
        return torch.cat(outputs, dim=1)


def test_a_loop_over_split_scalars() -> None:
    lifted = assert_streams(Sine(), torch.randn(2, 5))
    assert lifted.spec.inputs[0].shape == lifted.spec.outputs[0].shape == ("time", "slot")


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, 7)
        self.start = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        h = self.start.expand(x.shape[1], -1)
        out = torch.empty(x.shape[0], x.shape[1], 7)
        for t, tick in enumerate(x):
            h = self.cell(tick, h)
            out[t] = h
        return out


def test_time_first_and_a_learned_start() -> None:
    lifted = assert_streams(TimeFirst(), torch.randn(5, 2, 5), time_axis=0)
    assert lifted.spec.states[0].initial.any()
    assert op_types(lifted) == ["GRU", "Squeeze"]


class Both(nn.Module):
    """A layer over the whole sequence feeding a cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(5, 6, batch_first=True)
        self.cell = nn.GRUCell(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.layer(x)
        h = torch.zeros(len(x), 4)
        out = torch.zeros(len(x), x.shape[1], 4)
        for t in range(x.shape[1]):
            h = self.cell(y[:, t, :], h)
            out[:, t, :] = h
        return out, h


def test_a_layer_and_a_cell() -> None:
    assert_streams(Both(), torch.randn(2, 5, 5), last=[1])


class LayerInALoop(nn.Module):
    """nn.LSTM itself called on one tick at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (torch.zeros(2, len(x), 6), torch.zeros(2, len(x), 6))
        out = []
        for t in range(x.shape[1]):
            y, hidden = self.rnn(x[:, t].unsqueeze(1), hidden)
            out.append(y)
        return torch.cat(out, 1)


def test_a_layer_called_in_a_loop_is_a_layer() -> None:
    lifted = assert_streams(LayerInALoop(), torch.randn(2, 5, 5))
    assert op_types(lifted) == ["LSTM", "Squeeze"] * 2
    assert [s.input for s in lifted.spec.states] == ["rnn.h.0", "rnn.c.0", "rnn.h.1", "rnn.c.1"]
