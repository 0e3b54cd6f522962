"""Declared files with recurrent operators that keep no state are refused; others load."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runnel import Engine
from runnel.errors import ModelError, PipelineError, RunnelError
from runnel.loading import recurrence
from runnel.spec import ModelSpec

FEATURES, HIDDEN = 3, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FLOAT = TensorProto.FLOAT
value, node = helper.make_tensor_value_info, helper.make_node


def weights(op: str, directions: int = 1, size: int = FEATURES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = GATES[op] * HIDDEN
    return {
        "W": rng.standard_normal((directions, rows, size)).astype(np.float32),
        "R": rng.standard_normal((directions, rows, HIDDEN)).astype(np.float32),
        "B": rng.standard_normal((directions, 2 * rows)).astype(np.float32),
        "zeros": np.zeros((directions, 1, HIDDEN), np.float32),
        "one": np.array([1]),
    }


def write(
    folder: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    states: dict[str, str],
    shapes: str = '["time", "slot", 3]',
    more: str = "",
    functions: list[onnx.FunctionProto] | None = None,
    directions: int = 1,
) -> Path:
    """A file with input x, output y and these states (input: output), and the pipeline that declares it."""
    one_tick = "time" not in shapes
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", FLOAT, [1 if one_tick else "t", "b", FEATURES])]
        + [value(name, FLOAT, [directions, "b", HIDDEN]) for name in states],
        [value("y", FLOAT, None)] + [value(name, FLOAT, None) for name in states.values()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=functions or [])
    onnx.save(model, folder / "m.onnx")
    declared = "".join(
        f'[[model.state]]\ninput = "{name}"\noutput = "{out}"\nshape = [{directions}, "slot", {HIDDEN}]\n'
        for name, out in states.items()
    )
    path = folder / "p.toml"
    path.write_text(f'[model]\npath = "m.onnx"\n{more}\n[model.shapes]\nx = {shapes}\n{declared}')
    return path


def squeezed(source: str = "Y") -> onnx.NodeProto:
    return node("Squeeze", [source, "one"], ["y"])


def recurrent(
    op: str, h: str, c: str = "", finals: tuple[str, ...] = (), **more: Any
) -> list[onnx.NodeProto]:
    inputs = ["x", "W", "R", "B", "", h, *([c] if op == "LSTM" else [])]
    return [node(op, inputs, ["Y", *finals], name="layer", hidden_size=HIDDEN, **more), squeezed()]


BOTH = {"h": "h.next", "c": "c.next"}


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("h", ["", "zeros"])
def test_no_state_over_time(tmp_path: Path, op: str, h: str) -> None:
    path = write(tmp_path, recurrent(op, h), weights(op), {})
    with pytest.raises(
        PipelineError, match=rf"{op} 'layer' runs over the time axis and forgets: its initial_h"
    ):
        Engine.load(path)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_declared_state(tmp_path: Path, op: str) -> None:
    """It loads, and the law of chunking holds."""
    states = BOTH if op == "LSTM" else {"h": "h.next"}
    path = write(tmp_path, recurrent(op, "h", "c", tuple(states.values())), weights(op), states)
    x = np.random.default_rng(1).standard_normal((9, FEATURES)).astype(np.float32)
    with Engine.load(path) as engine:
        whole, parts = engine.open(), engine.open()
        made = np.concatenate([parts.feed(x[:4]), parts.feed(x[4:5]), parts.feed(x[5:])])
        np.testing.assert_allclose(whole.feed(x), made, atol=1e-6)


@pytest.mark.parametrize(
    ("h", "c", "finals", "states", "says"),
    [
        ("h", "", ("h.next", ""), {"h": "h.next"}, "its initial_c comes from no declared state"),
        ("", "c", ("", "c.next"), {"c": "c.next"}, "its initial_h comes from no declared state"),
        (
            "h",
            "c",
            ("", "c.next"),
            {"c": "c.next", "h": "same"},
            r"its last value \(Y_h\) becomes no declared",
        ),
        (
            "h",
            "c",
            ("h.next", ""),
            {"h": "h.next", "c": "same"},
            r"its last value \(Y_c\) becomes no declared",
        ),
    ],
)
def test_incomplete_state_is_refused(
    tmp_path: Path, h: str, c: str, finals: tuple[str, ...], states: dict[str, str], says: str
) -> None:
    nodes = recurrent("LSTM", h, c, finals)
    nodes += [node("Identity", [name], ["same"]) for name, out in states.items() if out == "same"]
    with pytest.raises(PipelineError, match=says):
        Engine.load(write(tmp_path, nodes, weights("LSTM"), states))


def test_the_last_step_may_be_cut_out_of_the_outputs(tmp_path: Path) -> None:
    """h is the last of Y, which equals Y_h."""
    nodes = [
        *recurrent("GRU", "h"),
        node("Gather", ["Y", "last"], ["h.next"], axis=0),
    ]
    constants = {**weights("GRU"), "last": np.array(-1)}
    assert Engine.load(write(tmp_path, nodes, constants, {"h": "h.next"})).open().state


def test_both_states_in_one_input(tmp_path: Path) -> None:
    """As in Silero's file: split before the layer, and joined after it."""
    nodes = [
        node("Split", ["hc"], ["h", "c"], axis=0, num_outputs=2),
        *recurrent("LSTM", "h", "c", ("h.next", "c.next")),
        node("Concat", ["h.next", "c.next"], ["hc.next"], axis=0),
    ]
    path = write(tmp_path, nodes, weights("LSTM"), {"hc": "hc.next"}, directions=2)
    assert Engine.load(path).open().state


