"""ONNX's Scan: a tick written once in the node's body, and one row a slot carried from tick to tick.

Scan costs about 1 µs a tick (seen: 64 ticks of 64 numbers in 82 µs, 74 of them for 16 numbers); a call of the
engine for each tick costs ten times that.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ..graph import Attribute
from ..lowering import Lowering


def linear(
    low: Lowering, xs: Sequence[str], starts: Sequence[str], backward: bool = False
) -> tuple[str, list[str]]:
    """h = a * h + b for `xs` a and b, (time, slot, width): (h of every tick, [the last])."""
    return _scan(low, xs, starts, _linear(low), backward)


def peepholes(low: Lowering, xs: Sequence[str], start: str, peephole: Tensor) -> str:
    """The cell states of an LSTM whose gates i and f see the last one, by the rows of `peephole`.

    `xs`, each (time, slot, hidden): what i and f are besides, before their sigmoid, and the candidate.
    """
    return _scan(low, xs, [start], _peepholes(low, peephole))[0]


def _scan(
    low: Lowering, xs: Sequence[str], starts: Sequence[str], body: onnx.GraphProto, backward: bool = False
) -> tuple[str, list[str]]:
    """(the row after every tick, [the last, of shape (1, slot, width)])."""
    row = low.node("Squeeze", starts[0], low.graph.ints(0))
    attributes: dict[str, Attribute] = {"body": body, "num_scan_inputs": len(xs)}
    if backward:
        attributes |= {"scan_input_directions": (1,) * len(xs), "scan_output_directions": (1,)}
    end, y = low.emit("Scan", [row, *xs], attributes, ("h", "y"))
    return y, [low.node("Unsqueeze", end, low.graph.ints(0))]


def _row(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _linear(low: Lowering) -> onnx.GraphProto:
    """One tick. Names in a body must be none of the graph's."""
    h, a, b, kept, after, y = (low.graph.fresh(f"tick/{n}") for n in ("h", "a", "b", "kept", "next", "y"))
    nodes = [
        helper.make_node("Mul", [a, h], [kept]),
        helper.make_node("Add", [kept, b], [after]),
        helper.make_node("Identity", [after], [y]),
    ]
    return helper.make_graph(nodes, "tick", [_row(h), _row(a), _row(b)], [_row(after), _row(y)])


def _peepholes(low: Lowering, peephole: Tensor) -> onnx.GraphProto:
    names = ("c", "a_i", "a_f", "g", "p_i", "p_f", "kept", "taken", "next", "y")
    c, a_i, a_f, g, p_i, p_f, kept, taken, after, y = (low.graph.fresh(f"tick/{n}") for n in names)

    def gate(a: str, p: str) -> tuple[str, list[onnx.NodeProto]]:
        seen, whole, made = (low.graph.fresh(f"{a}/{n}") for n in ("seen", "sum", "gate"))
        return made, [
            helper.make_node("Mul", [p, c], [seen]),
            helper.make_node("Add", [a, seen], [whole]),
            helper.make_node("Sigmoid", [whole], [made]),
        ]

    (i, of_i), (f, of_f) = gate(a_i, p_i), gate(a_f, p_f)
    nodes = [
        *of_i,
        *of_f,
        helper.make_node("Mul", [f, c], [kept]),
        helper.make_node("Mul", [i, g], [taken]),
        helper.make_node("Add", [kept, taken], [after]),
        helper.make_node("Identity", [after], [y]),
    ]
    stored = [
        numpy_helper.from_array(row.detach().cpu().contiguous().numpy(), name)
        for name, row in zip((p_i, p_f), peephole, strict=False)
    ]
    inputs = [_row(name) for name in (c, a_i, a_f, g)]
    return helper.make_graph(nodes, "tick", inputs, [_row(after), _row(y)], stored)
