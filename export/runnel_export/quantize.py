"""Quantise weights to int8 by onnxruntime's dynamic quantisation, and report the rest."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from runnel.errors import ExportError

# The operators whose weights onnxruntime keeps in int8 at run time. It has none for GRU and RNN, and
# its integer convolution is slower than the float one at a stream's sizes.
OPERATORS = ("LSTM", "MatMul", "Gather")

# Positions of an operator's weights among its inputs. Its other stored inputs are biases, scales and shapes.
_WEIGHTS = {
    "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "MatMul": (0, 1), "Gemm": (0, 1), "Gather": (0,),
    "Conv": (1,), "ConvTranspose": (1,),
}  # fmt: skip


def quantize_int8(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return the model with its weights in int8, if their operators allow it, and an account for JSON.

    Inputs, outputs, states and their names, the IR version and the opset stay as they are. In the account,
    ``int8`` and ``float32`` are lists of {"node", "op", "weight", "bytes"} (bytes before quantisation), and
    ``before`` and ``after`` are the graph's sizes in bytes. Raises ExportError if no weight can be quantised.
    """
    with tempfile.TemporaryDirectory(prefix="runnel-int8-") as folder, _quiet():
        file = Path(folder) / "int8.onnx"
        source = onnx.ModelProto()
        source.CopyFrom(model)  # quantize_dynamic changes its argument
        _unshare(source.graph)
        quantize_dynamic(source, file, op_types_to_quantize=list(OPERATORS), weight_type=QuantType.QInt8)
        small = onnx.load(file)
    small.ir_version = model.ir_version
    account = _account(model, small)
    if not account["int8"]:
        held = ", ".join(sorted({str(w["op"]) for w in account["float32"]})) or "none"
        raise ExportError(
            f"quantize='int8': no weight can be held in int8 (weights are in: {held}; possible in: "
            f"{', '.join(OPERATORS)}). Export it in float32"
        )
    return small, account


def _unshare(graph: onnx.GraphProto) -> None:
    """Copy weights that several LSTMs share: onnxruntime 1.31 transposes them in place for each node."""
    stored = {t.name: t for t in graph.initializer}
    seen: set[str] = set()
    for node in graph.node:
        for place in _WEIGHTS["LSTM"] if node.op_type == "LSTM" else ():
            name = node.input[place]
            if name in seen:
                copy = graph.initializer.add()
                copy.CopyFrom(stored[name])
                copy.name = node.input[place] = f"{name}/{node.name}"
            seen.add(name)


def _account(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, Any]:
    kept = {t.name for t in after.graph.initializer}
    stored = {t.name: t for t in before.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    account: dict[str, list[dict[str, Any]]] = {"int8": [], "float32": []}
    for node in before.graph.node:
        for place in _WEIGHTS.get(node.op_type, ()):
            name = node.input[place]
            if name in stored:
                size = stored[name].ByteSize()
                entry = {"node": node.name, "op": node.op_type, "weight": name, "bytes": size}
                account["float32" if name in kept else "int8"].append(entry)
    return {**account, "before": before.ByteSize(), "after": after.ByteSize()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice on quantisation out of the user's log and terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
