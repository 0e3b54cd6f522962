"""nn.RNN, nn.LSTM, nn.GRU: found, lifted, and equal to torch at every tick and every cut."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from runnel_export.lift.lift import Lifted, lift

from ..stepping import Apply, assert_streams, op_types, stepped


class LSTMModel(nn.Module):
    def __init__(self, input_size, hidden_size, num_layers):  # type: ignore[no-untyped-def]
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, 1)

    def forward(self, x):  # type: ignore[no-untyped-def]
        out, (h_n, c_n) = self.lstm(x)  # noqa: RUF059
        return self.fc(out[:, -1, :])


def test_many_to_one_gives_at_each_tick_what_the_module_gives_on_the_prefix() -> None:
    lifted = assert_streams(LSTMModel(4, 8, 2), torch.randn(2, 6, 4), last=[0])
    assert op_types(lifted) == ["LSTM", "Squeeze", "LSTM", "Squeeze", "MatMul", "Add"]
    assert [s.input for s in lifted.spec.states] == ["lstm.h.0", "lstm.c.0", "lstm.h.1", "lstm.c.1"]
    assert [s.output for s in lifted.spec.states] == [f"{s.input}.next" for s in lifted.spec.states]
    assert {s.shape for s in lifted.spec.states} == {(1, "slot", 8)}
    assert lifted.spec.outputs[0].shape == ("time", "slot", 1)
    assert lifted.spec.any_ticks


class Layered(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(5, 7, **options)
        self.head = nn.Linear(options.get("proj_size") or 7, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        head: Tensor = self.head(out)
        return head


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    ("kind", "more", "op"),
    [
        (nn.LSTM, {}, "LSTM"),
        (nn.GRU, {}, "GRU"),
        (nn.RNN, {}, "RNN"),
        (nn.RNN, {"nonlinearity": "relu"}, "RNN"),
    ],
)
def test_every_kind_of_layer(
    kind: type[nn.RNNBase], more: dict[str, Any], op: str, layers: int, bias: bool, batch_first: bool
) -> None:
    module = Layered(kind, num_layers=layers, bias=bias, batch_first=batch_first, dropout=0.0, **more)
    lifted = assert_streams(module, torch.randn(2, 6, 5), time_axis=1 if batch_first else 0)
    assert op_types(lifted) == [op, "Squeeze"] * layers + ["MatMul", "Add"]


@pytest.mark.parametrize("bias", [False, True])
def test_a_projection_is_written_out_and_takes_one_tick_a_call(bias: bool) -> None:
    module = Layered(nn.LSTM, num_layers=2, proj_size=3, bias=bias, batch_first=True)
    lifted = assert_streams(module, torch.randn(2, 6, 5))
    assert not lifted.spec.any_ticks
    assert [s.shape[-1] for s in lifted.spec.states] == [3, 7, 3, 7]
    assert any("proj_size" in note and "one tick" in note for note in lifted.notes)


def test_the_exported_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.BatchNorm1d(5).eval())
    module.train()
    module[2].eval()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    lift(nn.Sequential(module[0], module[1]), torch.randn(2, 6, 5))
    assert [m.training for m in module] == [True, True, False]
    assert all(torch.equal(t, module.state_dict()[n]) for n, t in before.items())


class Parts(nn.Module):
    """Several recurrent layers with all sorts of things around them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 6)
        self.first = nn.GRU(6, 8, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.drop = nn.Dropout(0.3)
        self.second = nn.LSTM(8, 8, 2, batch_first=True, dropout=0.2)
        self.running = nn.BatchNorm1d(8)
        self.third = nn.RNN(8, 4, nonlinearity="relu", bias=False)
        self.out = nn.Linear(4, 5)
        self.running.running_mean = torch.randn(8)
        self.running.running_var = torch.rand(8) + 0.5

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x, _ = self.first(self.words(tokens))
        x = x + self.drop(self.second(self.norm(x))[0])
        x = self.running(x.transpose(1, 2))
        y, h = self.third(x.permute(2, 0, 1))
        return {"probability": self.out(y).softmax(-1).transpose(0, 1), "last": h[0]}


def test_several_layers_of_several_kinds_in_one_model() -> None:
    torch.manual_seed(3)
    lifted = assert_streams(Parts(), torch.randint(0, 30, (2, 6)), last=[1])
    assert [op for op in op_types(lifted) if op in ("GRU", "LSTM", "RNN")] == ["GRU", "LSTM", "LSTM", "RNN"]
    assert "Transpose" not in op_types(lifted)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_the_law_of_chunking_holds_for_the_step_graph(cuts: list[int]) -> None:
    lifted = _parts()
    tokens = np.random.default_rng(0).integers(0, 30, (sum(cuts), 2))
    whole = stepped(lifted, {"tokens": tokens}, [sum(cuts)])
    pieces = stepped(lifted, {"tokens": tokens}, cuts)
    for name, array in whole.items():
        np.testing.assert_allclose(pieces[name], array, rtol=1e-5, atol=1e-6)


@cache
def _parts() -> Lifted:
    torch.manual_seed(3)
    return lift(Parts(), torch.randint(0, 30, (2, 6)))


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 7, 2, batch_first=True)
        self.h = nn.Parameter(torch.randn(2, 1, 7))
        self.c = nn.Parameter(torch.randn(2, 1, 7))

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        out: Tensor = self.rnn(x, (self.h.expand(-1, batch, -1).contiguous(), self.c.repeat(1, batch, 1)))[0]
        return out


