"""Recurrences over rows that come late: a stream's first calls compute rows that lie before the sequence.

A layer must not advance on them. They are a call's first rows, as many as each slot has; so each slot's rows
are turned until its real ones come first, ONNX's `sequence_lens` says how many these are, and what the layer
gives is turned back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from onnx import TensorProto
from torch import Tensor

from ..lowering import Lowering
from .along_time import first_row
from .recurrence import Kind, write_node


def unreal(low: Lowering) -> str | None:
    """How many of a call's first rows lie before the sequence, (slot,). None: that need not be known."""
    if low.timing.delay <= 0:
        return None
    low.clocked = True
    if low.clock is None:
        return None
    before = low.node("Neg", first_row(low, low.timing))
    before = low.node("Max", before, low.constant(0, torch.int64))
    return low.node("Min", before, _count(low))


def outside(low: Lowering, unreal: str) -> str:
    """Whether each of a call's rows lies before the sequence, (time, slot)."""
    return low.node("Less", low.node("Unsqueeze", _places(low), low.graph.ints(1)), unreal)


def write(
    low: Lowering,
    kind: Kind,
    x: str,
    ws: Sequence[Tensor],
    initial: Sequence[str],
    peephole: Tensor | None,
    unreal: str,
) -> tuple[str, list[str]]:
    """A layer's node over the real rows of `x`, (time, slot, features): its output, its last states."""
    count = _count(low)
    real = low.node("Sub", count, unreal)
    lengths = low.node("Max", real, low.constant(1, torch.int64))  # (with 0 onnxruntime's states are zeros)
    lengths = low.node("Cast", lengths, to=TensorProto.INT32)
    x = _turned(low, x, unreal, count)
    y, *ends = write_node(low, kind, x, ws, initial, peephole, lengths=lengths)
    y = _turned(low, y, real, count)
    none = low.node("Unsqueeze", low.node("Equal", real, low.constant(0, torch.int64)), low.graph.ints(0, 2))
    kept = [
        low.node("Where", none, start, end)
        for start, end in zip(initial, (end for end in ends if end is not None), strict=True)
    ]
    return y, kept


def _count(low: Lowering) -> str:
    return low.node("Squeeze", low.rows(low.timing.rate), low.graph.ints(0))


def _places(low: Lowering) -> str:
    return low.node("Range", low.constant(0), _count(low), low.constant(1))


def _turned(low: Lowering, x: str, by: str, count: str) -> str:
    """Row t becomes row t + by of `x`, modulo the number of rows."""
    place = low.node("Add", low.node("Unsqueeze", _places(low), low.graph.ints(1)), by)
    index = low.node("Unsqueeze", low.node("Mod", place, count), low.graph.ints(2))
    return low.node("GatherElements", x, low.node("Expand", index, low.node("Shape", x)), axis=0)
