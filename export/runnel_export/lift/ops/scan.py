"""`runnel_export.nn.linear_scan` as ONNX's Scan: h = a * h + b, tick after tick, any number a call.

(ONNX's GRU with recurrent weights of zero, which is a minGRU too, multiplies by them: at 256 numbers it takes
five times as long.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..lowering import Lowering, Recurrence
from ..values import TIME, Data, Value
from . import carried, late, written
from .blocked import in_blocks
from .recurrence import carry_on, initial_state
from .registry import handles


@handles("runnel::linear_scan", lazy=True, rows="all")
def linear_scan(low: Lowering, a: Data | Tensor, b: Data | Tensor, start: Data | Tensor, layer: int) -> Value:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        raise low.untranslated("a linear recurrence of which a or b does not depend on the input")
    va, vb = (low.value(x) for x in (a, b))
    if va.axes[1] != TIME or va.axes != vb.axes or va.dtype != torch.float32:
        raise low.untranslated(f"a linear recurrence over ({', '.join(map(str, va.axes))}) of {va.dtype}")
    va, vb = (low.arrange(v, (1, 0, 2)) for v in (va, vb))
    initial = initial_state(low, start, f"h.{layer}")
    xs = [va.name, vb.name]
    if (unreal := late.unreal(low)) is not None:  # before the sequence h stays as it is: 1 * h + 0
        outside = low.node("Unsqueeze", late.outside(low, unreal), low.graph.ints(2))
        xs = [low.node("Where", outside, low.constant(c), x) for c, x in zip((1.0, 0.0), xs, strict=True)]
    y, (end,) = in_blocks(low, lambda xs, hs: carried.linear(low, xs, hs), xs, [initial])
    h = Value(y, vb.axes, vb.order, vb.dtype)
    inside = written.inside(low, {**low.shown.pop(low.path, {}), "h": h}, layer, ("h",))
    made = Recurrence("Scan", va.name, (), y, end, None, (initial,), low.where, inside=inside)
    low.recurrences.append(made)
    carry_on(low, [initial], made)
    return h
