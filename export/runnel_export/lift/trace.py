"""A module becomes a functional graph of ATen operations, at sizes that give every axis a name.

torch.export traces at concrete sizes. The batch and the time are given prime sizes that divide no
dimension of the module or of its example, so that in the traced graph an axis of that size *is* the
batch or the time, and an axis of their product is the two merged.
"""

from __future__ import annotations

import inspect
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from runnel.errors import ExportError, NotStreamableError, RunnelError, nearest

from ..arguments import counted_axes
from ..call import named_leaves, output_names
from ..dry_run import first_line, rehearse, resample
from ..lengths import ANY, PRIMES, Lengths, accepted
from ..nn.marks import lifting
from ..pairing import pair, parameter_order, positions_note
from . import ops

DECOMPOSITIONS = 4  # rounds: what an operation is made of may be made of others


@dataclass(frozen=True)
class StateIn:
    """A state that the module takes as an argument."""

    name: str
    placeholder: str
    batch_axis: int
    initial: Tensor  # one row, without the batch axis


@dataclass(frozen=True)
class Trace:
    """The traced graph, and what its placeholders and results are."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]  # parameters, buffers, literals, by placeholder
    inputs: Mapping[str, str]  # placeholder -> forward's parameter
    states: tuple[StateIn, ...]
    outputs: Mapping[str, Node]  # name -> result
    next_states: Mapping[str, Node]  # state name -> result
    batch: int
    ticks: int | None  # None: one step a call, no time axis is followed
    batch_axis: int
    time_axis: int | None  # of inputs; in a step trace None, or where the axis of size 1 is
    by_name: bool  # whether forward named the next states
    notes: tuple[str, ...]
    run: Callable[[str], Tensor]  # what an operation of the graph gives on the example, at these sizes


class UntraceableError(ExportError):
    """torch.export failed; the message holds sizes that are the exporter's own. `lift` replaces it."""


@dataclass(frozen=True)
class Prepared:
    """What `lift` was given, checked, and run once by forward."""

    inputs: Mapping[str, Tensor]
    state: Mapping[str, Any] | None  # in the order of forward's parameters
    given: Mapping[str, Tensor]  # the leaves of `state` by name
    time_axis: int | None
    batch_axis: int
    axes: Mapping[str, tuple[int, int | None]]  # of each input: batch, time
    states_at: Mapping[str, int]  # the batch axis of each leaf
    sizes: Sequence[tuple[int, int]]  # two pairs for batch and time
    lengths: Sequence[Lengths]  # to trace at, best first
    takes: Lengths  # all that forward runs on
    free: tuple[int, ...]  # primes that divide no dimension

    def of(self, lengths: Lengths) -> Prepared:
        """The same, to be traced at such lengths."""
        return replace(self, sizes=_sizes(self.free, lengths))


def prepare(
    module: nn.Module,
    example: Tensor | Mapping[str, Tensor],
    *,
    time_axis: int | None,
    batch_axis: int,
    state: Mapping[str, Any] | None,
) -> Prepared:
    """Check the arguments, and run forward on them. Raises ExportError where they do not fit the module."""
    inputs = _by_parameter(module, example)
    time_axis, batch_axis = counted_axes(inputs, time_axis, batch_axis)
    if time_axis is not None and time_axis == batch_axis:
        raise ExportError(f"time_axis and batch_axis are both {time_axis}: they must differ")
    state = None if state is None else parameter_order(module, state)
    given = _state_leaves(state)
    _check_dtypes(module, {**inputs, **given})
    axes = {name: _axes(name, t, time_axis, batch_axis) for name, t in inputs.items()}
    rows_given = {t.shape[axes[name][0]] for name, t in inputs.items()}
    if len(rows_given) != 1:
        raise ExportError(f"the examples have different batch sizes: {sorted(rows_given)}")
    _ordered(module, {**inputs, **(state or {})})  # (names that forward has)
    states_at = {name: _state_batch_axis(name, h, next(iter(rows_given))) for name, h in given.items()}
    rehearse(module, inputs, state or {})
    free = _primes(module, inputs, axes, given)
    takes, lengths = ANY, [ANY]
    if time_axis is not None:
        takes, lengths = accepted(
            module, inputs, state, {n: t for n, (_, t) in axes.items() if t is not None}
        )
    sizes = _sizes(free, lengths[0])
    return Prepared(inputs, state, given, time_axis, batch_axis, axes, states_at, sizes, lengths, takes, free)


