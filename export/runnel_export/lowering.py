"""What every operation's translation works with: layouts, constants, elementwise nodes, states, refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np
import torch
from runnel.errors import ExportError, NotStreamableError
from torch import Tensor

from .graph import NUMPY_OF, Array, Attribute, Dims, Graph
from .values import (
    BATCH,
    BATCH_TIME,
    HIDDEN,
    MERGED,
    TIME,
    TIME_BATCH,
    Axis,
    Carry,
    Data,
    Given,
    Operand,
    Scatter,
    Span,
    Stack,
    Value,
    broadcast,
)

EXPLICIT = "make it an explicit-state step: export(..., time_axis=None, state={...})"


@dataclass
class State:
    """One state of the step model; `next` is the value that becomes it."""

    name: str
    dtype: torch.dtype
    dims: Dims
    initial: Array  # one stream's row
    next: str | None = None


@dataclass(frozen=True)
class Recurrence:
    """A recurrent node: what it was made of, so that a cell's next call is known as the same node."""

    kind: str
    x: str
    weights: tuple[Tensor, ...]
    y: str  # the sequence, (time, slot, hidden)
    final: str  # its last tick, (1, slot, hidden)
    final_c: str | None


@dataclass
class Lowering:
    """The state of one translation. `path`, `layer` and `op` say where in the module it is."""

    batch: int
    ticks: int | None  # None: no axis is time, each call is one step
    givens: Mapping[str, tuple[int, Tensor]]  # explicit states: batch axis, initial row
    graph: Graph = field(default_factory=Graph)
    states: dict[str, State] = field(default_factory=dict)
    recurrences: list[Recurrence] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    any_ticks: bool = True
    tick_shape_source: str = ""  # a value that begins (time, slot, ...)
    path: str = ""
    layer: str = ""
    op: str = ""

    # -------------------------------------------------------------- refusals

    @property
    def where(self) -> str:
        return f"layer {self.path!r} ({self.layer})" if self.path else f"{self.layer}.forward"

    def refuse(self, why: str, help: str) -> NoReturn:
        """The layer cannot be streamed: its output would need the future, or absolute time."""
        raise NotStreamableError(f"{self.where}, {self.op}: {why}. What would help: {help}")

    def unsupported(self, what: str) -> NoReturn:
        """It could be streamed, but there is no translation."""
        raise ExportError(
            f"{self.where}, {self.op}: {what}. The exporter has no translation for it; "
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
            raise ExportError(f"{self.where}, {self.op}: a constant holds NaN, or memory never written to")
        if tensor.dtype not in NUMPY_OF:
            self.unsupported(f"a constant of {tensor.dtype}")
        return self.graph.constant(tensor.contiguous().numpy(), f"{self.path}/const" if self.path else "const")

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

    # -------------------------------------------------------------- operands

    def value(self, data: Data) -> Value:
        """An ONNX value now, of whatever kind it was."""
        match data:
            case Value():
                return data
            case Stack():
                return self.join(data)
            case Carry():
                return self.final_c(data)
            case Scatter():
                self.refuse(
                    f"a result that is filled tick by tick is used when {len(data.filled)} of {self.ticks} "
                    "ticks were written",
                    "write every tick before using it; a tick that reads earlier ones is a recurrence: "
                    + EXPLICIT,
                )
            case Span():
                self.refuse_span(data)
            case Given():
                if self.ticks is not None:
                    self.refuse(
                        f"state {data.name!r} is used other than as a recurrent layer's initial state",
                        EXPLICIT,
                    )
                return self.natural_state(data)

    def refuse_span(self, span: Span) -> NoReturn:
        """A sequence of another length cannot be streamed as it is."""
        if span.filter:
            self.path = span.filter.path
            p = span.filter.reach
            if span.offset > 0:
                self.refuse(
                    f"the convolution sees {span.offset} ticks of the future (symmetric or missing padding "
                    f"on the left; (kernel - 1) * dilation is {p})",
                    f"pad {p} ticks on the left only: F.pad(x, ({p}, 0)), or padding={p} and then "
                    f"[..., :-{p}]",
                )
            self.refuse(
                f"the convolution's result has {span.length - (self.ticks or 0):+d} ticks against its input",
                f"cut it to the input's length: [..., :-{p}]",
            )
        self.refuse(
            f"a sequence of another length than the input's ({span.length - (self.ticks or 0):+d} ticks, "
            f"starting {span.offset:+d} ticks from it) is used",
            "a stream has one output tick for each input tick: pad on the left what is cut on the right",
        )

    def join(self, stack: Stack) -> Value:
        """A Stack's parts as one value."""
        parts = [self.value(p) for p in stack.parts]
        if len(parts) == 1:
            return parts[0]
        self.same_tick(parts)
        order = self.canonical(parts[0], full=True).order
        names = [self.arrange(p, order).name for p in parts]
        name = self.node("Concat", *names, axis=order.index(0))
        return replace(parts[0], name=name, axes=(len(parts), *parts[0].axes[1:]), order=order)

    def final_c(self, carry: Carry) -> Value:
        """An LSTM's cell state as a value: known at the end of a call, so a call is then one tick."""
        if self.any_ticks:
            self.any_ticks = False
            self.note(
                "an LSTM's cell state is used as data; ONNX gives it at the end of a call only, so the step "
                "model takes exactly one tick a call"
            )
        name = self.recurrences[carry.recurrence].final_c
        assert name is not None
        rank = len(carry.axes)
        return Value(name, carry.axes, (HIDDEN, rank - 2, rank - 1), torch.float32, carry.tick)

    def natural_state(self, given: Given) -> Value:
        """An explicit state as a graph input of the shape that the module gives it."""
        if given.layer is not None:
            whole = self.natural_state(Given(given.name, (self.layers(given.name), *given.axes)))
            picked = self.node("Gather", whole.name, self.constant(given.layer, torch.int64), axis=0)
            return Value(picked, given.axes, tuple(range(len(given.axes))), torch.float32)
        if given.name not in self.states:
            if any(name.startswith(f"{given.name}.") for name in self.states):
                self.unsupported(f"state {given.name!r} is used whole and also layer by layer")
            _, row = self.givens[given.name]
            dims = tuple("slot" if a == BATCH else self.size(a) for a in given.axes)
            self.states[given.name] = State(given.name, row.dtype, dims, row.numpy())
        return Value(
            given.name, given.axes, tuple(range(len(given.axes))), self.givens[given.name][1].dtype
        )

    def layers(self, name: str) -> int:
        """The leading axis of an explicit state of shape (layers, batch, hidden)."""
        return int(self.givens[name][1].shape[0])

    def layer_state(self, given: Given) -> str:
        """The graph input for one layer of an explicit state, of shape (1, "slot", hidden)."""
        _, row = self.givens[given.name]
        if given.layer is None or row.dim() == 1:
            name, row = given.name, row.reshape(1, -1)
        else:
            name = given.name if row.shape[0] == 1 else f"{given.name}.{given.layer}"
            row = row[given.layer].reshape(1, -1)
        if name not in self.states:
            if given.name in self.states:
                self.unsupported(f"state {given.name!r} is used whole and also layer by layer")
            self.states[name] = State(name, row.dtype, (1, "slot", row.shape[-1]), row.numpy())
        return name

    # -------------------------------------------------------------- elementwise

    def same_tick(self, values: Sequence[Value]) -> int | None:
        """The tick that all of these belong to; None for whole sequences. Refuses a mixture."""
        ticks = {v.tick for v in values}
        if len(ticks) == 1:
            return ticks.pop()
        if None in ticks:
            k = next(t for t in ticks if t is not None)
            what = "the last tick" if self.ticks and k == self.ticks - 1 else f"tick {k}"
            self.refuse(
                f"{what} is used at every tick, so earlier ticks would depend on it",
                "use the sequence itself, or state that carries it forward",
            )
        a, b, *_ = sorted(t for t in ticks if t is not None)
        self.refuse(f"mixes tick {a} and tick {b}: a hand-written recurrence over time", EXPLICIT)

    def invariant(self, tensor: Tensor, axes: Sequence[Axis]) -> Tensor:
        """A constant, of the rank of `axes`, made of size 1 along time and batch; it must not vary there."""
        tensor = tensor.reshape((1,) * (len(axes) - tensor.dim()) + tuple(tensor.shape))
        for i, label in enumerate(axes):
            if isinstance(label, int) or tensor.shape[i] == 1:
                continue
            first = tensor.narrow(i, 0, 1)
            if not torch.equal(tensor.nan_to_num(), first.expand_as(tensor).nan_to_num()):
                if label == BATCH:
                    self.refuse(
                        "a constant differs along the batch axis", "streams are alike: give it as an input"
                    )
                self.refuse(
                    "a constant varies along the time axis: the layer depends on absolute time",
                    "a position encoding or a time mask has no meaning on an endless stream; leave it out, "
                    "or give the position as an input",
                )
            tensor = first
        return tensor

    def pointwise(
        self,
        op: str,
        operands: Sequence[Operand | float],
        dtype: torch.dtype | None = None,
        result: torch.dtype | None = None,
        mixed: bool = False,
        **attributes: Attribute,
    ) -> Value:
        """An elementwise node, operands broadcast as torch does, computed in `dtype`.

        `mixed`: the operands keep dtypes of their own. `result` is the output's dtype where it is not `dtype`.
        """
        values = [x for x in operands if isinstance(x, Value)]
        dtype = dtype or values[0].dtype
        tick = self.same_tick(values)
        shapes: list[tuple[Axis, ...]] = [v.axes for v in values]
        shapes += [tuple(x.shape) for x in operands if isinstance(x, Tensor)]
        # a constant's own time and batch sizes are not labels: align them with the values' axes
        axes = broadcast(shapes[len(values) :] + shapes[: len(values)])
        self._check_pairs(axes, values)
        if self.ticks and self.ticks in axes:  # (a size that only a constant made over time can have)
            self.refuse(
                "a constant as long as the sequence is combined with a value that has no time axis",
                "a stream has no length: compute it from the layer's input, or leave it out",
            )
        rank = len(axes)
        aligned: list[Value | Tensor] = []
        for x in operands:
            if isinstance(x, Value):
                shift = rank - len(x.axes)
                x = x if mixed else self.cast(x, dtype)
                aligned.append(x.renumbered(axes, {i: i + shift for i in range(len(x.axes))}))
            elif isinstance(x, Tensor):
                aligned.append(self.invariant(x if mixed else x.to(dtype), axes))
            else:
                aligned.append(torch.tensor(x, dtype=dtype).reshape((1,) * rank))
        order = self._common_order(axes, aligned)
        names = [self._laid_out(x, order) for x in aligned]
        name = self.emit(op, names, attributes)[0]
        return Value(name, axes, tuple(order), result or dtype, tick)

    def _check_pairs(self, axes: Sequence[Axis], values: Sequence[Value]) -> None:
        if list(axes).count(TIME) + any(v.tick is not None for v in values) > 1:
            self.refuse("pairs every tick with every other: attention over the whole sequence",
                        "a recurrent layer or a causal convolution")  # fmt: skip
        if sum(a == BATCH or a in MERGED for a in axes) > 1:
            self.refuse("pairs streams with each other", "keep to operations within one batch row")

    @staticmethod
    def _common_order(axes: Sequence[Axis], operands: Sequence[Value | Tensor]) -> list[int]:
        """The longest operand's physical order, with the axes that only others have put in."""
        values = [x for x in operands if isinstance(x, Value)]
        order = list(max(values, key=lambda v: len(v.order)).order)
        wanted = {o for v in values for o in v.order}
        wanted |= {i for x in operands if isinstance(x, Tensor) for i, n in enumerate(x.shape) if n > 1}
        for axis in sorted(wanted - set(order)):
            after = (i for i, o in enumerate(order) if o > axis and isinstance(axes[o], int))
            order.insert(next(after, len(order)), axis)
        return order

    def _laid_out(self, x: Value | Tensor, order: Sequence[int]) -> str:
        """An operand that broadcasts against this order; leading axes may be missing."""
        if isinstance(x, Value):
            first = next((i for i, o in enumerate(order) if o in x.order), len(order))
            return self.arrange(x, order[first:]).name
        present = [o for o in order if o != HIDDEN]
        rest = [i for i in range(x.dim()) if i not in present]  # size 1 in all operands
        x = x.permute([*rest, *present]).reshape([x.shape[o] for o in present])
        if HIDDEN in order:
            x = x.unsqueeze(list(order).index(HIDDEN))
        while x.dim() and x.shape[0] == 1:
            x = x.squeeze(0)
        return self.constant(x)

    def cast(self, v: Value, dtype: torch.dtype) -> Value:
        if v.dtype == dtype:
            return v
        if dtype not in NUMPY_OF:
            self.unsupported(f"a tensor of {dtype}")
        from onnx import helper

        to = int(helper.np_dtype_to_tensor_dtype(np.dtype(NUMPY_OF[dtype])))
        return replace(v, name=self.node("Cast", v.name, to=to), dtype=dtype)

    # -------------------------------------------------------------- merged batch and time

    def merge(self, v: Value, label: str) -> Value:
        """Time (visible or hidden) and batch, axes 0 and 1 physically, as one; torch's axis is the batch's."""
        v = self.canonical(v, full=True)
        sizes = [self.size(v.axes[o]) for o in v.order[2:]]
        name = self.node("Reshape", v.name, self.graph.ints(-1, *sizes))
        b = v.order[1]
        return Value(name, (*v.axes[:b], label, *v.axes[b + 1 :]), v.order[1:], v.dtype)

    def time_batch_shape(self, rest: Sequence[int]) -> str:
        """A shape (time, slot, *rest), known when the model runs."""
        lead = self.node("Shape", self.tick_shape_source, start=0, end=2)
        return self.node("Concat", lead, self.graph.ints(*rest), axis=0) if rest else lead

    def unmerge(self, v: Value, tick: int) -> Value:
        """Inverse of `merge` of a slice: the merged axis is the batch again, time hidden."""
        v = self.canonical(v, full=True)
        sizes = [self.size(v.axes[o]) for o in v.order[1:]]
        name = self.node("Reshape", v.name, self.time_batch_shape(sizes))
        b = v.order[0]
        axes = (*v.axes[:b], BATCH, *v.axes[b + 1 :])
        return Value(name, axes, (HIDDEN, *v.order), v.dtype, tick)


def merged_label(first: Axis, second: Axis) -> str | None:
    return {(BATCH, TIME): BATCH_TIME, (TIME, BATCH): TIME_BATCH}.get((str(first), str(second)))
