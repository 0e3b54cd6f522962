"""Rows of the table of cells: the GRU's published forms, and layers of several kinds in one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from torch import Tensor, nn

from runnel_export.nn import GRU, CoupledLSTM, LayerNormLSTM, PeepholeLSTM

from ..rows import FEATURES, HIDDEN, Model, prove


@pytest.mark.parametrize(("reset", "flag"), [("before", 0), ("after", 1)])
def test_gru(reset: Any, flag: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prove(Model(GRU(FEATURES, HIDDEN, reset=reset)), tmp_path, monkeypatch)
    made = onnx.load(tmp_path / "m.onnx").graph.node
    assert [n.op_type for n in made] == ["GRU", "Squeeze", "MatMul", "Add"]
    found = {a.name: onnx.helper.get_attribute_value(a) for a in made[0].attribute}
    assert found["linear_before_reset"] == flag


class Mixed(nn.Module):
    """Stacked, residual, and of every kind: some in one node, some written out."""

    def __init__(self) -> None:
        super().__init__()
        self.peephole = PeepholeLSTM(FEATURES, HIDDEN, 2)
        self.norm = nn.LayerNorm(HIDDEN)
        self.reset = GRU(HIDDEN, HIDDEN, reset="before", update="keeps")
        self.coupled = CoupledLSTM(HIDDEN, HIDDEN)
        self.normed = LayerNormLSTM(HIDDEN, HIDDEN)
        self.theirs = nn.GRU(HIDDEN, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.norm(self.peephole(x)[0])
        a = a + self.reset(a)[0]
        a = a + self.coupled(a)[0]
        out: Tensor = a + self.theirs(a + self.normed(a)[0])[0]
        return out


def test_stacked_residual_and_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = prove(Model(Mixed()), tmp_path, monkeypatch)
    ops = [n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node]
    assert [op for op in ops if op in ("LSTM", "GRU")] == ["LSTM", "LSTM", "GRU", "LSTM", "GRU"]
    assert len(certificate.alive) == 4 + 1 + 2 + 2 + 1