def trace(module: nn.Module, prepared: Prepared, *, one_tick: bool = False, sizes: int = 0) -> Trace:
    """Trace `module` in eval mode; its own modes are put back.

    `one_tick`: a time axis of size 1. `sizes` chooses among pairs of sizes for batch and time.

    Raises UntraceableError where torch cannot trace it.
    """
    given, states_at = prepared.given, prepared.states_at
    batch, ticks = prepared.sizes[sizes]
    over_time = None if one_tick or prepared.time_axis is None else ticks
    feed = _ordered(module, _feed(prepared, batch, 1 if one_tick else ticks))
    rows = {name: h.select(states_at[name], 0).detach().clone() for name, h in given.items()}
    with lifting(batch, over_time):
        program = _export(module, feed)
    constants, placeholders = _placeholders(program)
    by_name = dict(zip(_leaf_names(feed), placeholders, strict=True))
    outputs, next_states, places = _results(program, tuple(given), module)
    note = positions_note({n: tuple(h.shape) for n, h in given.items()}, places) if places else None
    return Trace(
        nodes=tuple(n for n in program.graph.nodes if n.op == "call_function"),
        constants=constants,
        inputs={by_name[name]: name for name in prepared.inputs},
        states=tuple(StateIn(n, by_name[n], states_at[n], rows[n]) for n in given),
        outputs=outputs,
        next_states=next_states,
        batch=batch,
        ticks=over_time,
        batch_axis=prepared.batch_axis,
        time_axis=prepared.time_axis,
        by_name=not places,
        notes=(note,) if note else (),
        run=_runner(program, constants, dict(zip(placeholders, pytree.tree_leaves(feed), strict=True))),
    )


def _runner(
    program: torch.export.ExportedProgram, constants: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> Callable[[str], Tensor]:
    """What an operation gives on random data like the example. Each is computed at most once."""
    nodes = {node.name: node for node in program.graph.nodes}
    known: dict[str, Any] = dict(constants)
    draw = torch.Generator().manual_seed(0)
    for name, tensor in given.items():
        noise = torch.randn(tensor.shape, generator=draw) if tensor.is_floating_point() else 0
        known[name] = (
            tensor + noise
        )  # (rows of the batch differ, so that what does not depend on them is seen)

    def run(name: str) -> Tensor:
        todo = [name]
        while todo:
            node = nodes[todo[-1]]
            missing = [n.name for n in node.all_input_nodes if n.name not in known]
            if missing or todo[-1] in known:
                todo = [*todo, *missing] if missing else todo[:-1]
                continue
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: known[n.name])
            with torch.no_grad():
                known[node.name] = node.target(*args, **kwargs)
            todo.pop()
        found: Tensor = known[name]
        return found

    return run


def _feed(prepared: Prepared, batch: int, ticks: int) -> dict[str, Any]:
    """The example and the states, at the sizes that the trace is made with."""
    feed: dict[str, Any] = {}
    for name, tensor in prepared.inputs.items():
        b, t = prepared.axes[name]
        sized = resample(tensor, b, batch)
        feed[name] = sized if t is None else resample(sized, t, ticks)
    if prepared.state is not None:
        at = prepared.states_at
        leaves = [resample(h.detach().clone(), at[name], batch) for name, h in prepared.given.items()]
        spec = pytree.tree_flatten(dict(prepared.state))[1]
        feed.update(pytree.tree_unflatten(leaves, spec))
    return feed


