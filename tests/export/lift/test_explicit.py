"""Modules that take their state and give it back."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runnel.errors import ExportError
from runnel_export.lift.lift import Lifted, lift

from ..stepping import STREAMS, TICKS, op_types, stepped


class Sequence(nn.Module):
    """forward(x, h, c) -> (y, h, c) over a whole chunk."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 7, layers, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.rnn(x, (h, c))
        return self.head(y), h, c


class Nested(Sequence):
    """forward(x, hidden) -> (y, hidden), hidden a pair."""

    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> Any:  # type: ignore[override]
        y, hidden = self.rnn(x, hidden)
        return self.head(y), hidden


class Named(Sequence):
    """Results by name, in another order than the arguments."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        y, (h, c) = self.rnn(x, (h, c))
        return {"c": c, "h": h, "score": self.head(y)}


class CellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(5, 7)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ys = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            ys.append(h * 2)
        return torch.stack(ys, 1), h, c


class Stacked(nn.Module):
    """Cells whose states come as one (layers, batch, hidden) tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.GRUCell(5, 7)
        self.b = nn.GRUCell(7, 7)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        ha, hb = h[0], h[1]
        ys = []
        for t in range(x.shape[1]):
            ha = self.a(x[:, t], ha)
            hb = self.b(ha, hb)
            ys.append(hb)
        return torch.stack(ys, 1), torch.stack([ha, hb])


class ByHand(nn.Module):
    """A recurrence of the user's own, in a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(5, 7)
        self.u = nn.Linear(7, 7)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        ys = []
        for t in range(x.shape[1]):
            h = torch.tanh(self.w(x[:, t]) + self.u(h)) * 0.5 + h * 0.5
            ys.append(h)
        return torch.stack(ys, 1), h


class Cached(nn.Module):
    """A causal convolution that keeps its own past."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 7, 3)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        longer = torch.cat([past, x.transpose(1, 2)], -1)
        return self.conv(longer).transpose(1, 2), longer[..., -2:]


def rows(*shape: int) -> Tensor:
    """An initial state that is not zero, the same for every row of axis -2."""
    row = torch.randn((*shape[:-2], 1, shape[-1]), generator=torch.Generator().manual_seed(len(shape)))
    return row.expand(shape).clone()


def over_time(
    module: nn.Module, x: Tensor, states: tuple[Any, ...], named: bool = False
) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        reference = copy.deepcopy(module).double().eval()
        wide = torch.utils._pytree.tree_map(lambda t: t.double(), states)
        found = reference(x.double(), *wide)
    y = found["score"] if named else found[0]
    return np.asarray(y.transpose(0, 1))


def check(
    module: nn.Module, state: dict[str, Any], of_streams: dict[str, Any], named: bool = False
) -> Lifted:
    """Lift with `state` (for a batch of 2); `of_streams` is the same for STREAMS streams."""
    lifted = lift(module, torch.randn(2, 6, 5), state=state)
    x = torch.randn(STREAMS, TICKS, 5)
    expected = over_time(module, x, tuple(of_streams.values()), named)
    inputs = {"x": x.transpose(0, 1).numpy()}
    for cuts in [[1] * TICKS] + ([[TICKS], [4, 5]] if lifted.spec.any_ticks else []):
        found = stepped(lifted, inputs, cuts)
        np.testing.assert_allclose(found[lifted.spec.outputs[0].name], expected, rtol=2e-5, atol=2e-5)
    return lifted


def test_the_state_of_a_layer_is_one_state_for_each_layer() -> None:
    h, c = rows(2, STREAMS, 7), rows(2, STREAMS, 7) * 2
    lifted = check(Sequence(), {"h": h[:, :2], "c": c[:, :2]}, {"h": h, "c": c})
    assert [s.input for s in lifted.spec.states] == ["h.0", "c.0", "h.1", "c.1"]
    assert [s.output for s in lifted.spec.states] == ["h.0.next", "c.0.next", "h.1.next", "c.1.next"]
    assert op_types(lifted) == ["LSTM", "Squeeze", "LSTM", "Squeeze", "MatMul", "Add"]
    assert lifted.spec.any_ticks