@pytest.mark.parametrize("direction", ["bidirectional", "reverse"])
def test_backwards_over_time(tmp_path: Path, direction: str) -> None:
    """It cannot be stepped even with a state, because it begins at the end of the sequence."""
    directions = 2 if direction == "bidirectional" else 1
    [layer, _] = recurrent("GRU", "h", finals=("h.next",), direction=direction)
    nodes = [layer, node("ReduceSum", ["Y", "one"], ["y"], keepdims=0)]
    path = write(tmp_path, nodes, weights("GRU", directions), {"h": "h.next"}, directions=directions)
    with pytest.raises(ModelError, match="reads the time axis backwards"):
        Engine.load(path)


def test_one_time_step_a_call(tmp_path: Path) -> None:
    """The law of chunking holds, but a layer that restarts at each step has no memory."""
    shapes = '[1, "slot", 3]'
    path = write(tmp_path, recurrent("GRU", ""), weights("GRU"), {}, shapes)
    with pytest.raises(PipelineError, match=r"forgets between time steps: its initial_h .* restarts = true"):
        Engine.load(path)
    write(tmp_path, recurrent("GRU", ""), weights("GRU"), {}, shapes, "restarts = true")
    with Engine.load(path) as engine:
        assert engine.open().feed(np.ones((2, 1, FEATURES), np.float32)).shape == (2, 1, HIDDEN)
    write(tmp_path, recurrent("GRU", "h", finals=("h.next",)), weights("GRU"), {"h": "h.next"}, shapes)
    assert Engine.load(path).open().state


@pytest.mark.parametrize("restarts", ["true", '"yes"'])
def test_restarts_is_for_single_steps(tmp_path: Path, restarts: str) -> None:
    path = write(tmp_path, recurrent("GRU", ""), weights("GRU"), {}, more=f"restarts = {restarts}")
    with pytest.raises(
        PipelineError, match=r"runs over the time axis|restarts must be true or false, not 'yes'"
    ):
        Engine.load(path)


# Inside functions and subgraphs


def graph(nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str]) -> onnx.GraphProto:
    return helper.make_graph(
        nodes, "inner", [value(n, FLOAT, None) for n in inputs], [value(n, FLOAT, None) for n in outputs]
    )


