"""What a torch tensor is while it is turned into ONNX: a name, labelled axes, and a physical order.

An axis is known by its *label*: the batch, the time, the two merged into one by a ``view``, or a
size. Torch's order of axes and the ONNX tensor's need not be the same: ``permute`` changes only the
former, and a Transpose is written where an operator insists.

Some tensors are not ONNX values yet. Each such kind says what must happen before it can be one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from .timing import PLAIN, Timing

BATCH, TIME = "batch", "time"
BATCH_TIME, TIME_BATCH = "batch*time", "time*batch"  # a merged axis, by the order in which torch sees it
MERGED = (BATCH_TIME, TIME_BATCH)

Axis = str | int
HIDDEN = -1  # in `Value.order`: the ONNX tensor's time axis, where the torch tensor has none of its own


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that exists in the ONNX graph.

    `order` lists the torch axes in the ONNX tensor's order. A torch axis of size 1 may be missing
    from it. With `tick` = k the torch tensor is the k-th time slice of the ONNX tensor: operations on
    such slices are written for the whole sequence, since a stream does the same at every tick. A merged
    axis may be two in the ONNX tensor: time is `HIDDEN` then, and the torch axis's place is the batch's.
    """

    name: str
    axes: tuple[Axis, ...]
    order: tuple[int, ...]
    dtype: torch.dtype
    tick: int | None = None
    timing: Timing = PLAIN
    node: str = field(default="", compare=False)
    shift: int = field(default=0, compare=False)

    @property
    def time(self) -> int:
        """The time axis of a value over time: a torch axis, or `HIDDEN`."""
        return HIDDEN if HIDDEN in self.order else self.axes.index(TIME)

    def at(self, axis: int) -> int:
        """Where a torch axis is in the ONNX tensor."""
        return self.order.index(axis)

    def renumbered(self, axes: tuple[Axis, ...], new: dict[int, int]) -> Value:
        """The same ONNX tensor under other torch axes; `new` maps old axis numbers to new ones."""
        return replace(self, axes=axes, order=tuple(o if o == HIDDEN else new[o] for o in self.order))


@dataclass(frozen=True, slots=True)
class Stack:
    """Tensors one above the other on axis 0, not yet joined: an LSTM's h_n, layer by layer.

    Each part has a leading axis of size 1.
    """

    parts: tuple[Value | Carry, ...]


@dataclass(frozen=True, slots=True)
class Carry:
    """An LSTM's cell state after tick `tick`. ONNX gives it at the end of a call only."""

    recurrence: int  # which recurrent node
    tick: int
    axes: tuple[Axis, ...]  # (batch, hidden) or (1, batch, hidden)


@dataclass(frozen=True, slots=True)
class Complex:
    """A complex tensor: `parts` has its real and imaginary parts along one more axis, the last, of size 2."""

    parts: Value


@dataclass(frozen=True, slots=True)
class Scatter:
    """A constant tensor being filled tick by tick (``out[:, t] = h``)."""

    base: torch.Tensor
    axis: int
    filled: tuple[tuple[int, Value], ...]  # (tick, what was written there)


@dataclass(frozen=True, slots=True)
class Given:
    """State that the module takes as an argument, before it is known how it is used.

    `layer` is set where one layer of a (layers, batch, hidden) tensor was taken.
    """

    name: str
    axes: tuple[Axis, ...]
    layer: int | None = None


Lazy = Stack | Carry | Complex | Scatter | Given
Data = Value | Lazy
Operand = Value | torch.Tensor


def broadcast(shapes: list[tuple[Axis, ...]]) -> tuple[Axis, ...]:
    """The axes of an elementwise result: aligned at the end, size 1 gives way."""
    rank = max(map(len, shapes))
    out: list[Axis] = [1] * rank
    for axes in shapes:
        for i, label in enumerate(axes, rank - len(axes)):
            if label != 1:
                out[i] = label
    return tuple(out)


def axes_of(x: Data) -> tuple[Axis, ...]:
    """The torch axes of any kind of data."""
    match x:
        case Value() | Carry() | Given():
            return x.axes
        case Complex():
            return x.parts.axes[:-1]
        case Stack():
            return (len(x.parts), *axes_of(x.parts[0])[1:])
        case Scatter():
            _, value = x.filled[0]
            return (*value.axes[: x.axis], TIME, *value.axes[x.axis :])


def merged_label(first: Axis, second: Axis) -> str | None:
    """What two neighbouring axes are called once merged, if they are batch and time."""
    return {(BATCH, TIME): BATCH_TIME, (TIME, BATCH): TIME_BATCH}.get((str(first), str(second)))