def feed_at(module: nn.Module, prepared: Prepared, ticks: int, batch: int) -> dict[str, Any]:
    """Arguments of forward for `batch` sequences of so many ticks."""
    return _ordered(module, _feed(prepared, batch, ticks))


def _placeholders(program: torch.export.ExportedProgram) -> tuple[dict[str, Tensor], list[str]]:
    """(constants by placeholder, placeholders of forward's arguments)."""
    constants: dict[str, Tensor] = {}
    placeholders: list[str] = []
    for entry in program.graph_signature.input_specs:
        if entry.kind is InputKind.USER_INPUT:
            if not isinstance(entry.arg, ConstantArgument):
                placeholders.append(entry.arg.name)
        elif entry.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            held = program.constants if entry.target in program.constants else program.state_dict
            constants[entry.arg.name] = held[entry.target].detach()
        else:
            raise ExportError(f"{entry.target!r} is a {entry.kind.name.lower()}: it has no ONNX form")
    return constants, placeholders


# ------------------------------------------------------------------ arguments


def _by_parameter(module: nn.Module, example: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    parameters = list(inspect.signature(module.forward).parameters)
    if isinstance(example, Tensor):
        if not parameters:
            raise ExportError(f"{type(module).__name__}.forward takes no argument")
        return {parameters[0]: example}
    if not isinstance(example, Mapping) or not all(isinstance(v, Tensor) for v in example.values()):
        raise ExportError(
            f"example must be a tensor, or a dict from forward's parameters to tensors; given: "
            f"{type(example).__name__}"
        )
    for name in example:
        if name not in parameters:
            wrap = ""
            if len(example) > 1 and len(parameters) == 1:
                wrap = (
                    f"; if forward takes a dict or a tuple, wrap it in a module whose "
                    f"forward({', '.join(example)}) makes that"
                )
            raise ExportError(
                f"{type(module).__name__}.forward has no parameter {name!r}{nearest(name, parameters)}{wrap}"
            )
    return dict(example)


def _state_leaves(state: Mapping[str, Any] | None) -> dict[str, Tensor]:
    if state is None:
        return {}
    leaves = pytree.tree_leaves(dict(state))
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise ExportError("state must map forward's parameters to tensors (or tuples of tensors)")
    return dict(zip(_leaf_names(dict(state)), leaves, strict=True))


def _leaf_names(tree: Any) -> list[str]:
    return [_name(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]


def _name(path: tuple[Any, ...]) -> str:
    parts = []
    for key in path:
        match key:
            case pytree.MappingKey(key=k):
                parts.append(str(k))
            case pytree.SequenceKey(idx=i):
                parts.append(str(i))
            case pytree.GetAttrKey(name=n):
                parts.append(n)
            case _:
                parts.append(str(key))
    return ".".join(parts)


def _check_dtypes(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    kept = {**dict(module.named_parameters()), **dict(module.named_buffers()), **tensors}
    for name, tensor in kept.items():
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise ExportError(
                f"{name!r} is {tensor.dtype}; a step model computes in float32: "
                "call module.float() and give float32 examples (quantize= makes it smaller)"
            )


def _axes(name: str, tensor: Tensor, time_axis: int | None, batch_axis: int) -> tuple[int, int | None]:
    """(batch, time) axes, not negative."""
    found = []
    for axis, what in ((batch_axis, "batch"), (time_axis, "time")):
        if axis is None:
            continue
        if not -tensor.dim() <= axis < tensor.dim():
            raise ExportError(
                f"example {name!r} has shape {tuple(tensor.shape)}, but {what} is axis {axis}: examples are "
                "(batch, time, ...), or say time_axis= (None for a module that is one step already)"
            )
        found.append(axis % tensor.dim())
    if min(tensor.shape) == 0:
        raise ExportError(f"example {name!r} has shape {tuple(tensor.shape)}: it is empty")
    return found[0], (found[1] if time_axis is not None else None)


def _state_batch_axis(name: str, h: Tensor, batch: int) -> int:
    fits = [axis for axis, size in enumerate(h.shape) if size == batch]
    usual = 1 if h.dim() == 3 else 0  # (layers, batch, hidden), or (batch, hidden)
    if not fits:
        raise ExportError(
            f"state {name!r} has shape {tuple(h.shape)}: no axis has the example's batch size {batch}"
        )
    axis = usual if usual in fits else fits[0]
    row = h.select(axis, 0)
    if not torch.equal(h, row.unsqueeze(axis).expand_as(h)):
        raise ExportError(
            f"state {name!r}: its rows differ along the batch axis {axis}; every stream starts from the "
            "same initial state, so all rows must be equal"
        )
    return axis


def _primes(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    axes: Mapping[str, tuple[int, int | None]],
    states: Mapping[str, Tensor],
) -> tuple[int, ...]:
    """Sizes for batch and time that divide no dimension of the module or its example."""
    sizes = {d for t in (*module.parameters(), *module.buffers(), *states.values()) for d in t.shape}
    sizes |= {d for n, t in inputs.items() for i, d in enumerate(t.shape) if i not in axes[n]}
    free = tuple(p for p in PRIMES if all(size % p for size in sizes if size))
    if len(free) < 4:
        raise ExportError("the module has dimensions divisible by every size that tracing could use")
    return free


def _sizes(free: tuple[int, ...], lengths: Lengths) -> list[tuple[int, int]]:
    """Two pairs of sizes for batch and time."""
    first, second = lengths.times_a_prime(free[2:])
    return [(free[0], first), (free[1], second)]


def _ordered(module: nn.Module, feed: Mapping[str, Any]) -> dict[str, Any]:
    order = list(inspect.signature(module.forward).parameters)
    unknown = [name for name in feed if name not in order]
    if unknown:
        raise ExportError(
            f"{type(module).__name__}.forward has no parameter {unknown[0]!r}{nearest(unknown[0], order)}"
        )
    return {name: feed[name] for name in order if name in feed}


# ------------------------------------------------------------------ torch.export


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode; every submodule's own mode is put back."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def _export(module: nn.Module, feed: Mapping[str, Any]) -> torch.export.ExportedProgram:
    quiet = logging.getLogger("torch")
    level = quiet.level
    try:
        quiet.setLevel(logging.CRITICAL)
        # (torch writes the graph to standard error where forward branches on data)
        with (
            evaluating(module),
            torch.no_grad(),
            warnings.catch_warnings(),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            program = torch.export.export(module, (), dict(feed), strict=False)
            program.graph.eliminate_dead_code()
            # (this writes it without changes in place, and takes longer than all the rest)
            return _known(program if _plain(program) else program.run_decompositions({}))
    except RunnelError:  # (a layer of ours says what is wrong with it)
        raise
    except Exception as error:  # torch raises of every kind here
        raise UntraceableError(
            f"torch.export cannot trace {type(module).__name__} ({first_line(error)}). Likely: "
            "the batch or time size is written into the module, forward branches on the data, time_axis= "
            "or batch_axis= is not this module's, or it keeps state on self: pass that as state="
        ) from error
    finally:
        quiet.setLevel(level)


def _plain(program: torch.export.ExportedProgram) -> bool:
    """Whether nothing in it is changed in place, and every operation on data has a translation."""
    for node in program.graph.nodes:
        target = node.target
        if node.op == "call_function" and not (
            target is operator.getitem
            or (isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable)
        ):
            return False
    return not _strange(program)


def _known(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with what has no translation written as torch's simpler operations, where it can be."""
    for _ in range(DECOMPOSITIONS):
        strange = _strange(program)
        table = torch.export.default_decompositions() if strange else {}
        simpler = {t: table[t] for t in strange if t in table}
        if not simpler:
            break
        program = program.run_decompositions(simpler)
    return program


def _strange(program: torch.export.ExportedProgram) -> set[torch._ops.OpOverload]:
    """Operations on data that have no translation."""
    data = set(program.graph_signature.user_inputs)
    found = set()
    for node in program.graph.nodes:
        if node.op != "call_function" or not any(n.name in data for n in node.all_input_nodes):
            continue
        if not isinstance(node.target, torch._ops.OpOverload):
            data.add(node.name)
            continue
        name = node.target._schema.name
        if name in ops.IGNORED or name in ops.SHAPE_ONLY:
            continue
        data.add(node.name)
        if ops.find(name, node.target._overloadname) is None:
            found.add(node.target)
    return found


def _results(
    program: torch.export.ExportedProgram, states: tuple[str, ...], module: nn.Module
) -> tuple[dict[str, Node], dict[str, Node], dict[str, str]]:
    """(outputs, next states) by name; and where each state was returned, if position said so."""
    leaves = _returned(program, module)
    assert program.call_spec.out_spec is not None
    tree = pytree.tree_unflatten(leaves, program.call_spec.out_spec)
    pairs = list(named_leaves(tree, Node))
    named = isinstance(tree, Mapping)  # (a dict gives its keys as names)
    pairs, next_states, places = _parted(pairs, states, named, module)
    if not pairs:
        raise ExportError(f"{type(module).__name__} returns no tensor")
    names = output_names(tree, [name for name, _ in pairs])
    if len(set(names)) != len(names) or "" in names:
        raise ExportError(
            f"{type(module).__name__} returns a dict with the keys {names}: each must be a name of its own"
        )
    return dict(zip(names, (node for _, node in pairs), strict=True)), next_states, places


def _parted(
    pairs: list[tuple[str, Node]], states: tuple[str, ...], named: bool, module: nn.Module
) -> tuple[list[tuple[str, Node]], dict[str, Node], dict[str, str]]:
    """Part what forward returned: (outputs, next states, where each state was, if position said so)."""
    next_states: dict[str, Node] = {}
    places: dict[str, str] = {}
    if states and named:
        by_name = dict(pairs)
        missing = [s for s in states if s not in by_name]
        if missing:
            raise ExportError(
                f"{type(module).__name__} returns {sorted(by_name)}, and not the state {missing[0]!r}"
            )
        next_states = {s: by_name[s] for s in states}
        pairs = [(p, n) for p, n in pairs if p not in states]
    elif states:
        if len(pairs) <= len(states):
            raise ExportError(
                f"{type(module).__name__} returns {len(pairs)} tensors; with state={list(states)} it must "
                "return its outputs and then the next states, in that order"
            )
        tail = pairs[-len(states) :]
        found_at, named_all = pair(states, [name.removeprefix("y") for name, _ in tail])
        next_states = {s: tail[i][1] for s, i in found_at.items()}
        places = {} if named_all else {s: tail[i][0].removeprefix("y") for s, i in found_at.items()}
        pairs = pairs[: -len(states)]
    return pairs, next_states, places


def _returned(program: torch.export.ExportedProgram, module: nn.Module) -> list[Any]:
    """What forward returned, flat. Raises NotStreamableError if it changed a buffer."""
    found = next(n for n in program.graph.nodes if n.op == "output").args[0]
    assert isinstance(found, tuple)
    leaves: list[Any] = []
    for node, spec in zip(found, program.graph_signature.output_specs, strict=True):
        if spec.kind is OutputKind.BUFFER_MUTATION:
            raise NotStreamableError(
                f"{type(module).__name__}: forward changes its buffer {spec.target!r}, which is state that "
                "streams would share; take it as an argument and return it: export(..., state={...})"
            )
        if spec.kind is OutputKind.USER_OUTPUT:
            leaves.append(node)
        elif spec.kind is not OutputKind.USER_INPUT_MUTATION:  # (an input changed in place is nobody's)
            raise ExportError(f"{type(module).__name__}: a result of kind {spec.kind.name.lower()}")
    return leaves
