"""What one translation knows: its states and recurrences, its operands, elementwise operations on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from torch import Tensor
from torch.fx import Node

from runnel.grouping import Blocks

from .graph import Array, Attribute, Dims
from .timing import Length, Timing
from .values import (
    BATCH,
    HIDDEN,
    MERGED,
    TIME,
    Axis,
    Carry,
    Complex,
    Data,
    Given,
    Operand,
    Scatter,
    Stack,
    Value,
    broadcast,
)
from .writer import EXPLICIT, HAND_WRITTEN, Writer


@dataclass
class State:
    """One state of the step model; `next` is the value that becomes it."""

    name: str
    dtype: torch.dtype
    dims: Dims
    initial: Array  # one stream's row
    next: str | None = None
    given: Given | None = None  # the argument of the module that it is, or is one layer of
    past: int = 0  # of a cache: how many ticks it holds


Row = tuple[str, int]  # a value over time, (time, slot, width), and its width


@dataclass(frozen=True)
class Inside:
    """What can be seen of a layer; nothing of it is in the graph before `write` is called.

    `write` gives its values by letter (see `runnel.probe`); `letters` are those of its states.
    """

    name: str  # where it is in the module, and which layer there
    kind: str
    write: Callable[[], Mapping[str, Row]]
    letters: tuple[str, ...] = ("h", "c")
    backward: bool = False  # this and the next: see `runnel.probe.ProbeLayer`
    takes: bool = False


@dataclass(frozen=True)
class Recurrence:
    """A recurrent node: what it was made of, so that a cell's next call is known as the same node."""

    kind: str
    x: str
    weights: tuple[Tensor, ...]
    y: str  # the sequence, (time, slot, hidden)
    final: str  # its last tick, (1, slot, hidden)
    final_c: str | None
    initial: tuple[str, ...]  # what h, and c, begin with; empty for zeros within a step
    layer: str  # as errors name it
    more: tuple[str, ...] = ()  # further states' last values, where a layer has more than h and c
    inside: Inside | None = None  # None: it does not run over the stream's time

    @property
    def finals(self) -> tuple[str, ...]:
        """Each state's last value, in the order of `initial`."""
        return (self.final, *([] if self.final_c is None else [self.final_c]), *self.more)


@dataclass(frozen=True)
class Clock:
    """Where a call is in the stream: one number a slot."""

    ticks: int  # of a step: what the rates of all values divide
    begin: str  # ticks before the call
    total: str  # ticks of the sequence; `timing.ENDLESS` while more may come