def test_one_layer_keeps_its_name() -> None:
    h, c = rows(1, STREAMS, 7), rows(1, STREAMS, 7) * 2
    lifted = check(Sequence(1), {"h": h[:, :2], "c": c[:, :2]}, {"h": h, "c": c})
    assert [(s.input, s.shape) for s in lifted.spec.states] == [("h", (1, "slot", 7)), ("c", (1, "slot", 7))]


def test_the_same_tensor_given_twice_does_not_tie_h_to_c() -> None:
    zeros = torch.zeros(2, 2, 7)
    many = torch.zeros(2, STREAMS, 7)
    lifted = check(Sequence(), {"h": zeros, "c": zeros}, {"h": many, "c": many})
    assert len(lifted.spec.states) == 4
    lstm = lifted.model.graph.node[0]
    assert lstm.input[5] != lstm.input[6]


def test_a_pair_of_states_in_one_argument() -> None:
    h, c = rows(2, STREAMS, 7), rows(2, STREAMS, 7) * 2
    lifted = check(Nested(), {"hidden": (h[:, :2], c[:, :2])}, {"hidden": (h, c)})
    assert [s.input for s in lifted.spec.states] == ["hidden.0.0", "hidden.1.0", "hidden.0.1", "hidden.1.1"]


def test_states_returned_by_name_are_paired_by_name() -> None:
    h, c = rows(2, STREAMS, 7), rows(2, STREAMS, 7) * 2
    lifted = check(Named(), {"h": h[:, :2], "c": c[:, :2]}, {"h": h, "c": c}, named=True)
    assert [o.name for o in lifted.spec.outputs] == ["score"]


def test_cells_in_a_loop() -> None:
    h, c = rows(STREAMS, 7), rows(STREAMS, 7) * 2
    lifted = check(CellLoop(), {"h": h[:2], "c": c[:2]}, {"h": h, "c": c})
    assert op_types(lifted) == ["LSTM", "Squeeze", "Mul"]
    assert lifted.spec.any_ticks


def test_cells_with_their_states_in_one_tensor() -> None:
    h = rows(2, STREAMS, 7)
    lifted = check(Stacked(), {"h": h[:, :2]}, {"h": h})
    assert [s.input for s in lifted.spec.states] == ["h.0", "h.1"]
    assert op_types(lifted) == ["GRU", "Squeeze", "GRU", "Squeeze"]


def test_a_recurrence_by_hand_is_taken_one_tick_at_a_time() -> None:
    h = rows(STREAMS, 7)
    lifted = check(ByHand(), {"h": h[:2]}, {"h": h})
    assert not lifted.spec.any_ticks
    assert lifted.spec.inputs[0].shape == ("time", "slot", 5)
    assert lifted.spec.outputs[0].shape == ("time", "slot", 7)
    assert lifted.spec.states[0].shape == ("slot", 7)
    assert "one tick a call, because" in lifted.notes[0]


class LastByHand(ByHand):
    """Many to one, with one output feature: its axis of size 1 is not the time."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(7, 1)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = super().forward(x, h)
        return self.head(y[:, -1]), h


def test_the_last_of_a_recurrence_by_hand_is_given_at_each_tick() -> None:
    lifted = lift(LastByHand(), torch.randn(2, 6, 5), state={"h": torch.zeros(2, 7)})
    assert lifted.spec.outputs[0].shape == ("time", "slot", 1)
    assert not lifted.spec.any_ticks


def test_a_convolution_that_carries_its_own_past() -> None:
    past = torch.zeros(STREAMS, 5, 2)
    lifted = check(Cached(), {"past": past[:2]}, {"past": past})
    assert lifted.spec.states[0].shape == ("slot", 5, 2)


# ------------------------------------------------------------------ one step, written by the user


class CellStep(nn.Module):
    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell = kind(5, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor, state: Any) -> Any:
        state = self.cell(x, state)
        return self.head(state[0] if isinstance(state, tuple) else state), state


class LayerStep(nn.Module):
    """A layer over a sequence of one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 7, 2, batch_first=True)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.rnn(x.unsqueeze(1), state)
        return y.squeeze(1), state


class HandStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(12, 7)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.tanh(self.w(torch.cat([x, state], -1))) + state * 0.5
        return state.exp(), state


class BothStep(nn.Module):
    """Two states in one tensor, one for a cell, one for an ordinary operation."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, 5)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        first = self.cell(x, state[0])
        second = state[1] * 0.9 + first
        return second, torch.stack([first, second])


@pytest.mark.parametrize(
    ("module", "state"),
    [
        (CellStep(nn.GRUCell), rows(STREAMS, 7)),
        (CellStep(nn.RNNCell), rows(STREAMS, 7)),
        (CellStep(nn.LSTMCell), (rows(STREAMS, 7), rows(STREAMS, 7) * 2)),
        (LayerStep(), rows(2, STREAMS, 7)),
        (HandStep(), rows(STREAMS, 7)),
        (BothStep(), rows(2, STREAMS, 5)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_module_that_is_one_step(module: nn.Module, state: Any) -> None:
    few = torch.utils._pytree.tree_map(lambda t: t.narrow(t.dim() - 2, 0, 2), state)
    lifted = lift(module, torch.randn(2, 5), time_axis=None, state={"state": few})
    assert lifted.spec.inputs[0].shape == ("slot", 5)
    assert lifted.spec.outputs[0].shape[0] == "slot"
    assert not lifted.spec.any_ticks
    x = torch.randn(TICKS, STREAMS, 5)
    reference = copy.deepcopy(module).double()
    wide = torch.utils._pytree.tree_map(lambda t: t.double(), state)
    expected = []
    with torch.no_grad():
        for tick in x.double():
            y, wide = reference(tick, wide)
            expected.append(y.numpy())
    found = stepped(lifted, {"x": x.numpy()}, [1] * TICKS)
    np.testing.assert_allclose(found["y"], np.stack(expected), rtol=2e-5, atol=2e-5)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"h": torch.zeros(2, 2, 7)}, r"Sequence.forward needs 'c'.*state=\{'c': tensor\}.*--state c="),
        ({"h": torch.zeros(2, 2, 7), "k": torch.zeros(2, 2, 7)}, "no parameter 'k'"),
        ({"h": torch.zeros(2, 4, 7), "c": torch.zeros(2, 2, 7)}, "no axis has the example's batch size 3"),
        (
            {"h": torch.arange(42.0).reshape(2, 3, 7), "c": torch.zeros(2, 3, 7)},
            "rows differ along the batch",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state: dict[str, Tensor], why: str) -> None:
    batch = 3 if "batch" in why else 2
    with pytest.raises(ExportError, match=why):
        lift(Sequence(), torch.randn(batch, 6, 5), state=state)


def test_a_module_that_does_not_give_its_state_back_is_refused() -> None:
    class Forgets(Sequence):
        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
            return super().forward(x, h, c)[0]

    with pytest.raises(ExportError, match="must return its outputs and then the next states"):
        lift(Forgets(), torch.randn(2, 6, 5), state={"h": torch.zeros(2, 2, 7), "c": torch.zeros(2, 2, 7)})


def test_a_state_that_reaches_no_output_is_left_out_and_said() -> None:
    class Unused(nn.Module):
        def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, n + 1

    lifted = lift(Unused(), torch.randn(2, 5), time_axis=None, state={"n": torch.zeros(2, 3)})
    assert lifted.spec.states == ()
    assert any("'n' has no influence" in note for note in lifted.notes)