def test_a_learned_initial_state_is_the_initial_state() -> None:
    module = Learned()
    lifted = assert_streams(module, torch.randn(2, 6, 5))
    np.testing.assert_array_equal(lifted.spec.states[2].initial, module.h[1].detach().numpy())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(self.rnn(x)[0] + 1)[0]
        return out


def test_one_layer_called_twice_has_two_states() -> None:
    lifted = assert_streams(Twice(), torch.randn(2, 6, 5))
    assert [s.input for s in lifted.spec.states] == ["rnn.h.0", "rnn.h.0_2"]


class FinalStates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        _, (h, c) = self.rnn(x)
        return h[-1] * 2, h.transpose(0, 1), torch.cat([h[0], h[1]], -1), c[-1]


def test_final_states_as_outputs() -> None:
    lifted = assert_streams(FinalStates(), torch.randn(2, 6, 5), last=[0, 1, 2, 3])
    assert not lifted.spec.any_ticks  # c is known at the end of a call only
    assert "cell state" in lifted.notes[0]


def test_a_parametrised_weight_is_computed_once() -> None:
    rnn = nn.GRU(5, 7, batch_first=True)
    module = nn.utils.parametrizations.weight_norm(rnn, "weight_hh_l0")
    lifted = assert_streams(_First(module), torch.randn(2, 6, 5))
    assert op_types(lifted) == ["GRU", "Squeeze"]


class _First(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x)[0]
        return out


def test_merging_batch_and_time_for_a_layer_writes_nothing() -> None:
    def forward(x: Tensor, m: Any) -> Tensor:
        out, _ = m.rnn(x)
        batch, time, hidden = out.shape
        scores: Tensor = m.head(out.contiguous().view(-1, hidden)).view(batch, time, -1)
        return scores

    module = Apply(forward, rnn=nn.LSTM(5, 7, batch_first=True), head=nn.Linear(7, 3))
    lifted = assert_streams(module, torch.randn(2, 6, 5))
    assert op_types(lifted) == ["LSTM", "Squeeze", "MatMul", "Add"]


class Frames(nn.Module):
    """A frontend for each frame on a merged axis, then a recurrence over time (as voice detectors do)."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Conv1d(1, 34, 32, stride=16, bias=False)
        self.encode = nn.Conv1d(17, 9, 3, 2, 1)
        self.rnn = nn.LSTM(9, 6)
        self.out = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, size = x.shape
        y = nn.functional.pad(x.reshape(batch * time, 1, size), (0, 8), mode="reflect")
        y = self.transform(y)
        y = (y[:, :17] ** 2 + y[:, 17:] ** 2).sqrt()
        y = self.encode(y).relu().mean(-1)
        y, _ = self.rnn(y.view(batch, time, -1).transpose(0, 1))
        return torch.sigmoid(self.out(y)).squeeze(-1).transpose(0, 1)


def test_a_frontend_on_merged_axes_and_a_recurrence_after_it() -> None:
    lifted = assert_streams(Frames(), torch.randn(2, 6, 72))
    ops = op_types(lifted)
    assert ops.count("Shape") == 1
    assert "Transpose" not in ops


class Inner(nn.Module):
    """A recurrence within each frame, one over time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRU(2, 5, batch_first=True)
        self.outer = nn.GRU(5, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, size = x.shape
        inner = self.inner(x.reshape(batch * time, size // 2, 2))[1][-1]
        out: Tensor = self.outer(inner.view(batch, time, 5))[0]
        return out


def test_a_recurrence_within_a_frame_has_no_state() -> None:
    lifted = assert_streams(Inner(), torch.randn(2, 6, 8))
    assert [s.input for s in lifted.spec.states] == ["outer.h.0"]


def test_a_dead_recurrence_leaves_no_state() -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(5, 7, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            self.rnn(x)
            return x * 2

    lifted = lift(Dead(), torch.randn(2, 6, 5))
    assert op_types(lifted) == ["Mul"]
    assert lifted.spec.states == ()
