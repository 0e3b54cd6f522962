"""Small step models written with onnx by hand: what the engine must run, whoever exported it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from runnel.grouping import Framing
from runnel.loading import container
from runnel.probe import Probe
from runnel.spec import ModelSpec, ModelState, ModelTensor, initial_row, to_document

_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


@dataclass(frozen=True)
class Hand:
    """A sealed model file and its spec."""

    path: Path
    spec: ModelSpec

    def session(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])

    def loop(self, chunk: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The oracle: a plain loop of session.run, one stream, one tick at a time."""
        session, spec = self.session(), self.spec
        state = {s.input: np.expand_dims(s.initial, s.slot_axis).copy() for s in spec.states}
        outs: dict[str, list[np.ndarray]] = {t.name: [] for t in spec.outputs}
        for tick in range(len(next(iter(chunk.values())))):
            feeds = {t.name: chunk[t.name][tick].reshape(t.sized(1, 1)) for t in spec.inputs}
            found = dict(
                zip([o.name for o in session.get_outputs()], session.run(None, feeds | state), strict=True)
            )
            state = {s.input: found[s.output] for s in spec.states}
            for t in spec.outputs:
                outs[t.name].append(found[t.name].reshape(t.step_shape))
        return {name: np.array(values) for name, values in outs.items()}


def tensor(name: str, shape: tuple[int | str, ...], dtype: str = "float32") -> ModelTensor:
    return ModelTensor(name, dtype, shape)


