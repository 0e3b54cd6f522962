"""Step models written by hand, right ones and broken ones: what a faulty exporter might produce."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from runnel.spec import ModelSpec, ModelState, ModelTensor, initial_row
from runnel_export.lift.lift import Lifted

FEATURES, HIDDEN, OUT = 5, 8, 3


class Recurrent(nn.Module):
    """One recurrent layer with a Linear after it and, for LSTM, a learned initial state."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.kind = kind
        layer = {"LSTM": nn.LSTM, "GRU": nn.GRU}[kind]
        self.layer = layer(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, OUT)
        self.start = nn.Parameter(torch.randn(2, HIDDEN) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        start = [row.expand(1, x.shape[0], HIDDEN).contiguous() for row in self.start]
        y, _ = self.layer(x, (start[0], start[1]) if self.kind == "LSTM" else start[0])
        return self.fc(y)


_ORDER = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2]}  # ONNX's gates, i o f c and z r h, in torch's order


def lifted(module: Recurrent, fault: str = "none") -> Lifted:
    """The module's step model; `fault` names one thing that is wrong with it."""
    kind, layer = module.kind, module.layer
    order = list(range(len(_ORDER[kind]))) if fault == "gate order" else _ORDER[kind]

    def gates(tensor: Tensor) -> np.ndarray:
        parts = tensor.detach().numpy().reshape(len(order), HIDDEN, -1)
        return np.concatenate([parts[i] for i in order])[None]

    bias = np.concatenate([gates(layer.bias_ih_l0), gates(layer.bias_hh_l0)], axis=1)[..., 0]
    weight = gates(layer.weight_ih_l0)
    if fault == "one weight off":
        weight[0, 0, 0] += 0.01
    stored = {
        "W": weight, "R": gates(layer.weight_hh_l0), "B": bias,
        "V": module.fc.weight.detach().numpy().T.copy(), "b": module.fc.bias.detach().numpy(),
        "one": np.array([1]), "zero": np.array([0]), "last": np.array([-1]),
    }  # fmt: skip
    names = ["h", "c"] if kind == "LSTM" else ["h"]
    given = names[::-1] if fault == "state inputs swapped" else names
    made = [f"{n}.next" for n in (names[::-1] if fault == "state outputs swapped" else names)]
    stuck = {"state not fed back": names, "c not fed back": ["c"]}.get(fault, [])
    for name in stuck:
        made[made.index(f"{name}.next")] = f"{name}.unused"
    reset = {} if kind == "LSTM" else {"linear_before_reset": int(fault != "reset gate before")}
    nodes = [
        helper.make_node(
            kind,
            ["x", "W", "R", "B", "", *([] if fault == "state not read" else given)],
            ["Y", *made],
            hidden_size=HIDDEN,
            **reset,
        ),
        helper.make_node("Squeeze", ["Y", "one"], ["S"]),
        *(helper.make_node("Identity", [n], [f"{n}.next"]) for n in stuck),
    ]
    features = "S"
    if fault == "one tick late":
        nodes += [
            helper.make_node("Concat", ["h", "S"], ["HS"], axis=0),
            helper.make_node("Slice", ["HS", "zero", "last", "zero"], ["late"]),
        ]
        features = "late"
    nodes += [helper.make_node("MatMul", [features, "V"], ["M"]), helper.make_node("Add", ["M", "b"], ["y"])]

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    graph = helper.make_graph(
        nodes,
        "step",
        [value("x", "time", "slot", FEATURES), *(value(n, 1, "slot", HIDDEN) for n in names)],
        [value("y", "time", "slot", OUT), *(value(f"{n}.next", 1, "slot", HIDDEN) for n in names)],
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    start = module.start.detach().numpy()
    states = tuple(
        ModelState(
            n, f"{n}.next", "float32", (1, "slot", HIDDEN),
            initial_row(0 if fault == "initial state lost" else start[i][None], (1, HIDDEN), "float32", n),
        )
        for i, n in enumerate(names)
    )  # fmt: skip
    spec = ModelSpec(
        (ModelTensor("x", "float32", ("time", "slot", FEATURES)),),
        (ModelTensor("y", "float32", ("time", "slot", OUT)),),
        states,
    )
    return Lifted(model, spec, ())
