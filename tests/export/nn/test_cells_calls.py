"""Where the layers that torch lacks may be called, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import runnel_export
from runnel.errors import ExportError, NotStreamableError
from runnel_export.lift.lift import lift
from runnel_export.nn import GRU, CoupledLSTM, LayerNormLSTM, PeepholeLSTM, Recurrent

from ..stepping import assert_streams, op_types

IN, WIDTH = 4, 6
Kind = Callable[..., Recurrent]


def full(*sizes: int) -> PeepholeLSTM:
    return PeepholeLSTM(*sizes, form="full")


LSTMS: list[Kind] = [PeepholeLSTM, full, CoupledLSTM, LayerNormLSTM]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr("runnel_export.certify.reference_runs.LONG", 120)


class Loop(nn.Module):
    """Called on one tick at a time."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.layer = kind(IN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out, state = [], None
        for t in range(x.shape[1]):
            y, state = self.layer(x[:, t : t + 1], state)
            out.append(y)
        return torch.cat(out, 1)


def test_in_a_loop_over_ticks_it_is_the_layer_over_the_sequence() -> None:
    lifted = assert_streams(Loop(PeepholeLSTM), torch.randn(2, 6, IN))
    assert op_types(lifted) == ["LSTM", "Squeeze"]
    assert lifted.spec.any_ticks


def test_what_is_written_out_is_called_on_the_sequence() -> None:
    with pytest.raises(NotStreamableError, match=r"one tick at a time.*call it once, on the whole sequence"):
        lift(Loop(full), torch.randn(2, 6, IN))


class Frames(nn.Module):
    """One recurrence within each frame, another over the frames."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.inner, self.outer = kind(2, 5), PeepholeLSTM(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, size = x.shape
        inner = self.inner(x.reshape(batch * time, size // 2, 2))[0][:, -1]
        out: Tensor = self.outer(inner.view(batch, time, 5))[0]
        return out


@pytest.mark.parametrize(
    ("kind", "size"),  # frames of three, or of one
    [(GRU, 6), (PeepholeLSTM, 6), (LayerNormLSTM, 6), (GRU, 2), (LayerNormLSTM, 2)],
)
def test_within_a_frame_there_is_no_state(kind: Kind, size: int) -> None:
    lifted = assert_streams(Frames(kind), torch.randn(2, 6, size))
    assert [s.input for s in lifted.spec.states] == ["outer.h.0", "outer.c.0"]


class Wrapped(nn.Module):
    def __init__(self, kind: Kind, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.run = kind(IN, WIDTH), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.layer, x)


REFUSED: list[tuple[Callable[[Any, Tensor], Tensor], str]] = [
    (lambda m, x: m(x, m(x)[1])[0], "its initial state is computed from the data"),
    (lambda m, x: m(x.flip(1))[0], "reverses time"),
    (lambda m, x: m(x.transpose(0, 1))[0].transpose(0, 1), "runs over the batch axis"),
    (lambda m, x: m(torch.zeros_like(x))[0] + x[..., :1], "a sequence that does not depend on the input"),
]


@pytest.mark.parametrize(("run", "message"), REFUSED)
@pytest.mark.parametrize("kind", [PeepholeLSTM, LayerNormLSTM])
def test_what_cannot_stream_is_refused(
    kind: Kind, run: Callable[[Any, Tensor], Tensor], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        lift(Wrapped(kind, run), torch.randn(2, 6, IN))


@pytest.mark.parametrize("kind", [PeepholeLSTM, CoupledLSTM, full])
def test_weights_in_int8(kind: Kind, tmp_path: Path) -> None:
    module = Wrapped(lambda *_: kind(16, 24), lambda m, x: m(x)[0])
    found = runnel_export.export(module, torch.randn(2, 9, 16), tmp_path / "m.onnx", quantize="int8")
    assert found.error < 0.05
    assert found.quantize is not None
    assert found.quantize["float32"] == []
