"""A recurrence of one's own, written as one tick of it, and how the exporter sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import runnel_export
from runnel.errors import ExportError
from runnel_export.lift.lift import lift
from runnel_export.nn import PeepholeLSTM, Recurrent

from ..stepping import assert_streams

IN, WIDTH = 4, 6


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr("runnel_export.certify.reference_runs.LONG", 120)


class Leaky(Recurrent):
    """The example of `Recurrent`'s docstring."""

    def __init__(self, size: int) -> None:
        super().__init__({"h": size})
        self.mix = nn.Linear(2 * size, size)

    def tick(self, layer: int, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        (h,) = state
        h = 0.9 * h + 0.1 * torch.tanh(self.mix(torch.cat([x, h], -1)))
        return h, (h,)


class Own(Recurrent):
    """Three states of three widths, two layers, and an output that is none of them; or one fault."""

    def __init__(self, fault: str = "") -> None:
        super().__init__({"slow": 2, "fast": 3, "count": 1}, num_layers=2)
        self.fault = fault
        self.of_slow = nn.ModuleList(nn.Linear(n, 2) for n in (IN, 6))
        self.of_fast = nn.ModuleList(nn.Linear(n + 3, 3) for n in (IN, 6))

    def tick(self, layer: int, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        slow, fast = state[:2]
        count = state[2] if len(state) > 2 else x[:, :1]
        slow = 0.95 * slow + 0.05 * self.of_slow[layer](x)
        fast = torch.tanh(self.of_fast[layer](torch.cat([x, fast], -1)))
        count = 0.5 * count + (x[:, :1] > 0).to(x.dtype)
        y = torch.cat([slow, fast, torch.sin(count[:, :1])], -1)
        if self.fault == "one state too few":
            return y, (slow, fast)
        if self.fault == "a constant output":
            return torch.zeros_like(y), (slow, fast, count)
        if self.fault == "a wider state":
            count = count + x[:, :2]
        return y, (slow, fast, count)


class Around(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)[0]
        return out


def test_a_recurrence_of_ones_own_streams(tmp_path: Path) -> None:
    assert_streams(Around(Leaky(IN)), torch.randn(2, 6, IN))
    lifted = assert_streams(Around(Own()), torch.randn(2, 6, IN))
    names = [s.input for s in lifted.spec.states]
    assert names == [f"layer.{n}.{k}" for k in (0, 1) for n in ("slow", "fast", "count")]
    assert len(lifted.notes) == 1
    assert runnel_export.export(Around(Leaky(IN)), torch.randn(2, 9, IN), tmp_path / "m.onnx").passed


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("one state too few", "tick gives 2 states, expected 3"),
        ("a wider state", r"state 'layer\.count\.0' leaves a tick as something else"),
        ("a constant output", "output that does not depend on that tick"),
    ],
)
def test_a_tick_that_is_none_is_refused(fault: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        lift(Around(Own(fault)), torch.randn(2, 6, IN))


class Explicit(nn.Module):
    """Its three states given and returned; the last two in either order."""

    def __init__(self, exchanged: bool) -> None:
        super().__init__()
        self.layer, self.exchanged = Same(), exchanged

    def forward(self, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        y, (a, b, c) = self.layer(x, (a, b, c))
        return (y, a, c, b) if self.exchanged else (y, a, b, c)


class Same(Recurrent):
    def __init__(self) -> None:
        super().__init__({"a": IN, "b": IN, "c": IN})

    def tick(self, layer: int, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        a, b, c = state
        state = (0.5 * a + x, 0.7 * b - x, 0.9 * c + x * x)
        return state[0] * state[1] + state[2], state


def test_three_states_that_are_exchanged_are_refused() -> None:
    state = {n: torch.zeros(1, 1, IN) for n in "abc"}
    assert len(lift(Explicit(False), torch.randn(1, 6, IN), state=state).spec.states) == 3
    with pytest.raises(ExportError, match=r"state 'b' enters .* as its cell state c and .* by the state 3"):
        lift(Explicit(True), torch.randn(1, 6, IN), state=state)


# Beside the exporter


def test_torch_compiles_it_whole() -> None:
    module, x = PeepholeLSTM(IN, WIDTH), torch.randn(2, 3, IN)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))


def test_every_other_exporter_sees_the_loop() -> None:
    module, x = Around(PeepholeLSTM(IN, WIDTH)).eval(), torch.randn(2, 3, IN)
    lift(module, x)
    with pytest.raises(ExportError):
        lift(Around(Own("a wider state")), x)
    names = {str(n.target) for n in torch.export.export(module, (x,)).graph.nodes}
    assert not [n for n in names if n.startswith("runnel.")]
