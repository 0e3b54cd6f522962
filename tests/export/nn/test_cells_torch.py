"""Rows of the table of cells that torch has: vanilla RNN, LSTM, projected LSTM."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from torch import nn

from ..rows import FEATURES, HIDDEN, Model, prove


def nodes(folder: Path) -> list[str]:
    return [n.op_type for n in onnx.load(folder / "m.onnx").graph.node]


@pytest.mark.parametrize("f", ["tanh", "relu"])
def test_vanilla_rnn_with_a_softmax(f: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """h_t = f(U x_t + W h_{t-1} + b), y_t = softmax(V h_t + c): Elman 1990."""
    layer = nn.RNN(FEATURES, HIDDEN, nonlinearity=f, batch_first=True)
    prove(Model(layer, classes=True), tmp_path, monkeypatch)
    assert nodes(tmp_path) == ["RNN", "Squeeze", "MatMul", "Add", "Softmax"]


def test_lstm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prove(Model(nn.LSTM(FEATURES, HIDDEN, batch_first=True)), tmp_path, monkeypatch)
    assert nodes(tmp_path) == ["LSTM", "Squeeze", "MatMul", "Add"]


def test_projected_lstm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX's LSTM has no projection, so it is written out."""
    layer = nn.LSTM(FEATURES, HIDDEN, proj_size=5, batch_first=True)
    certificate = prove(Model(layer, width=5), tmp_path, monkeypatch)
    assert "LSTM" not in nodes(tmp_path)
    assert any("exactly one tick a call" in note for note in certificate.notes)
