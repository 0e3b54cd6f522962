"""`runnel_export.nn.linear_scan` as ONNX's Scan: h = a * h + b, tick after tick, any number a call.

Scan costs about 1 µs a tick (seen: 64 ticks of 64 numbers in 82 µs, 74 of them for 16 numbers); a call of the
engine for each tick costs ten times that, and ONNX's GRU with recurrent weights of zero, which is a minGRU
too, multiplies by them: at 256 numbers five times slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from ..lowering import Lowering, Recurrence
from ..values import TIME, Data, Value
from .blocked import in_blocks
from .recurrence import carry_on, initial_state
from .registry import handles


@handles("runnel::linear_scan", lazy=True)
def linear_scan(low: Lowering, a: Data | Tensor, b: Data | Tensor, start: Data | Tensor, layer: int) -> Value:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        raise low.untranslated("a linear recurrence of which a or b does not depend on the input")
    va, vb = (low.value(x) for x in (a, b))
    if va.axes[1] != TIME or va.axes != vb.axes or va.dtype != torch.float32:
        raise low.untranslated(f"a linear recurrence over ({', '.join(map(str, va.axes))}) of {va.dtype}")
    va, vb = (low.arrange(v, (1, 0, 2)) for v in (va, vb))
    initial = initial_state(low, start, f"h.{layer}")
    y, (end,) = in_blocks(low, lambda xs, hs: _scan(low, xs, hs), [va.name, vb.name], [initial])
    made = Recurrence("Scan", va.name, (), y, end, None, (initial,), low.where)
    low.recurrences.append(made)
    carry_on(low, [initial], made)
    return Value(y, vb.axes, vb.order, vb.dtype)


def _scan(low: Lowering, xs: Sequence[str], starts: Sequence[str]) -> tuple[str, list[str]]:
    """(h of every tick, [the last, of shape (1, slot, width)])."""
    row = low.node("Squeeze", starts[0], low.graph.ints(0))
    end, y = low.emit("Scan", [row, *xs], {"body": _body(low), "num_scan_inputs": 2}, ("h", "y"))
    return y, [low.node("Unsqueeze", end, low.graph.ints(0))]


def _body(low: Lowering) -> onnx.GraphProto:
    """One tick. Names in a body must be none of the graph's."""
    h, a, b, kept, after, y = (low.graph.fresh(f"tick/{n}") for n in ("h", "a", "b", "kept", "next", "y"))

    def row(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    nodes = [
        helper.make_node("Mul", [a, h], [kept]),
        helper.make_node("Add", [kept, b], [after]),
        helper.make_node("Identity", [after], [y]),
    ]
    return helper.make_graph(nodes, "tick", [row(h), row(a), row(b)], [row(after), row(y)])
