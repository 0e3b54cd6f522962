"""Cost of a graph: its operators, its stored numbers, and the FLOPs of one step of one stream.

FLOPs are counted from the graph, for one stream and one tick. A multiply and an add are two FLOPs. An
elementwise operator is one FLOP per element, for any function. Moving data costs none. The recurrent
layers follow the equations of the ONNX operators (https://onnx.ai/onnx/operators/): each gate has a
product with the input, a product with the state, and elementwise work to join the two.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import onnx
from onnx import numpy_helper, shape_inference

from runnel.errors import ExportError

Shapes = Mapping[str, tuple[int, ...]]

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# Per hidden element, beyond the products: LSTM: 4 gates x (2 adds, 1 activation), then f*c + i*g,
# tanh, o*h; GRU: 3 gates x (2 adds, 1 activation), r*h, and (1 - z)*n + z*h; RNN: 2 adds, 1 activation.
_JOIN = {"LSTM": 17, "GRU": 14, "RNN": 3}
_FREE = frozenset(
    (
        "Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "EyeLike", "Flatten", "Gather",
        "GatherElements", "GatherND", "Identity", "OneHot", "Pad", "Range", "Reshape", "Shape", "Size",
        "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    )
)  # fmt: skip
_PER_ELEMENT = {"Softmax": 5, "LogSoftmax": 5, "LayerNormalization": 8, "Gelu": 8, "Mish": 4}


def describe(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the operators, parameters, bytes and FLOPs of a step model, as JSON values."""
    ops = Counter(node.op_type for graph in _graphs(model.graph) for node in graph.node)
    return {
        "ops": dict(sorted(ops.items())),
        "parameters": parameters(model),
        "bytes": model.ByteSize(),
        "flops": flops(model),
        "opset": next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        "ir": model.ir_version,
    }


def describe_file(data: bytes) -> dict[str, Any]:
    """Call `describe` for the bytes of any ONNX file, also one that Runnel did not export."""
    return describe(onnx.load_model_from_string(data))


def parameters(model: onnx.ModelProto) -> int:
    """Count the numbers that the model stores: weights, biases and tables, but not integers for shapes."""
    shapes = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
    stored = [t for graph in _graphs(model.graph) for t in (*graph.initializer, *_constants(graph))]
    return sum(math.prod(t.dims) for t in stored if t.data_type not in shapes)


def flops(model: onnx.ModelProto) -> int | None:
    """Count the FLOPs of one tick of one stream. None if the graph branches or a shape is unknown."""
    if len(list(_graphs(model.graph))) > 1:
        return None
    known = _shapes(model)
    try:
        return sum(_flops(node, known) for node in model.graph.node)
    except KeyError:
        return None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph, and the branches and loop bodies inside it at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            yield node.attribute[0].t


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of every value. All free sizes (time and slots) are set to one."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for value in (*single.graph.input, *single.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") or dim.dim_value < 1:
                dim.dim_value = 1
    del single.graph.value_info[:]
    try:
        inferred = shape_inference.infer_shapes(single, data_prop=True)
    except Exception as error:  # onnx raises its own classes, not exported under one name
        raise ExportError(f"the graph's shapes do not fit together: {error}") from error
    shapes = {t.name: tuple(t.dims) for t in inferred.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    for node in inferred.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            shapes[node.output[0]] = numpy_helper.to_array(node.attribute[0].t).shape
    return shapes


def _flops(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Return one node's FLOPs. Raise KeyError if a shape that they depend on is unknown."""
    if node.op_type in _FREE:
        return 0
    if node.op_type in _COUNTS:
        return _COUNTS[node.op_type](node, shapes)
    outputs = [math.prod(shapes[name]) for name in node.output if name]
    if node.op_type.startswith("Reduce") or node.op_type in ("ArgMax", "ArgMin"):
        return math.prod(shapes[node.input[0]])
    return _PER_ELEMENT.get(node.op_type, 1) * max(outputs, default=0)


def _matmul(node: onnx.NodeProto, shapes: Shapes) -> int:
    return 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    out = math.prod(shapes[node.output[0]])
    inner = math.prod(shapes[node.input[0]]) // shapes[node.output[0]][0]
    return 2 * out * inner + (out if len(node.input) > 2 else 0)


def _conv(node: onnx.NodeProto, shapes: Shapes) -> int:
    weight = shapes[node.input[1]]  # (out channels, in channels of a group, *kernel)
    out = math.prod(shapes[node.output[0]])
    return 2 * out * math.prod(weight[1:]) + (out if len(node.input) > 2 else 0)


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> int:
    ticks, batch, features = shapes[node.input[0]]
    directions, _, hidden = shapes[node.input[2]]  # the recurrent weights: (directions, gates*H, H)
    gates = _GATES[node.op_type]
    each = 2 * gates * hidden * (features + hidden) + _JOIN[node.op_type] * hidden
    if len(node.input) > 7 and node.input[7]:  # peepholes: a multiply and an add at three gates
        each += 6 * hidden
    return ticks * batch * directions * each


_COUNTS: dict[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