def state(
    name: str, shape: tuple[int | str, ...], initial: object = 0.0, dtype: str = "float32"
) -> ModelState:
    rows = tuple(d for d in shape if isinstance(d, int))
    return ModelState(name, f"{name}.next", dtype, shape, initial_row(initial, rows, dtype, name))


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: list[ModelTensor],
    outputs: list[ModelTensor],
    states: list[ModelState],
    any_ticks: bool = True,
    certificate: dict[str, object] | None = None,
    framing: Framing | None = None,
    probe: Probe | None = None,
) -> Hand:
    def value(name: str, dtype: str, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, _TYPES[dtype], list(shape))

    graph = helper.make_graph(
        nodes,
        "hand",
        [value(t.name, t.dtype, t.shape) for t in inputs]
        + [value(s.input, s.dtype, s.shape) for s in states],
        [value(t.name, t.dtype, t.shape) for t in outputs]
        + [value(s.output, s.dtype, s.shape) for s in states],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    spec = ModelSpec(
        tuple(inputs),
        tuple(outputs),
        tuple(states),
        framing=framing,
        any_ticks=any_ticks,
        certificate=certificate or {"by": "hand"},
        probe=probe,
    )
    path.write_bytes(container.seal(model.SerializeToString(), to_document(spec)))
    return Hand(path, spec)


def lstm(
    path: Path, features: int = 3, hidden: int = 4, layers: int = 2, outputs: int = 2, seed: int = 0
) -> Hand:
    """A stack of LSTM layers with a Linear on top: x (T, features) -> y (T, outputs)."""
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    nodes, weights, states = [], {"axis": np.array([1])}, []
    current, size = "x", features
    for i in range(layers):
        weights |= {f"W{i}": weight(1, 4 * hidden, size), f"R{i}": weight(1, 4 * hidden, hidden)}
        weights[f"B{i}"] = weight(1, 8 * hidden)
        names = [current, f"W{i}", f"R{i}", f"B{i}", "", f"h{i}", f"c{i}"]
        nodes.append(
            helper.make_node("LSTM", names, [f"Y{i}", f"h{i}.next", f"c{i}.next"], hidden_size=hidden)
        )
        nodes.append(helper.make_node("Squeeze", [f"Y{i}", "axis"], [f"s{i}"]))
        states += [state(f"h{i}", (1, "slot", hidden)), state(f"c{i}", (1, "slot", hidden), 0.25)]
        current, size = f"s{i}", hidden
    weights |= {"V": weight(hidden, outputs), "b": weight(outputs)}
    nodes += [helper.make_node("MatMul", [current, "V"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    return write(
        path,
        nodes,
        weights,
        [tensor("x", ("time", "slot", features))],
        [tensor("y", ("time", "slot", outputs))],
        states,
    )


def counter(path: Path) -> Hand:
    """Two inputs, two outputs, a state whose slot axis is not first, exactly one tick a call.

    total' = total + a + b;  y = total', z = a * count';  count' = count + 1, kept as int64.
    """
    nodes = [
        helper.make_node("Add", ["a", "b"], ["ab"]),
        helper.make_node("Unsqueeze", ["ab", "zero"], ["ab3"]),
        helper.make_node("Add", ["total", "ab3"], ["total.next"]),
        helper.make_node("ReduceSum", ["total.next", "zero"], ["y"], keepdims=0),
        helper.make_node("Add", ["count", "one"], ["count.next"]),
        helper.make_node("Cast", ["count.next"], ["n"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["a", "n"], ["z"]),
    ]
    return write(
        path,
        nodes,
        {"zero": np.array([0]), "one": np.array([[1]])},
        [tensor("a", ("slot", 2)), tensor("b", ("slot", 2))],
        [tensor("y", ("slot", 2)), tensor("z", ("slot", 2))],
        [state("total", (2, "slot", 2), [[1.0, 2.0], [3.0, 4.0]]), state("count", ("slot", 1), 0, "int64")],
        any_ticks=False,
    )


def embedding(path: Path, words: int = 5, size: int = 3) -> Hand:
    """Tokens in, a running sum of their embeddings out: an index out of range fails inside onnxruntime."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Gather", ["E", "token"], ["e"]),
        helper.make_node("Add", ["acc", "e"], ["acc.next"]),
        helper.make_node("Mul", ["acc.next", "two"], ["y"]),
    ]
    return write(
        path,
        nodes,
        {"E": rng.standard_normal((words, size)).astype(np.float32), "two": np.array(2, np.float32)},
        [tensor("token", ("slot",), "int64")],
        [tensor("y", ("slot", size))],
        [state("acc", ("slot", size))],
        any_ticks=False,
    )


def blowup(path: Path) -> Hand:
    """A state that squares itself: finite input can make it infinite."""
    nodes = [
        helper.make_node("Add", ["s", "x"], ["sx"]),
        helper.make_node("Mul", ["sx", "sx"], ["s.next"]),
        helper.make_node("Tanh", ["s.next"], ["y"]),
    ]
    return write(
        path,
        nodes,
        {},
        [tensor("x", ("slot", 1))],
        [tensor("y", ("slot", 1))],
        [state("s", ("slot", 1))],
        False,
    )


def stateless(path: Path) -> Hand:
    nodes = [helper.make_node("Tanh", ["x"], ["y"])]
    return write(path, nodes, {}, [tensor("x", ("time", "slot", 2))], [tensor("y", ("time", "slot", 2))], [])


def data(hand: Hand, ticks: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A random chunk for a model of this file."""
    rng = np.random.default_rng(seed)
    made = {}
    for t in hand.spec.inputs:
        if t.dtype == "int64":
            made[t.name] = rng.integers(0, 5, (ticks, *t.step_shape))
        else:
            made[t.name] = rng.standard_normal((ticks, *t.step_shape)).astype(t.dtype)
    return made


def accumulator(path: Path, dtype: str = "float32") -> Hand:
    """A state of one number a stream, without further dimensions: s' = s + x, y = s'."""
    nodes = [
        helper.make_node("Add", ["s", "x"], ["s.next"]),
        helper.make_node("Mul", ["s.next", "one"], ["y"]),
    ]
    return write(
        path,
        nodes,
        {"one": np.array(1, dtype)},
        [tensor("x", ("slot",), dtype)],
        [tensor("y", ("slot",), dtype)],
        [state("s", ("slot",), 0, dtype)],
        any_ticks=False,
    )