def branches(condition: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """An If: a layer with its state in one branch, the same from zeros in the other."""
    kept = [
        node("GRU", ["x", "W", "R", "B", "", "h"], ["Yk", "hk"], hidden_size=HIDDEN),
    ]
    anew = [node("GRU", ["x", "W", "R", "B"], ["Ya", "ha"], hidden_size=HIDDEN, name="anew")]
    return [
        *condition,
        node(
            "If",
            ["condition"],
            ["Y", "h.next"],
            then_branch=graph(kept, [], ["Yk", "hk"]),
            else_branch=graph(anew, [], ["Ya", "ha"]),
        ),
        squeezed(),
    ]


def test_the_branch_that_is_taken(tmp_path: Path) -> None:
    """The file fixes, for example, the size of a state; a branch that is never taken is ignored."""
    fixed = [
        node("Shape", ["h"], ["shape"]),
        node("Gather", ["shape", "index"], ["size"]),
        node("Cast", ["size"], ["condition"], to=TensorProto.BOOL),
    ]
    constants = {**weights("GRU"), "index": np.array(2), "half": np.array(0.5, np.float32)}
    assert Engine.load(write(tmp_path, branches(fixed), constants, {"h": "h.next"})).open().state
    by_data = [
        node("ReduceMax", ["x"], ["largest"], keepdims=0),
        node("Greater", ["largest", "half"], ["condition"]),
    ]
    with pytest.raises(PipelineError, match="GRU 'anew' runs over the time axis"):
        Engine.load(write(tmp_path, branches(by_data), constants, {"h": "h.next"}))


def test_in_a_function(tmp_path: Path) -> None:
    opset = [helper.make_opsetid("", 20)]
    layer = [node("GRU", ["a", "W", "R", "B", "", "b"], ["o", "p"], hidden_size=HIDDEN, name="inside")]
    function = helper.make_function("own", "Layer", ["a", "b", "W", "R", "B"], ["o", "p"], layer, opset)
    for h, refused in (("zeros", True), ("h", False)):
        nodes = [node("Layer", ["x", h, "W", "R", "B"], ["Y", "h.next"], domain="own"), squeezed()]
        states = {"h": "h.next"}
        if refused:
            nodes += [node("Identity", ["h"], ["same"])]
            states = {"h": "same"}
        path = write(tmp_path, nodes, weights("GRU"), states, functions=[function])
        if refused:
            with pytest.raises(PipelineError, match="GRU 'inside' runs over the time axis"):
                Engine.load(path)
        else:
            assert Engine.load(path).open().state


def scan(initial: str) -> list[onnx.NodeProto]:
    """h' = tanh(h + x A), row by row."""
    body = graph(
        [
            node("MatMul", ["row", "A"], ["given"]),
            node("Add", ["now", "given"], ["sum"]),
            node("Tanh", ["sum"], ["then"]),
            node("Identity", ["then"], ["out"]),
        ],
        ["now", "row"],
        ["then", "out"],
    )
    return [
        node("Squeeze", ["h", "zero"], ["h2"]),
        node("Scan", [initial, "x"], ["last", "y"], name="scan", num_scan_inputs=1, body=body),
        node("Unsqueeze", ["last", "zero"], ["h.next"]),
    ]


def loop(initial: str, rounds: str) -> list[onnx.NodeProto]:
    body = helper.make_graph(
        [
            node("Identity", ["going"], ["goes"]),
            node("Gather", ["x", "round"], ["row"], axis=0),
            node("MatMul", ["row", "A"], ["given"]),
            node("Add", ["now", "given"], ["sum"]),
            node("Tanh", ["sum"], ["then"]),
            node("Identity", ["then"], ["out"]),
        ],
        "body",
        [
            value("round", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("now", FLOAT, None),
        ],
        [value("goes", TensorProto.BOOL, []), value("then", FLOAT, None), value("out", FLOAT, None)],
    )
    return [
        node("Squeeze", ["h", "zero"], ["h2"]),
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero0"], ["length"]),
        node("Loop", [rounds, "", initial], ["last", "y"], name="loop", body=body),
        node("Unsqueeze", ["last", "zero"], ["h.next"]),
    ]


MATRIX = {
    "A": np.random.default_rng(2).standard_normal((FEATURES, HIDDEN)).astype(np.float32),
    "zero": np.array([0]),
    "zero0": np.array(0),
    "none": np.zeros((1, HIDDEN), np.float32),
    "three": np.array(3),
}


@pytest.mark.parametrize("kind", ["scan", "loop"])
def test_scan_and_loop(tmp_path: Path, kind: str) -> None:
    def made(initial: str) -> list[onnx.NodeProto]:
        return scan(initial) if kind == "scan" else loop(initial, "length")

    assert Engine.load(write(tmp_path, made("h2"), MATRIX, {"h": "h.next"})).open().state
    with pytest.raises(
        PipelineError, match=rf"'{kind}' runs over the time axis and forgets: its carried value"
    ):
        Engine.load(write(tmp_path, made("none"), MATRIX, {"h": "h.next"}))


def test_a_loop_of_fixed_rounds_is_not_over_time() -> None:
    nodes = loop("none", "three")
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", FLOAT, ["t", "b", FEATURES]), value("h", FLOAT, [1, "b", HIDDEN])],
        [value("y", FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in MATRIX.items()],
    )
    data = helper.make_model(graph).SerializeToString()
    from tests.models import tensor

    spec = ModelSpec((tensor("x", ("time", "slot", FEATURES)),), (), (), any_ticks=True)
    recurrence.check(data, spec, False, "m")
    data = data.replace(b"three", b"shape")
    with pytest.raises(PipelineError, match="'loop' runs over the time axis"):
        recurrence.check(data, spec, False, "m")


# Malicious and damaged files


def test_functions_that_multiply(tmp_path: Path) -> None:
    """40 functions that each call the previous one twice would be 2^40 nodes."""
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "F0", ["a"], ["b"], [node("Tanh", ["a"], ["b"])], opset)]
    for i in range(1, 41):
        calls = [
            node(f"F{i - 1}", ["a"], ["m"], domain="own"),
            node(f"F{i - 1}", ["m"], ["b"], domain="own"),
        ]
        functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], calls, opset))
    graph = helper.make_graph(
        [node("F40", ["x"], ["y"], domain="own")], "g", [value("x", FLOAT, None)], [value("y", FLOAT, None)]
    )
    data = helper.make_model(graph, functions=functions).SerializeToString()
    with pytest.raises(ModelError, match="has more than"):
        recurrence.check(data, ModelSpec((), (), ()), False, "m")
    own = helper.make_function("own", "F", ["a"], ["b"], [node("F", ["a"], ["b"], domain="own")], opset)
    graph.node[0].op_type = "F"
    data = helper.make_model(graph, functions=[own]).SerializeToString()
    with pytest.raises(ModelError, match="nest more than 64 deep"):
        recurrence.check(data, ModelSpec((), (), ()), False, "m")


def test_damaged_bytes(tmp_path: Path) -> None:
    """The result is an error of the tree, or no error."""
    data = bytearray(write(tmp_path, scan("none"), MATRIX, {}).with_name("m.onnx").read_bytes())
    rng = np.random.default_rng(3)
    spec = ModelSpec((), (), ())
    for _ in range(300):
        bad = data.copy()
        bad[rng.integers(len(bad))] = rng.integers(256)
        with suppress(RunnelError):
            recurrence.check(bytes(bad[: rng.integers(1, len(bad) + 1)]), spec, False, "m")