@dataclass
class Lowering(Writer):
    """One translation under way."""

    givens: Mapping[str, Tensor] = field(default_factory=dict)  # explicit states: one initial row
    states: dict[str, State] = field(default_factory=dict)
    recurrences: list[Recurrence] = field(default_factory=list)
    # What layers showed of themselves, by their path and letter, before they are recurrences.
    shown: dict[str, dict[str, Data | Tensor]] = field(default_factory=dict)
    any_ticks: bool = True
    blocks: Blocks | None = None  # the time axis is then one window: a block and its lookahead
    clock: Clock | None = None  # None: nothing depends on where the sequence begins and ends
    clocked: bool = False  # something would depend on it
    rates: set[Fraction] = field(default_factory=set)  # of all values
    delays: dict[object, str] = field(default_factory=dict)  # delay lines: a value is held once
    run: Callable[[str], Tensor] | None = None  # what an operation of the trace gives on the example
    at: str = ""  # the trace's operation at hand
    # Of each padding in the trace: its widths, as forward gives them, by the number of ticks.
    paddings: Mapping[str, Mapping[int, Sequence[int]]] = field(default_factory=dict)
    twin: Mapping[str, Node] = field(default_factory=dict)  # the operations of the trace at the other length
    twin_ticks: int = 0  # its length
    # What forward returns at other lengths. If given, a slice that may leave as many rows as another value
    # has leaves as many as that.
    rows_seen: Mapping[int, set[int]] | None = None
    lengths: list[tuple[Fraction, Length]] = field(default_factory=list)  # of all values, with their rates

    def __post_init__(self) -> None:
        self.whole = self.ticks or 0  # of the trace's sequence
        self.timing = Timing()

    def attend(self, timing: Timing) -> None:
        """From now on the values at hand have this timing."""
        if self.whole:
            self.ticks, self.rate, self.timing = timing.length(self.whole), timing.rate, timing
            self.rates.add(timing.rate)
            if (timing.rate, timing.length) not in self.lengths:
                self.lengths.append((timing.rate, timing.length))

    @property
    def step(self) -> int:
        """The fewest ticks that every rate so far makes whole rows of."""
        return math.lcm(*(rate.denominator for rate in self.rates))

    def one_tick(self) -> None:
        """Called where a call must be one tick: with a delay or another rate it cannot be."""
        if self.clock is not None or self.timing.delay > 0 or self.timing.rate != 1:
            raise self.untranslated(
                "one tick a call (a recurrence written out, or an LSTM's cell state used as data) in a model "
                "that looks ahead or changes the rate"
            )

    def named(self, kind: str, number: int) -> str:
        """What layer `number` of the module at hand is called in a probe."""
        return f"{self.path or kind.lower()}.{number}"

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
            case Complex():
                raise self.untranslated("a complex tensor as a result, or in an operation for real ones")
            case Scatter():
                raise self.refusal(
                    f"a result that is filled tick by tick is used when {len(data.filled)} of {self.ticks} "
                    "ticks were written",
                    "write every tick before using it; a tick that reads earlier ones is a recurrence: "
                    + EXPLICIT,
                )
            case Given():
                if self.ticks is not None:
                    raise self.refusal(
                        f"state {data.name!r} is used other than as a recurrent layer's initial state",
                        EXPLICIT,
                    )
                return self.natural_state(data)

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
        if self.blocks:
            raise self.refusal(
                "an LSTM's cell state is used as data; ONNX gives it at the end of a call only, and with "
                "blocks= a call is many ticks",
                "use the hidden state",
            )
        self.one_tick()
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
        """An explicit state, or one layer of it, as an ordinary value of a step."""
        if given.layer is not None:
            name = self.layer_state(given)
            row = Value(name, (1, *given.axes), (0, 1, 2), self.givens[given.name].dtype)
            return self.drop(row, 0)
        row_of = self.givens[given.name]
        dims = tuple("slot" if a == BATCH else self.size(a) for a in given.axes)
        name = self._declared(given, given.name, row_of, dims)
        return Value(name, given.axes, tuple(range(len(given.axes))), row_of.dtype)

    def layer_state(self, given: Given) -> str:
        """The graph input for one layer of an explicit state, of shape (1, "slot", hidden)."""
        row = self.givens[given.name]  # (layers, hidden), or (hidden,)
        if row.dim() == 1 or row.shape[0] == 1:
            name, row = given.name, row.reshape(1, -1)
        else:
            name, row = f"{given.name}.{given.layer}", row[given.layer or 0].reshape(1, -1)
        return self._declared(given, name, row, (1, "slot", row.shape[-1]))

    def _declared(self, given: Given, name: str, row: Tensor, dims: Dims) -> str:
        """The name of the state input that stands for `given`, which is used in one form only."""
        for state in self.states.values():
            if state.given and state.given.name == given.name:
                if state.given.layer == given.layer and state.dims == dims:
                    return state.name
                if state.given.layer is None or given.layer is None or state.given.layer == given.layer:
                    raise self.untranslated(f"state {given.name!r} is used whole and also layer by layer")
        if name != given.name:  # (the argument's own name was taken for it before anything was written)
            name = self.graph.fresh(name)
        self.states[name] = State(name, row.dtype, dims, row.numpy(), given=given)
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
            raise self.refusal(
                f"{what} is used at every tick, so earlier ticks would depend on it",
                "use the sequence itself, or state that carries it forward",
            )
        a, b, *_ = sorted(t for t in ticks if t is not None)
        raise self.refusal(f"mixes tick {a} and tick {b}: a hand-written recurrence over time", HAND_WRITTEN)

    def alike(self, operands: Sequence[Operand | float]) -> list[Operand | float]:
        """Operands that have a merged axis have it in one form: see `Value`."""
        forms = {HIDDEN in x.order for x in operands if isinstance(x, Value)}
        if len(forms) < 2:
            return list(operands)
        return [self.joined(x) if isinstance(x, Value) else x for x in operands]

    def invariant(self, tensor: Tensor, axes: Sequence[Axis]) -> Tensor:
        """A constant, of the rank of `axes`, made of size 1 along time and batch; it must not vary there."""
        tensor = tensor.reshape((1,) * (len(axes) - tensor.dim()) + tuple(tensor.shape))
        for i, label in enumerate(axes):
            if isinstance(label, int) or tensor.shape[i] == 1:
                continue
            first = tensor.narrow(i, 0, 1)
            if not torch.equal(tensor.nan_to_num(), first.expand_as(tensor).nan_to_num()):
                if label == BATCH:
                    raise self.refusal(
                        "a constant differs along the batch axis", "streams are alike: give it as an input"
                    )
                raise self.refusal(
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

        `mixed`: the operands keep dtypes of their own. `result`: the output's dtype, if not `dtype`.
        """
        operands = self.alike(operands)
        values = [x for x in operands if isinstance(x, Value)]
        dtype = dtype or values[0].dtype
        tick = self.same_tick(values)
        shapes: list[tuple[Axis, ...]] = [v.axes for v in values]
        shapes += [tuple(x.shape) for x in operands if isinstance(x, Tensor)]
        # a constant's own time and batch sizes are not labels: align them with the values' axes
        axes = broadcast(shapes[len(values) :] + shapes[: len(values)])
        self._check_pairs(axes, values)
        own = broadcast([v.axes for v in values])
        own = (*[1] * (len(axes) - len(own)), *own)
        if self.ticks and any(a == self.ticks and b == 1 for a, b in zip(axes, own, strict=True)):
            raise self.refusal(
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
            raise self.refusal(
                "pairs every tick with every other: attention over the whole sequence",
                "a recurrent layer or a causal convolution",
            )
        if sum(a == BATCH or a in MERGED for a in axes) > 1:
            raise self.refusal("pairs streams with each other", "keep to operations within one batch row")

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
