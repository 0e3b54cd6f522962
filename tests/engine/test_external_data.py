"""A model with numbers in another file is refused, wherever the tensor is."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runnel import Engine
from runnel.errors import ModelError
from runnel.loading import container
from tests import models


def outside(name: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    onnx.external_data_helper.set_external_data(_filled(tensor), "weights.bin")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def _filled(tensor: onnx.TensorProto) -> onnx.TensorProto:
    tensor.raw_data = bytes(4)
    return tensor


def graph(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> onnx.GraphProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in "xy")
    return helper.make_graph(nodes, "g", [x], [y], initializers)


def add(name: str = "w") -> onnx.NodeProto:
    return helper.make_node("Add", ["x", name], ["y"])


def constant(tensor: onnx.TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["w"], value=tensor)


def branch(tensor: onnx.TensorProto) -> onnx.NodeProto:
    result = helper.make_tensor_value_info("w", TensorProto.FLOAT, [1])
    inner = helper.make_graph([constant(tensor)], "branch", [], [result])
    return helper.make_node("If", ["yes"], ["w"], then_branch=inner, else_branch=inner)


YES = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
INSIDE = numpy_helper.from_array(np.ones(1, np.float32), "w")
SPARSE = helper.make_sparse_tensor(outside("w"), helper.make_tensor("i", TensorProto.INT64, [1], [0]), [1])
GRAPHS = {
    "a weight": graph([add()], [outside("w")]),
    "a constant": graph([constant(outside("w")), add()], []),
    "a branch": graph([branch(outside("w")), add()], [YES]),
    "a list": graph([helper.make_node("Odd", [], ["w"], many=[INSIDE, outside("w")]), add()], []),
    "a sparse one": graph([helper.make_node("Constant", [], ["w"], sparse_value=SPARSE), add()], []),
}


def saved(folder: Path, built: onnx.GraphProto) -> Path:
    model = helper.make_model(built, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    (folder / "weights.bin").write_bytes(bytes(4))
    (folder / "p.toml").write_text('[model]\npath = "m.onnx"\n')
    return folder / "p.toml"


@pytest.mark.parametrize("kind", GRAPHS)
def test_numbers_in_another_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # onnxruntime's search path
    path = saved(tmp_path, GRAPHS[kind])
    with pytest.raises(ModelError, match=r"tensor 'w' are in another file, 'weights.bin'"):
        Engine.load(path)


@pytest.mark.parametrize(
    "built", [graph([add()], [INSIDE]), graph([branch(INSIDE), add()], [YES])], ids=["weight", "branch"]
)
def test_numbers_in_the_file(tmp_path: Path, built: onnx.GraphProto) -> None:
    with Engine.load(saved(tmp_path, built)) as engine:
        out = engine.open().feed(np.ones((2, 1), np.float32))
    assert out.tolist() == [[2], [2]]


def test_a_function_of_the_models_own() -> None:
    function = helper.make_function("own", "f", [], ["w"], [constant(outside("w"))], [])
    model = helper.make_model(graph([add()], []), functions=[function])
    with pytest.raises(ModelError, match="another file"):
        container.refuse_external(model.SerializeToString(), "m")


def test_graphs_that_are_too_deep_are_refused_soon() -> None:
    inner = b""
    for _ in range(2000):  # graph > node > attribute > graph
        for field in (6, 5, 1):
            inner = bytes([field << 3 | 2]) + _varint(len(inner)) + inner
    data = bytes([7 << 3 | 2]) + _varint(len(inner)) + inner
    with pytest.raises(ModelError, match="deep"):
        container.refuse_external(data, "m")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_a_large_model_costs_little(tmp_path: Path) -> None:
    path = models.lstm(tmp_path / "m.onnx").path
    data = path.read_bytes()
    began = time.process_time()
    container.refuse_external(data, "m")
    assert time.process_time() - began < 1
