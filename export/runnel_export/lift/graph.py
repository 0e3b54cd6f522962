"""A small ONNX graph under construction: nodes that are never written twice, and none that is not needed.

Equal nodes (same op, inputs and attributes) are one node. That is not only economy: it is how a loop
over time that torch unrolled falls back into one node for the whole sequence (see `interpret`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from runnel.errors import ExportError

OPSET = 20
IR_VERSION = 10  # what every onnxruntime since 1.18 reads; onnx's own default is newer
_RESHAPING = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

_ALL_OUTPUTS = ("Scan", "Split", "TopK")  # operators none of whose outputs may be left out

Attribute = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...] | onnx.GraphProto
Array = np.ndarray[Any, np.dtype[Any]]
Dims = tuple[int | str, ...]

NUMPY_OF = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.float64: "float64",
    torch.int8: "int8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
    torch.bool: "bool",
}


@dataclass(frozen=True, slots=True)
class Port:
    """A named input or output of the finished graph."""

    name: str
    dtype: torch.dtype
    dims: Dims


@dataclass(frozen=True, slots=True)
class _Node:
    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


class Graph:
    """Collects nodes and constants; `finish` makes the model of those that the outputs need."""

    def __init__(self) -> None:
        self._nodes: list[_Node] = []
        self._memo: dict[object, tuple[str, ...]] = {}
        self._arrays: dict[str, Array] = {}
        self._constant_names: dict[object, str] = {}
        self._taken: set[str] = set()

    def fresh(self, hint: str) -> str:
        """A value or node name that nobody has: `hint`, or `hint_2` …"""
        name, count = hint, 1
        while name in self._taken:
            count += 1
            name = f"{hint}_{count}"
        self._taken.add(name)
        return name

    def constant(self, array: Array, hint: str = "const") -> str:
        """The name of a constant with this dtype, shape and bytes."""
        array = np.array(array, order="C")  # (ascontiguousarray would make a scalar 1-D)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constant_names:
            name = self.fresh(hint)
            self._constant_names[key] = name
            self._arrays[name] = array
        return self._constant_names[key]

    def ints(self, *values: int) -> str:
        """A 1-D int64 constant: axes, shapes, starts."""
        return self.constant(np.array(values, np.int64), "ints_" + "_".join(map(str, values)))

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        hint: str,
        outputs: Sequence[str] = ("",),
    ) -> tuple[str, ...]:
        """Output names of this node, written now or before. `hint` names it; `outputs` are suffixes."""
        attributes = dict(attributes or {})
        key = (op, tuple(inputs), tuple(sorted((n, _key(a)) for n, a in attributes.items())), len(outputs))
        if key not in self._memo and op == "Unsqueeze":
            undone = self._before(inputs[0], "Squeeze", inputs[1])
            if undone is not None:
                self._memo[key] = (undone,)
        if key not in self._memo:
            name = self.fresh(hint)
            made = tuple(name if not suffix else self.fresh(f"{name}.{suffix}") for suffix in outputs)
            self._nodes.append(_Node(op, name, tuple(inputs), made, attributes))
            self._memo[key] = made
        return self._memo[key]

    def _before(self, value: str, op: str, axes: str) -> str | None:
        """What `value` was before an `op` with these axes made it; None where something else did."""
        node = next((n for n in self._nodes if value in n.outputs), None)
        return node.inputs[0] if node is not None and (node.op, node.inputs[1:]) == (op, (axes,)) else None

    def origin(self, value: str) -> str:
        """The value that `value` is, seen through nodes that change its shape only."""
        makers = {out: node for node in self._nodes for out in node.outputs}
        while value in makers and makers[value].op in _RESHAPING:
            value = makers[value].inputs[0]
        return value

    def reached(self, ends: Sequence[str]) -> set[str]:
        """Every value that these values are made of, themselves included."""
        makers = {out: node for node in self._nodes for out in node.outputs}
        found: set[str] = set()
        todo = list(ends)
        while todo:
            name = todo.pop()
            if name and name not in found:
                found.add(name)
                if name in makers:
                    todo.extend(makers[name].inputs)
        return found

    def finish(
        self, name: str, inputs: Sequence[Port], outputs: Sequence[tuple[str, Port]]
    ) -> onnx.ModelProto:
        """The model: `outputs` are (value, port) pairs, and a value takes its port's name."""
        renamed: dict[str, str] = {}
        fixed = {port.name for port in inputs} | set(self._arrays)
        for value, port in outputs:
            if value in fixed or value in renamed:  # a name can be given once: only here an Identity
                copied = self.fresh(f"{port.name}/Identity")
                self._nodes.append(_Node("Identity", copied, (value,), (copied,), {}))
                renamed[copied] = port.name
            else:
                renamed[value] = port.name
        ends = list(renamed)
        needed = self.reached(ends)
        nodes = [n for n in self._nodes if any(out in needed for out in n.outputs)]
        model = helper.make_model(
            helper.make_graph(
                [self._proto(n, renamed, needed) for n in nodes],
                name,
                [_info(p) for p in inputs],
                [_info(p) for _, p in outputs],
                [numpy_helper.from_array(a, n) for n, a in self._arrays.items() if n in needed],
            ),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="runnel",
        )
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise ExportError(
                f"{name}: a fault of the exporter: its graph is not ONNX ({first}); please report it"
            ) from error
        return model

    @staticmethod
    def _proto(node: _Node, renamed: Mapping[str, str], needed: set[str]) -> onnx.NodeProto:
        # ONNX marks an output that nobody reads by an empty name; trailing ones are left out.
        needed = needed.union(node.outputs) if node.op in _ALL_OUTPUTS else needed
        outs = [renamed.get(o, o) if o in needed else "" for o in node.outputs]
        while outs and not outs[-1]:
            outs.pop()
        ins = [renamed.get(i, i) for i in node.inputs]
        while ins and not ins[-1]:
            ins.pop()
        return helper.make_node(node.op, ins, outs, name=node.name, **dict[str, Any](node.attributes))


def _key(attribute: Attribute) -> object:
    return attribute.SerializeToString() if isinstance(attribute, onnx.GraphProto) else attribute


def _info(port: Port) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(NUMPY_OF[port.dtype]))
    return helper.make_tensor_value_info(port.name, kind, list(port.dims))
