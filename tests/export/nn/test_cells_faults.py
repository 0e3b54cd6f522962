"""Broken files of the cells that torch lacks: a certificate must refuse every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import runnel_export
from runnel.errors import ExportError
from runnel_export import exporter
from runnel_export.lift.lift import Lifted, lift
from runnel_export.nn import CoupledLSTM, LayerNormLSTM, PeepholeLSTM, Recurrent

from ..certify.test_faults import frozen, initial, weight

IN, WIDTH = 4, 6
Kind = Callable[..., Recurrent]


def full(*sizes: int) -> PeepholeLSTM:
    return PeepholeLSTM(*sizes, form="full")


LSTMS: list[Kind] = [PeepholeLSTM, full, CoupledLSTM, LayerNormLSTM]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr("runnel_export.certify.reference_runs.LONG", 120)


class Learned(nn.Module):
    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.layer = kind(IN, WIDTH)
        self.start = nn.ParameterList(torch.randn(1, 1, WIDTH) for _ in self.layer.widths)

    def forward(self, x: Tensor) -> Tensor:
        start = tuple(s.expand(1, len(x), WIDTH) for s in self.start)
        out: Tensor = self.layer(x, start if len(start) > 1 else start[0])[0]
        return out


@cache
def made(kind: Kind) -> tuple[nn.Module, Lifted]:
    """Lifted once for all faults; the initial state is distinct and not zero."""
    torch.manual_seed(2)
    module = Learned(kind)
    return module, lift(module, torch.randn(2, 9, IN))


def exchanged(lifted: Lifted, rng: np.random.Generator) -> Lifted:
    """Wherever one state is read, the other one is."""
    first, second = (s.input for s in lifted.spec.states[:2])
    other = {first: second, second: first}
    model = onnx.ModelProto()
    model.CopyFrom(lifted.model)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = other.get(name, name)
    return replace(lifted, model=model)


@pytest.mark.parametrize("fault", [exchanged, frozen, initial, weight])
@pytest.mark.parametrize("kind", LSTMS)
def test_a_broken_file_is_not_certified(
    kind: Kind, fault: Callable[..., Lifted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    module, lifted = made(kind)
    monkeypatch.setattr(exporter, "lift", lambda *_, **__: fault(lifted, rng))
    with pytest.raises(ExportError, match="FAIL"):
        runnel_export.export(module, torch.randn(2, 9, IN), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_dead_state_is_named(tmp_path: Path) -> None:
    """No gate sees the cell, and nothing of it is kept: peepholes of zero, a forget gate that is shut."""
    module = Learned(CoupledLSTM)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "weight" in name:
                parameter[:WIDTH] = 0.0
            elif "bias" in name:
                parameter[:WIDTH] = -1e4
    with pytest.raises(
        ExportError, match=r"'layer\.c\.0' changes, but another value in its place changes no"
    ):
        runnel_export.export(module, torch.randn(2, 9, IN), tmp_path / "m.onnx")
