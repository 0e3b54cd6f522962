"""Rows of the table of cells: an LSTM with peepholes, with coupled gates, with layer normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from runnel_export.nn import CoupledLSTM, LayerNormLSTM, PeepholeLSTM

from ..rows import FEATURES, HIDDEN, Model, prove


def graph(folder: Path) -> onnx.GraphProto:
    return onnx.load(folder / "m.onnx").graph


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def test_peephole_lstm_is_one_node_with_p(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = PeepholeLSTM(FEATURES, HIDDEN)
    prove(Model(layer), tmp_path, monkeypatch)
    made = graph(tmp_path)
    assert [n.op_type for n in made.node] == ["LSTM", "Squeeze", "MatMul", "Add"]
    stored = {t.name: numpy_helper.to_array(t) for t in made.initializer}
    i, f, o = layer.of(0, "weight_ch").detach().numpy()
    np.testing.assert_array_equal(stored[made.node[0].input[7]], np.concatenate([i, o, f])[None])


def test_full_matrix_peephole_lstm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """f_t = sigma(W_f . [C_{t-1}, h_{t-1}, x_t] + b_f), which ONNX has no operator for."""
    certificate = prove(Model(PeepholeLSTM(FEATURES, HIDDEN, form="full")), tmp_path, monkeypatch)
    assert {n.op_type for n in graph(tmp_path).node} == {"MatMul", "Add", "Mul", "Sigmoid", "Tanh", "Split"}
    assert [n for n in certificate.notes if "PeepholeLSTM" in n and "exactly one tick a call" in n]


def test_coupled_gates_are_one_node_whichever_gate_a_runtime_computes_from_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(Model(CoupledLSTM(FEATURES, HIDDEN)), tmp_path, monkeypatch)
    made = graph(tmp_path)
    assert [n.op_type for n in made.node] == ["LSTM", "Squeeze", "MatMul", "Add"]
    assert attribute(made.node[0], "input_forget") == 1
    stored = {t.name: numpy_helper.to_array(t) for t in made.initializer}
    for name in made.node[0].input[1:4]:
        halves = stored[name].reshape(-1, 4, HIDDEN, *stored[name].shape[2:])  # of B: W's and R's; i, o, f, g
        np.testing.assert_array_equal(halves[:, 0], -halves[:, 2])


def test_layer_normalised_lstm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prove(Model(LayerNormLSTM(FEATURES, HIDDEN)), tmp_path, monkeypatch)
    assert [n.op_type for n in graph(tmp_path).node].count("LayerNormalization") == 3
