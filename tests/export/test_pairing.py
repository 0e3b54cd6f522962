"""States are paired with what forward returns: by name, else in the order of forward's parameters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import runnel_export
from runnel import Engine
from runnel.errors import ExportError
from runnel_export.lift.lift import lift
from runnel_export.pairing import pair

WIDTH = 5


class Cell(nn.Module):
    """One step of a cell; `order` is what forward returns, of y, h and c."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.cell, self.order = nn.LSTMCell(WIDTH, WIDTH), order

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        h, c = self.cell(x, (h, c))
        found = {"y": h * 2, "h": h, "c": c}
        match self.order:
            case "by name":
                return {"c": c, "y": found["y"], "h": h}
            case "named pair":
                return found["y"], {"c": c, "h": h}
        return tuple(found[n] for n in self.order)


class Layer(Cell):
    """The same over a sequence, with two layers."""

    def __init__(self, order: str) -> None:
        super().__init__(order)
        self.cell = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        y, (h, c) = self.cell(x, (h, c))
        found = {"y": y, "h": h, "c": c}
        match self.order:
            case "by name":
                return {"c": c, "y": y, "h": h}
            case "named pair":
                return y, {"c": c, "h": h}
        return tuple(found[n] for n in self.order)


class Loop(Cell):
    """The cell in a loop over a sequence."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        ys = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            ys.append(h)
        return torch.stack(ys, 1), *((h, c) if self.order == "yhc" else (c, h))


class Cells(nn.Module):
    """Two cells, each with its state."""

    def __init__(self, order: str, kind: type[nn.RNNCellBase] = nn.GRUCell) -> None:
        super().__init__()
        self.first, self.second, self.order = kind(WIDTH, WIDTH), kind(WIDTH, WIDTH), order

    def forward(self, x: Tensor, a: Tensor, b: Tensor) -> Any:
        a = self.first(x, a)
        b = self.second(a, b)
        return {"y": b - a, "b": a, "a": b} if self.order == "by name" else (b - a, *(
            (a, b) if self.order == "yab" else (b, a)
        ))  # fmt: skip


KINDS = {"cell": (Cell, None, (2, WIDTH)), "layer": (Layer, 1, (2, 2, WIDTH)), "loop": (Loop, 1, (2, WIDTH))}


def example(time_axis: int | None) -> Tensor:
    return torch.randn(2, WIDTH) if time_axis is None else torch.randn(2, 6, WIDTH)


def zeros(names: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_a_cells_states_returned_in_the_other_order_are_refused(kind: str, tmp_path: Path) -> None:
    make, time_axis, shape = KINDS[kind]
    with pytest.raises(ExportError) as caught:
        runnel_export.export(
            make("ych"),
            example(time_axis),
            tmp_path / "m.onnx",
            time_axis=time_axis,
            state=zeros("hc", shape),
        )
    said = str(caught.value)
    for part in ("state 'h", "state 'c", "layer 'cell' (LSTM", "hidden state h", "cell state c",
                 "in the order of forward's parameters? return a dict to pair them by name"):  # fmt: skip
        assert part in said
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("order", ["yhc", "by name", "named pair"])
@pytest.mark.parametrize("kind", ["cell", "layer"])
@pytest.mark.parametrize("given", ["hc", "ch"])
def test_the_order_of_the_state_dict_does_not_matter(
    kind: str, order: str, given: str, tmp_path: Path
) -> None:
    make, time_axis, shape = KINDS[kind]
    module = make(order)
    certificate = runnel_export.export(
        module, example(time_axis), tmp_path / "m.onnx", time_axis=time_axis, state=zeros(given, shape)
    )
    x = torch.randn(12, WIDTH)
    wide = copy.deepcopy(module).double()
    expected, h, c = [], *(torch.zeros(shape).double().narrow(len(shape) - 2, 0, 1) for _ in range(2))
    with torch.no_grad():  # the layer itself, stepped here: nothing of the exporter's takes part
        for tick in x.double():
            if kind == "cell":
                h, c = wide.cell(tick[None], (h, c))
                expected.append((h * 2)[0])
            else:
                y, (h, c) = wide.cell(tick[None, None], (h, c))
                expected.append(y[0, 0])
    with Engine.load(tmp_path / "m.onnx") as engine, engine.open() as stream:
        np.testing.assert_allclose(stream.feed({"x": x.numpy()})["y"], torch.stack(expected), atol=1e-5)
    notes = [note for note in certificate.notes if note.startswith("states paired by position")]
    if order == "yhc":
        assert notes == [
            "states paired by position: h <- output 1, c <- output 2; return a dict to pair them by name"
        ]
        assert notes[0] in str(certificate)
    else:
        assert notes == []


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.RNNCell])
def test_two_cells_that_exchange_their_states_are_refused(kind: type[nn.RNNCellBase]) -> None:
    state = zeros("ab", (2, WIDTH))
    with pytest.raises(ExportError, match=r"state 'a' enters layer 'first'.* layer 'second'.*state 'b'"):
        lift(Cells("yba", kind), torch.randn(2, WIDTH), time_axis=None, state=state)
    assert len(lift(Cells("yab", kind), torch.randn(2, WIDTH), time_axis=None, state=state).spec.states) == 2
    # Where forward names them, it means it.
    lift(Cells("by name", kind), torch.randn(2, WIDTH), time_axis=None, state=state)


def test_a_state_that_another_layer_makes_for_good_is_not_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LSTMCell(WIDTH, WIDTH), nn.LSTMCell(WIDTH, WIDTH)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
            h, c = self.second(x, self.first(x, (h, c)))
            return h * 2, h, c

    lifted = lift(Twice(), torch.randn(2, WIDTH), time_axis=None, state=zeros("hc", (2, WIDTH)))
    assert len(lifted.spec.states) == 2


def test_pairs() -> None:
    assert pair(["h", "c"], ["1", "2"]) == ({"h": 0, "c": 1}, False)
    assert pair(["h", "c"], ["1.c", "1.h"]) == ({"h": 1, "c": 0}, True)
    assert pair(["hx.h", "hx.c", "n"], ["1.c", "1.h", "2"]) == ({"hx.h": 1, "hx.c": 0, "n": 2}, False)
    assert pair(["hx.0", "hx.1"], ["1.0", "1.1"]) == ({"hx.0": 0, "hx.1": 1}, False)
    assert pair(["hx.0", "hx.1"], ["1", "2"]) == ({"hx.0": 0, "hx.1": 1}, False)
