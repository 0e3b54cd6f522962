"""From a module to its step graph: every state found, named, and carried from input to output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from runnel.errors import ExportError
from runnel.grouping import Blocks, Steps
from runnel.spec import SLOT as SLOT_WORD
from runnel.spec import TIME as TIME_WORD
from runnel.spec import Dim, ModelSpec, ModelState, ModelTensor, initial_row

from ..lengths import ANY, Lengths, stride_of
from . import interpret
from .diagnosis import in_users_terms
from .exchanged import check_slots
from .graph import NUMPY_OF, Dims, Port
from .lowering import Clock, Lowering, State
from .ops.along_time import aligned, delayed, from_the_first, length
from .ops.sequence import feature_slice, rounded, select
from .paddings import Padded, paddings
from .probe import Probed, show
from .rows import Rows, check_rows, rows_seen
from .timing import ENDLESS, PLAIN, TICKS, Length, Timing
from .trace import Prepared, Trace, UntraceableError, prepare, trace
from .values import BATCH, HIDDEN, MERGED, TIME, Axis, Carry, Given, Stack, Value
from .writer import LengthError, ShortTraceError


@dataclass(frozen=True)
class Lifted:
    """A step graph, what it takes and gives, and what its user should know.

    `remembered`: how many ticks its caches hold together; a change may take so long to come out. `probe`: the
    same with its layers' inside among its outputs, where that was asked for and there are layers. `lengths`:
    the sequences that forward takes. `rows`: how many rows the module gives for a sequence; `at_end`: each is
    what it gives at the end of the sequence so far.
    """

    model: onnx.ModelProto
    spec: ModelSpec
    notes: tuple[str, ...]
    remembered: int = 0
    probe: Probed | None = None
    lengths: Lengths = ANY
    rows: Length = TICKS
    at_end: bool = False


def lift(
    module: nn.Module,
    example: Tensor | Mapping[str, Tensor],
    *,
    time_axis: int | None = 1,
    batch_axis: int = 0,
    state: Mapping[str, Any] | None = None,
    output_names: Sequence[str] | None = None,
    blocks: Blocks | None = None,
    probe: bool = False,
) -> Lifted:
    """The step model of `module`, in eval mode, unchanged itself.

    `example`: a float32 or integer tensor for forward's first parameter, or a dict of them by parameter;
    (batch, time, ...) unless `time_axis` and `batch_axis` say otherwise (`time_axis=0` makes the batch
    axis 1). ``time_axis=None``: forward is one step already. `state`: initial values, by parameter, of a
    module that takes its state and returns it after its outputs, in the order of forward's parameters (or
    by name, in a dict); a tensor, or a tuple of them. `blocks`: the model takes windows of ticks, so that
    bidirectional layers see some of what follows. `probe`: also a model that shows the layers' inside.

    Model tensors are ("time", "slot", ...). Raises NotStreamableError where a layer needs the future or
    absolute time, and ExportError where there is no translation; both name the layer and what would help.
    """
    names = list(output_names) if output_names is not None else None
    prepared = prepare(module, example, time_axis=time_axis, batch_axis=batch_axis, state=state)

    first: ExportError | None = None
    for lengths in prepared.lengths:
        sized = prepared.of(lengths)

        def attempt(order: Sequence[int], sized: Prepared = sized, rows: Rows | None = None) -> Lifted:
            return _twice(module, sized, order, names, blocks, probe, rows)

        try:
            lifted = attempt((0, 1))
            rows = rows_seen(module, sized) if lifted.spec.steps and not lifted.at_end else {}
            try:
                check_rows(module, rows, lifted.rows)
            except LengthError:  # perhaps what looked like a constant is not one
                lifted = attempt((0, 1), rows=rows)
                check_rows(module, rows, lifted.rows)
            return lifted
        except ExportError as error:
            if first is not None:
                continue
            first = in_users_terms(error, module, sized, lambda: attempt((1, 0)))
            first.__cause__ = error
            if not isinstance(error, LengthError | ShortTraceError | UntraceableError):
                break
    assert first is not None
    raise first


def _twice(
    module: nn.Module,
    prepared: Prepared,
    order: Sequence[int],
    names: list[str] | None,
    blocks: Blocks | None,
    probe: bool,
    rows: Rows | None,
) -> Lifted:
    """The step model, made at two pairs of sizes: none of them may stay in it. `order`: of the pairs.

    `rows`: what forward returns at other lengths, if it is to be seen from these what a sequence is cut to.
    """

    def traces(one_tick: bool) -> list[Trace]:
        return [trace(module, prepared, one_tick=one_tick, sizes=sizes) for sizes in order]

    def lifted_of(traced: Trace, padded: Padded, twin: Trace) -> Lifted:
        known: dict[str, Any] = {"paddings": padded.widths, "rows_seen": rows}
        if twin.ticks is not None:
            known |= {"twin": {n.name: n for n in twin.nodes}, "twin_ticks": twin.ticks}
        try:
            return _Lift(module, traced, names, blocks=blocks, known=known).finish(probe)
        except _StepsError as needed:
            return _Lift(module, traced, names, steps=needed.ticks, known=known).finish(probe)

    over_time = traces(one_tick=False)
    padded = [Padded({})] * 2
    if prepared.time_axis is not None:
        padded = paddings(module, prepared, over_time, stride_of(module))
    try:
        lifted, again = map(lifted_of, over_time, padded, over_time[::-1])
    except ExportError as error:
        if not prepared.state or prepared.time_axis is None:
            raise
        # Whatever the module does with its state, one tick at a time is its own definition of a step.
        axes = time_axes(over_time[0])
        lifted, again = (_Lift(module, t, names, axes).finish(probe) for t in traces(one_tick=True))
        note = f"the step model takes exactly one tick a call, because over several: {error.message}"
        lifted = replace(lifted, notes=(note, *lifted.notes))
    if (lifted.model, lifted.probe) != (again.model, again.probe):
        raise LengthError(
            f"{type(module).__name__}: what it computes changes with the batch size or with the sequence's "
            "length, which forward uses as a number (x.shape[1] in arithmetic). What would help: a stream "
            "has no length; use constants, or state that counts"
        )
    # A certificate is about every length that forward takes, whatever was traced.
    takes, least = prepared.takes, padded[0].least
    if lifted.at_end and lifted.spec.steps is not None:  # before, forward gives something of another shape
        takes = replace(takes, least=max(takes.least, lifted.spec.steps.delay + 1))
    if lifted.spec.steps is None or least <= takes.least:
        return replace(lifted, lengths=takes)
    note = f"forward pads sequences of fewer than {least} ticks in another way; here they are as longer ones"
    return replace(lifted, lengths=replace(takes, least=least), notes=(*lifted.notes, note))


class _StepsError(Exception):
    """The translation depends on where the sequence begins or ends: it is made again, with a clock."""

    def __init__(self, ticks: int) -> None:
        super().__init__(ticks)
        self.ticks = ticks


def _count(name: str, *lead: str) -> tuple[Port, ModelTensor]:
    """A number of ticks or rows, one a slot."""
    dims = (*lead, SLOT_WORD)
    return Port(name, torch.int32, dims), ModelTensor(name, "int32", dims)


def _steps_after(timing: Timing, ticks: int, rows: int) -> int:
    """How many steps after a sequence's last tick give all of its rows, whatever its length."""
    most = 4 * ticks + 4 * math.ceil(timing.latency) + 64
    after = 0
    for total in range(1, most):
        steps = -(-(timing.length(total) + timing.delay) // rows)
        after = max(after, steps - -(-total // ticks))
    return after


def time_axes(traced: Trace) -> dict[str, int | None]:
    """Which axis of each output is time."""
    shapes = {name: list(node.meta["val"].shape) for name, node in traced.outputs.items()}
    return {n: s.index(traced.ticks) if traced.ticks in s else None for n, s in shapes.items()}


class _Lift:
    """One translation from its trace to the finished model."""

    def __init__(
        self,
        module: nn.Module,
        traced: Trace,
        output_names: list[str] | None,
        one_tick: Mapping[str, int | None] | None = None,
        blocks: Blocks | None = None,
        steps: int | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        """`known`: what else the translation knows of the module's lengths: see `Lowering`.
        `one_tick`: of a trace with a time axis of size 1, where that axis is in each output.
        `steps`: the ticks of a step, if rows come late or at another rate than ticks.
        """
        self.trace = traced
        self.one_tick = one_tick
        self.name = type(module).__name__
        givens = {s.name: s.initial for s in traced.states}
        self.low = Lowering(traced.batch, traced.ticks, givens=givens, **(known or {}))
        self.low.layer = self.name
        self.low.any_ticks = traced.ticks is not None and blocks is None
        self.low.blocks = blocks
        self.low.run = traced.run
        self.steps = steps
        self.at_end = False
        self.env: dict[str, Any] = dict(traced.constants)
        if steps:
            self.own = [self.low.graph.fresh(name) for name in ("present", "begun", "kept")]
        self.inputs = [self._input(node, name) for node, name in traced.inputs.items()]
        for s in traced.states:
            shape = list(s.initial.shape)
            axes: list[Axis] = [*shape[: s.batch_axis], BATCH, *shape[s.batch_axis :]]
            self.env[s.placeholder] = Given(s.name, tuple(axes))
            self.low.graph.fresh(s.name)
        self.names = self._output_names(output_names)
        if blocks:
            present, kept = (self.low.graph.fresh(name) for name in blocks.own)
            self.low.blocks = replace(blocks, present=present, kept=kept)
        interpret.run(self.low, traced.nodes, self.env)

    def _input(self, placeholder: str, name: str) -> tuple[Port, ModelTensor]:
        seen = self._meta(placeholder)
        t, rank = self.trace, seen.dim()
        batch = t.batch_axis % rank
        time = None if t.time_axis is None else t.time_axis % rank
        label: Axis = TIME if t.ticks is not None else 1
        axes = tuple(BATCH if i == batch else label if i == time else seen.shape[i] for i in range(rank))
        lead = [i for i in (time, batch) if i is not None]
        order = (*lead, *[i for i in range(rank) if i not in lead])
        words: tuple[Dim, ...] = ((TIME_WORD,) if time is not None else ()) + (SLOT_WORD,)
        if self.low.blocks:
            words = (self.low.blocks.window, SLOT_WORD)
        dims: tuple[Dim, ...] = (*words, *[int(seen.shape[i]) for i in range(rank) if i not in lead])
        self.low.graph.fresh(name)
        self.env[placeholder] = Value(name, axes, order, seen.dtype)
        if time is not None and self.steps:
            dims = (TIME_WORD, self.steps, *dims[1:])
            flat = self._in_ticks(name, dims)
            self.env[placeholder] = Value(flat, axes, order, seen.dtype, node=placeholder)
        if time is not None and not self.low.tick_shape_source:
            self.low.tick_shape_source = name
            if self.steps:
                self.low.tick_shape_source = flat
                self.low.clock = self._clock(name)
        return Port(name, seen.dtype, dims), ModelTensor(name, NUMPY_OF[seen.dtype], dims)

    def _in_ticks(self, name: str, dims: Dims) -> str:
        """An input of steps, (time, ticks, slot, ...), as ticks, (time, slot, ...)."""
        low = self.low
        if self.steps == 1:
            return low.node("Squeeze", name, low.graph.ints(1))
        return low.lead_reshaped(name, 0, [int(d) for d in dims[3:]])

    def _clock(self, name: str) -> Clock:
        """Where a call is: a state that counts ticks, and the sequence's length once `present` says it."""
        low, steps = self.low, int(self.steps or 1)
        present, position = self.own[0], low.graph.fresh("position")

        def ints(value: int) -> str:
            return low.constant(value, torch.int64)

        count = low.node("Squeeze", low.node("Shape", name, start=0, end=1), low.graph.ints(0))
        before = low.node("Mul", low.node("Range", ints(0), count, ints(1)), ints(steps))
        begins = low.node("Add", low.node("Unsqueeze", before, low.graph.ints(1)), position)  # (time, slot)
        wide = low.node("Cast", present, to=TensorProto.INT64)
        ended = low.node("Less", wide, ints(steps))
        totals = low.node("Where", ended, low.node("Add", begins, wide), ints(ENDLESS))
        total = low.node("ReduceMin", totals, low.graph.ints(0), keepdims=0)
        after = low.node("Add", position, low.node("Mul", count, ints(steps)))
        low.states[position] = State(position, torch.int64, (SLOT_WORD,), np.zeros((), np.int64), after)
        self.begins = begins
        return Clock(steps, position, total)

    def _meta(self, placeholder: str) -> Tensor:
        graph = self.trace.nodes[0].graph if self.trace.nodes else None
        if graph is None:
            raise ExportError(f"{self.name} computes nothing")
        found: Tensor = next(n for n in graph.nodes if n.name == placeholder).meta["val"]
        return found

    # -------------------------------------------------------------- results

    def finish(self, probe: bool = False) -> Lifted:
        low = self.low
        low.path, low.layer, low.op = "", self.name, "the result"
        found = self._in_time([self.env[node.name] for node in self.trace.outputs.values()])
        results = [
            self._output(name, own, data)
            for name, own, data in zip(self.names, self.trace.outputs, found, strict=True)
        ]
        for s in self.trace.states:
            self._next_state(s.name, self.env[self.trace.next_states[s.name].name])
        if not self.trace.by_name:
            check_slots(low)
        inputs = self.inputs
        if low.blocks:
            inputs = [*inputs, _count(low.blocks.present)]
            most = low.constant(low.blocks.ticks, torch.int32)
            results.append((low.node("Min", low.blocks.present, most), *_count(low.blocks.kept)))
        steps = None
        if low.clock is not None:
            steps, more = self._taken()
            inputs = [*inputs, _count(steps.present, TIME_WORD)]
            results += more
        states = self._living_states([value for value, _, _ in results])
        ports = [*[port for port, _ in inputs], *[Port(s.name, s.dtype, s.dims) for s in states]]
        ends = [(value, port) for value, port, _ in results]
        ends += [(str(s.next), Port(f"{s.name}.next", s.dtype, s.dims)) for s in states]
        model = low.graph.finish(self.name, ports, ends)
        time = low.ticks is not None or self.one_tick is not None
        probed = show(low, self.name, ports, ends, states, time) if probe else None
        spec = ModelSpec(
            inputs=tuple(tensor for _, tensor in inputs),
            outputs=tuple(tensor for _, _, tensor in results),
            states=tuple(
                ModelState(
                    s.name,
                    f"{s.name}.next",
                    NUMPY_OF[s.dtype],
                    s.dims,
                    initial_row(s.initial, s.initial.shape, NUMPY_OF[s.dtype], s.name),
                )
                for s in states
            ),
            latency=low.blocks.latency if low.blocks else steps.latency if steps else 0,
            any_ticks=low.any_ticks,
            blocks=low.blocks,
            steps=steps,
        )
        remembered = sum(s.past for s in states) + (2 * low.blocks.window if low.blocks else 0)
        rows = self.timing.length if steps else TICKS
        return Lifted(
            model, spec, (*self.trace.notes, *low.notes), remembered, probed, rows=rows, at_end=self.at_end
        )

    def _output_names(self, wanted: Sequence[str] | None) -> list[str]:
        found = list(self.trace.outputs)
        if wanted is not None:
            if len(wanted) != len(found) or len(set(wanted)) != len(wanted):
                raise ExportError(
                    f"output_names must be {len(found)} different names (the module's own are {found}); "
                    f"given: {list(wanted)}"
                )
            found = list(wanted)
        taken = set(self.trace.inputs.values()) | set(self.low.givens)
        for i, name in enumerate(found):
            if name in taken:
                found[i] = f"{name}_out"
                if found[i] in taken or found.count(found[i]) > 1:
                    raise ExportError(
                        f"output {name!r} has an input's name, and {found[i]!r} is taken too: "
                        "name the outputs with output_names="
                    )
                self.low.note(f"output {name!r} is called {found[i]!r}: an input has its name")
            self.low.graph.fresh(found[i])
        return found

    def _in_time(self, results: list[Any]) -> list[Any]:
        """The results with one timing, that of a stream's rows: none is known before the first tick."""
        low = self.low
        if not low.whole:
            return results
        made = [r if isinstance(r, Tensor) else low.value(r) for r in results]
        at_end = [v for v in made if isinstance(v, Value) and v.tick is not None]
        over = {
            i: v for i, v in enumerate(made) if isinstance(v, Value) and v.tick is None and TIME in v.axes
        }
        values = aligned(low, [from_the_first(low, v) for v in over.values()])
        if values:
            low.attend(values[0].timing)
        values = [delayed(low, v, v.timing.uncertain(low.step)) for v in values]
        for i, v in zip(over, values, strict=True):
            made[i] = v
        self.timing = values[0].timing if values else PLAIN
        if low.rows_seen:  # what is cut off in the end may be nothing at the traced length
            known = (n for n in [self.timing.length, *rounded(self.timing.rate)] if n(low.whole) == low.ticks)
            seen = {t: sizes for t, sizes in low.rows_seen.items() if sizes}
            length_seen = next((n for n in known if all(n(t) in sizes for t, sizes in seen.items())), None)
            self.timing = replace(self.timing, length=length_seen or self.timing.length)
        if at_end:
            self._end_in_time(at_end, alone=not over)
        if low.clock is None and (low.clocked or low.step > 1 or not self.timing.plain):
            if low.blocks:
                raise low.untranslated("rows that come late or at another rate, together with blocks=")
            if not low.any_ticks:
                low.one_tick()
                raise low.untranslated("rows that come late or at another rate, with one tick a call")
            raise _StepsError(low.step)
        low.attend(self.timing)
        return made

    def _end_in_time(self, at_end: list[Value], alone: bool) -> None:
        """What the module gives at a sequence's end is a stream's row if it depends on no tick behind it.

        It may begin late, as what is made of the last few rows does.
        """
        low, timing = self.low, at_end[0].timing
        begins = Timing(delay=timing.delay, length=TICKS.then(plus=-timing.delay))
        alike = all(v.timing == timing for v in at_end) and (alone or self.timing == timing)
        if low.clocked or not alike or timing != begins:
            refused = low.refusal(
                "it is what the module gives at the sequence's end, and depends on what comes after a tick",
                "return every tick",
            )
            raise LengthError(refused.message)
        self.timing, self.at_end = timing, True

    def _taken(self) -> tuple[Steps, list[tuple[str, Port, ModelTensor]]]:
        """How the engine takes steps, and the outputs that say which of a step's rows are the stream's."""
        low, timing = self.low, self.timing
        assert low.clock is not None
        ticks = low.clock.ticks
        rows = int(ticks * timing.rate)
        present, begun, kept = self.own

        def ints(value: int) -> str:
            return low.constant(value, torch.int64)

        first = self.begins  # the first row of each step, (time, slot)
        if rows != ticks:
            first = low.node(
                "Div", low.node("Mul", first, ints(timing.rate.numerator)), ints(timing.rate.denominator)
            )
        first = low.node("Sub", first, ints(timing.delay))

        def within(rows_from: str, name: str) -> tuple[str, Port, ModelTensor]:
            value = low.node("Min", low.node("Max", rows_from, ints(0)), ints(rows))
            return low.node("Cast", value, to=TensorProto.INT32), *_count(name, TIME_WORD)

        more = [
            within(low.node("Neg", first), begun),
            within(low.node("Sub", length(low, timing.length), first), kept),
        ]
        delay, after = math.ceil(timing.latency), _steps_after(timing, ticks, rows)
        return Steps(ticks, rows, delay, after, present, begun, kept, low.clock.begin), more

    def _output(self, name: str, own: str, data: Any) -> tuple[str, Port, ModelTensor]:
        """(value, port, tensor) of a result; `own` is the module's name for it."""
        low = self.low
        low.op = f"output {name!r}"
        if isinstance(data, Tensor):
            raise low.refusal("it does not depend on the input", "leave it out of what forward returns")
        v = low.value(data)
        v = self._streamed(v) if low.ticks is not None else v
        lead: list[int] = low.leading(v)
        if self.one_tick is not None:
            time = self.one_tick[own]
            if time is None:  # a result for the chunk's last tick, which is its only one
                v, time = low.insert(v, 0), 0
                lead = low.leading(v)
            lead = [time, *lead]
        order = [*lead, *[i for i in range(len(v.axes)) if i not in lead]]
        v = low.arrange(v, order)
        words: tuple[Dim, ...] = (TIME_WORD, SLOT_WORD) if len(lead) == 2 else (SLOT_WORD,)
        if low.blocks:  # what the lookahead gave comes again, better, with a later window
            words = (low.blocks.ticks, SLOT_WORD)
            v = feature_slice(low, v, lead[0], 0, low.blocks.ticks)
        dims: tuple[Dim, ...] = (*words, *[low.size(v.axes[o]) for o in order if o not in lead])
        if low.clock is not None:
            rows = int(low.clock.ticks * self.timing.rate)
            dims = (TIME_WORD, rows, *dims[1:])
            if rows == 1:
                v = replace(v, name=low.node("Unsqueeze", v.name, low.graph.ints(1)))
            else:
                v = replace(v, name=low.lead_reshaped(v.name, rows, [int(d) for d in dims[3:]]))
        return v.name, Port(name, v.dtype, dims), ModelTensor(name, NUMPY_OF[v.dtype], dims)

    def _streamed(self, v: Value) -> Value:
        """A result over time, or at the last tick, which is what the module gives on each prefix."""
        low = self.low
        assert low.ticks is not None
        if v.tick is not None and low.blocks:
            raise low.refusal(
                "it is one result for the whole sequence, at its end; with blocks= a stream has a result for "
                "every tick",
                "return every tick, or leave blocks= out and the bidirectional layer",
            )
        if v.tick is not None and v.tick != self.timing.length(low.whole) - 1:
            raise low.refusal(
                f"it is what the module gives at tick {v.tick}, and is fixed from then on",
                "return the last tick (out[:, -1]) or every tick",
            )
        if v.axes and any(a in MERGED for a in v.axes):
            at = next(i for i, a in enumerate(v.axes) if a in MERGED)
            raise low.refusal(
                f"its axis {at} is batch and time merged", "give it back its shape: view(batch, time, ...)"
            )
        if v.tick is None and TIME not in v.axes:
            raise low.refusal("it has no time axis", "return a sequence, or its last tick")
        return v

    # -------------------------------------------------------------- states

    def _next_state(self, name: str, data: Any) -> None:
        """Tie an explicit state, or its layers, to what the module returned for it."""
        low = self.low
        low.op = f"state {name!r}"
        if isinstance(data, Tensor):
            raise low.refusal("the module returns a constant for it", "return the next state")
        mine = [s for s in low.states.values() if s.given and s.given.name == name]
        for s in mine:
            s.next = self._at_end(self._layer(data, s), s)
        if not mine:
            low.note(f"state {name!r} has no influence on any output and is left out")

    def _layer(self, data: Any, s: State) -> Any:
        """The part of a returned state that belongs to `s`, which may be one layer."""
        layer = s.given.layer if s.given else None
        if layer is None:
            return data
        if isinstance(data, Stack):
            return data.parts[layer]
        if isinstance(data, Given):
            return Given(data.name, data.axes[1:], layer)
        return select(self.low, self.low.value(data), 0, layer)

    def _at_end(self, data: Any, s: State) -> str:
        """The value after the call's last tick, in the state's own shape."""
        low = self.low
        if isinstance(data, Given) and low.ticks is not None:
            return low.layer_state(data)
        if isinstance(data, Carry):
            final = low.recurrences[data.recurrence].final_c
            assert final is not None
            return self._last(data.tick, final)
        v = low.value(data)
        if v.dtype != s.dtype:
            raise low.refusal(
                f"it comes in as {s.dtype} and is returned as {v.dtype}", "return it as it came"
            )
        if low.ticks is None:
            expected = tuple(low.batch if d == SLOT_WORD else int(d) for d in s.dims)
            if low.shape(v.axes) != expected and low.shape(v.axes) != expected[1:]:
                raise low.refusal(
                    f"it comes in as {expected} and is returned as {low.shape(v.axes)}",
                    "return it as it came; the order is that of state=",
                )
            v = low.insert(v, 0) if len(v.axes) < len(s.dims) else v
            return low.arrange(v, range(len(v.axes))).name
        width = s.dims[-1]
        if v.tick is None or v.axes[-1] != width or low.shape(v.axes)[-2:-1] != (low.batch,):
            raise low.refusal(
                "what is returned for it is not its value after the last tick",
                "return h after the whole chunk, in the shape and order of state=",
            )
        for r in low.recurrences:
            if v.name == r.y:
                return self._last(v.tick, r.final)
        v = low.arrange(low.drop(v, 0) if len(v.axes) == 3 else v, (HIDDEN, 0, 1))
        if not low.any_ticks:
            return self._last(v.tick, v.name)
        ints = low.graph.ints
        return self._last(v.tick, low.node("Slice", v.name, ints(-1), ints(2**62), ints(0)))

    def _last(self, tick: int | None, name: str) -> str:
        if self.low.ticks is not None and tick != self.low.ticks - 1:
            raise self.low.refusal(
                f"what is returned for it is its value after tick {tick}", "return the last one"
            )
        return name

    def _living_states(self, ends: list[str]) -> list[State]:
        """The states that some output depends on, through any number of steps."""
        low = self.low
        living: list[State] = []
        while True:
            reached = low.graph.reached(ends + [str(s.next) for s in living])
            found = [s for n, s in low.states.items() if n in reached]
            if len(found) == len(living):
                break
            living = found
        for s in low.states.values():
            if s not in living and s.given:
                low.note(f"state {s.name!r} has no influence on any output and is left out")
        return living
