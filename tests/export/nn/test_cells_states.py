"""The states of the cells that torch lacks: given and returned, exchanged, learned, and as results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import runnel_export
from runnel.errors import ExportError
from runnel_export.lift.lift import lift
from runnel_export.nn import GRU, CoupledLSTM, LayerNormLSTM, PeepholeLSTM, Recurrent

from ..stepping import assert_streams, op_types

IN, WIDTH = 4, 6
Kind = Callable[..., Recurrent]


def full(*sizes: int) -> PeepholeLSTM:
    return PeepholeLSTM(*sizes, form="full")


LSTMS: list[Kind] = [PeepholeLSTM, full, CoupledLSTM, LayerNormLSTM]
OPERATORS: list[Kind] = [PeepholeLSTM, CoupledLSTM, GRU]
WRITTEN: list[Kind] = [full, LayerNormLSTM]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr("runnel_export.certify.reference_runs.LONG", 120)
    monkeypatch.setattr("runnel_export.certify.reference_runs.LONG_OF_STEPS", 60)


class Explicit(nn.Module):
    """forward(x, h, c) -> (y, h, c), over a sequence or over one step; or with h and c exchanged."""

    def __init__(self, kind: Kind, layers: int = 1, *, step: bool = False, exchanged: bool = False) -> None:
        super().__init__()
        self.layer, self.step, self.exchanged = kind(IN, WIDTH, layers), step, exchanged

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.layer(x[:, None] if self.step else x, (h, c))
        y = 2 * (y[:, 0] if self.step else y)
        return (y, c, h) if self.exchanged else (y, h, c)


def begun(layers: int = 1) -> dict[str, Tensor]:
    """Distinct, and not zero."""
    return {"h": torch.full((layers, 1, WIDTH), 0.3), "c": torch.full((layers, 1, WIDTH), -0.7)}


@pytest.mark.parametrize("kind", LSTMS)
def test_given_states_go_through_over_a_sequence(kind: Kind, tmp_path: Path) -> None:
    layers = 2 if kind is PeepholeLSTM else 1
    module = Explicit(kind, layers)
    found = runnel_export.export(module, torch.randn(1, 9, IN), tmp_path / "m.onnx", state=begun(layers))
    assert "started" in {c.name for c in found.checks}  # from distinct random states
    assert found.alive == (("h", "c") if layers == 1 else ("h.0", "c.0", "h.1", "c.1"))
    assert lift(module, torch.randn(1, 9, IN), state=begun(layers)).spec.any_ticks == (kind not in WRITTEN)


@pytest.mark.parametrize("kind", [PeepholeLSTM, LayerNormLSTM])
def test_a_module_that_is_one_step(kind: Kind, tmp_path: Path) -> None:
    module, x = Explicit(kind, step=True), torch.randn(1, IN)
    found = runnel_export.export(module, x, tmp_path / "m.onnx", time_axis=None, state=begun())
    assert found.alive == ("h", "c")
    ops = op_types(lift(module, x, time_axis=None, state=begun()))
    if kind not in WRITTEN:
        assert ops == ["Unsqueeze", "LSTM", "Squeeze", "Squeeze", "Mul"]


@pytest.mark.parametrize(
    ("kind", "step"), [(PeepholeLSTM, False), (LayerNormLSTM, False), (CoupledLSTM, True), (full, True)]
)
def test_exchanged_states_are_refused(kind: Kind, step: bool) -> None:
    module = Explicit(kind, 1, step=step, exchanged=True)
    x, axis = (torch.randn(1, IN), None) if step else (torch.randn(1, 9, IN), 1)
    with pytest.raises(ExportError, match="as its hidden state h and is replaced by the cell state c"):
        lift(module, x, time_axis=axis, state=begun())


class Learned(nn.Module):
    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.layer = kind(IN, WIDTH, 2)
        self.start = nn.ParameterList(torch.randn(2, 1, WIDTH) for _ in self.layer.widths)

    def forward(self, x: Tensor) -> Tensor:
        start = tuple(s.expand(2, len(x), WIDTH) for s in self.start)
        out: Tensor = self.layer(x, start if len(start) > 1 else start[0])[0]
        return out


@pytest.mark.parametrize("kind", [PeepholeLSTM, LayerNormLSTM, GRU])
def test_a_learned_initial_state_is_the_initial_state(kind: Kind) -> None:
    module = Learned(kind)
    lifted = assert_streams(module, torch.randn(2, 6, IN), tolerance=1e-4)
    first = lifted.spec.states[0]
    assert first.input == "layer.h.0"
    np.testing.assert_array_equal(first.initial[0], module.start[0][0, 0].detach().numpy())


class Ends(nn.Module):
    """Many-to-one by the last states of both layers."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.layer = kind(IN, WIDTH, 2)

    def forward(self, x: Tensor) -> Any:
        _, end = self.layer(x)
        h, c = end if isinstance(end, tuple) else (end, end)
        return h[-1] * 2, torch.cat([h[0], c[1]], -1)


@pytest.mark.parametrize("kind", [CoupledLSTM, full, GRU])
def test_last_states_as_outputs(kind: Kind) -> None:
    assert_streams(Ends(kind), torch.randn(2, 6, IN), last=[0, 1], tolerance=1e-4)
