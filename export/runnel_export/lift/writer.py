"""Nodes, constants and layouts: what every translation writes with; and how it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import torch
from onnx import helper
from torch import Tensor

from runnel.errors import ExportError, NotStreamableError

from .graph import NUMPY_OF, Attribute, Graph
from .timing import ONE
from .values import BATCH, HIDDEN, MERGED, TIME, TIME_BATCH, Axis, Value

EXPLICIT = "make it an explicit-state step: export(..., time_axis=None, state={...})"

HAND_WRITTEN = "write its tick as a runnel_export.nn.Recurrent, or " + EXPLICIT


class LengthError(NotStreamableError):
    """A refusal that may be due to the length that was traced: another one is tried."""


class ShortTraceError(ExportError):
    """The traced sequence is too short to show what is needed: a longer one is tried."""


@dataclass
class Writer:
    """Writes into `graph`. `path`, `layer` and `op` say where in the module it is."""

    batch: int
    ticks: int | None  # rows of the values at hand; None: no axis is time, each call is one step
    graph: Graph = field(default_factory=Graph)
    notes: list[str] = field(default_factory=list)
    tick_shape_source: str = ""  # a value that begins (time, slot, ...)
    path: str = ""
    layer: str = ""
    op: str = ""
    rate: Fraction = ONE  # of the values at hand: rows a tick

    # -------------------------------------------------------------- refusals

    @property
    def where(self) -> str:
        layer = f"layer {self.path!r} ({self.layer})" if self.path else f"{self.layer}.forward"
        return f"{layer}, {self.op}"

    def refusal(self, why: str, help: str, where: str | None = None) -> NotStreamableError:
        """To raise where a layer cannot be streamed: it would need the future, or absolute time."""
        return NotStreamableError(f"{where or self.where}: {why}. What would help: {help}")

    def untranslated(self, what: str) -> ExportError:
        """To raise where it might be streamed, but there is no translation."""
        return ExportError(
            f"{self.where}: {what}. The exporter has no translation for it; "
            "CONTRIBUTING.md says how to add one"
        )

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # -------------------------------------------------------------- nodes

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Attribute] | None = None,
        outputs: Sequence[str] = ("",),
    ) -> tuple[str, ...]:
        hint = f"{self.path}/{op}" if self.path else op
        return self.graph.emit(op, inputs, attributes, hint=hint, outputs=outputs)

    def node(self, op: str, *inputs: str, **attributes: Attribute) -> str:
        """One node with one output."""
        return self.emit(op, inputs, attributes)[0]

    def constant(self, value: Tensor | float, dtype: torch.dtype | None = None) -> str:
        """A constant's name. Refuses NaN: it stands for memory that the module never wrote."""
        tensor = torch.as_tensor(value, dtype=dtype).detach().cpu()
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise ExportError(f"{self.where}: a constant holds NaN, or memory never written to")
        if tensor.dtype not in NUMPY_OF:
            raise self.untranslated(f"a constant of {tensor.dtype}")
        return self.graph.constant(
            tensor.contiguous().numpy(), f"{self.path}/const" if self.path else "const"
        )

    # -------------------------------------------------------------- shapes and layouts

    def size(self, axis: Axis) -> int:
        ticks = self.ticks or 1
        merged = self.batch * ticks
        return axis if isinstance(axis, int) else {BATCH: self.batch, TIME: ticks}.get(axis, merged)

    def shape(self, axes: Sequence[Axis]) -> tuple[int, ...]:
        return tuple(map(self.size, axes))

    def arrange(self, v: Value, order: Sequence[int]) -> Value:
        """The value with this physical order, which holds all of its axes and may add absent ones."""
        kept = [o for o in order if o in v.order]
        assert sorted(kept) == sorted(v.order), (v, order)
        name = v.name
        if kept != list(v.order):
            name = self.node("Transpose", name, perm=tuple(v.order.index(o) for o in kept))
        added = [i for i, o in enumerate(order) if o not in v.order]
        if added:
            name = self.node("Unsqueeze", name, self.graph.ints(*added))
        return replace(v, name=name, order=tuple(order))

    def canonical(self, v: Value, full: bool = False) -> Value:
        """Time, batch, then the features in torch's order; `full`: axes of size 1 are all there."""
        lead = self.leading(v)
        rest = [i for i in range(len(v.axes)) if i not in lead and (full or i in v.order)]
        return self.arrange(v, [*lead, *rest])

    @staticmethod
    def leading(v: Value) -> list[int]:
        """Its time and batch axes, in the order (time, batch)."""
        lead = [HIDDEN] if HIDDEN in v.order else [i for i, a in enumerate(v.axes) if a == TIME]
        return lead + [i for i, a in enumerate(v.axes) if a == BATCH or a in MERGED]

    def drop(self, v: Value, axis: int) -> Value:
        """Without a torch axis of size 1."""
        name, order = v.name, v.order
        if axis in order:
            name = self.node("Squeeze", name, self.graph.ints(order.index(axis)))
            order = tuple(o for o in order if o != axis)
        return self.forget(replace(v, name=name, order=order), axis)

    @staticmethod
    def forget(v: Value, axis: int) -> Value:
        """Without a torch axis of size 1 that the ONNX tensor has not; no node."""
        axes = v.axes[:axis] + v.axes[axis + 1 :]
        return v.renumbered(axes, {i: i - (i > axis) for i in range(len(v.axes)) if i != axis})

    @staticmethod
    def insert(v: Value, axis: int) -> Value:
        """With one more torch axis of size 1; no node."""
        new = {i: i + (i >= axis) for i in range(len(v.axes))}
        return v.renumbered((*v.axes[:axis], 1, *v.axes[axis:]), new)

    @staticmethod
    def permute(v: Value, dims: Sequence[int]) -> Value:
        """torch's permute; no node."""
        new = {old: i for i, old in enumerate(dims)}
        return v.renumbered(tuple(v.axes[d] for d in dims), new)

    def cast(self, v: Value, dtype: torch.dtype) -> Value:
        if v.dtype == dtype:
            return v
        if dtype not in NUMPY_OF:
            raise self.untranslated(f"a tensor of {dtype}")
        to = int(helper.np_dtype_to_tensor_dtype(np.dtype(NUMPY_OF[dtype])))
        return replace(v, name=self.node("Cast", v.name, to=to), dtype=dtype)

    # -------------------------------------------------------------- merged batch and time

    def joined(self, v: Value) -> Value:
        """With a merged axis that is one axis in the ONNX tensor too."""
        return v if HIDDEN not in v.order or v.tick is not None else self._flat(v)

    def merge(self, v: Value) -> Value:
        """A time slice with its batch axis made the merged one: what an operator on (batch, ...) takes."""
        return self._flat(v, TIME_BATCH)

    def _flat(self, v: Value, label: str | None = None) -> Value:
        """The hidden time and the batch as one ONNX axis, before all others in torch's order."""
        v = self.canonical(v)
        lead = v.order[1]
        rest = [i for i in range(len(v.axes)) if i != lead]
        name = self.node("Reshape", v.name, self.graph.ints(-1, *[self.size(v.axes[i]) for i in rest]))
        axes = (*v.axes[:lead], label or v.axes[lead], *v.axes[lead + 1 :])
        return Value(name, axes, (lead, *rest), v.dtype)

    def rows(self, rate: Fraction) -> str:
        """How many rows of this rate a call computes, as a tensor of one number."""
        ticks = self.node("Shape", self.tick_shape_source, start=0, end=1)
        if rate.numerator != 1:
            ticks = self.node("Mul", ticks, self.graph.ints(rate.numerator))
        return ticks if rate.denominator == 1 else self.node("Div", ticks, self.graph.ints(rate.denominator))

    def lead_reshaped(self, name: str, lead: int, sizes: Sequence[int]) -> str:
        """(n, m, slot, ...) with its first two axes made one; or, if `lead` is a size, the first made two.

        `sizes` are those after the slots'.
        """
        slots = self.node("Shape", name, start=1 if lead else 2, end=2 if lead else 3)
        front = self.graph.ints(-1, lead) if lead else self.graph.ints(-1)
        rest = [self.graph.ints(*sizes)] if sizes else []
        return self.node("Reshape", name, self.node("Concat", front, slots, *rest, axis=0))

    def time_batch_shape(self, rest: Sequence[int]) -> str:
        """A shape (time, slot, *rest), known when the model runs."""
        lead = self.node("Shape", self.tick_shape_source, start=0, end=2)
        if self.rate != 1:
            slots = self.node("Shape", self.tick_shape_source, start=1, end=2)
            lead = self.node("Concat", self.rows(self.rate), slots, axis=0)
        return self.node("Concat", lead, self.graph.ints(*rest), axis=0) if rest else lead

    def unmerge(self, v: Value, tick: int) -> Value:
        """Inverse of `merge` of a slice: the merged axis is the batch again, time hidden."""
        v = self.canonical(v, full=True)
        sizes = [self.size(v.axes[o]) for o in v.order[1:]]
        name = self.node("Reshape", v.name, self.time_batch_shape(sizes))
        b = v.order[0]
        axes = (*v.axes[:b], BATCH, *v.axes[b + 1 :])
        return Value(name, axes, (HIDDEN, *v.order), v.dtype, tick)
