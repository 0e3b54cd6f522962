"""Find recurrent operators of a declared ONNX file that keep no state between calls.

An LSTM without `initial_h` starts from zeros at every call. Over a free time axis that breaks the law of
chunking without an error: the same sequence in other chunks gives other numbers. So a recurrent operator must
start from a declared state, and its last state must become the next one.

Only the graph's structure is checked: which values are computed from which others. A state that reaches the
right operators through wrong arithmetic is not detected here.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import ModelError, PipelineError
from ..spec import ModelSpec
from .onnxgraph import Graph, Node, read

MAX_VALUES = 2**18  # of a graph, with its functions written out at each use

# An operator's initial states: name, index of the input, names and indexes of the outputs with the last
# value.
_INITIAL = {
    "LSTM": (("initial_h", 5, (("Y_h", 1), ("Y", 0))), ("initial_c", 6, (("Y_c", 2),))),
    "GRU": (("initial_h", 5, (("Y_h", 1), ("Y", 0))),),
    "RNN": (("initial_h", 5, (("Y_h", 1), ("Y", 0))),),
}
_INITIAL |= {"DynamicQuantizeLSTM": _INITIAL["LSTM"], "AttnLSTM": _INITIAL["LSTM"]}
_SHAPES_ONLY = ("Shape", "Size", "ConstantOfShape")  # their outputs hold none of their input's numbers

Known = tuple[int | None, ...]  # integers that the file fixes; None: an open one


@dataclass(slots=True)
class _Carried:
    """One value that a recurrent operator carries from time step to time step."""

    name: str
    initial: int | None  # the value that it starts from; None: omitted, so zero
    made: list[int]  # values computed from it
    last: list[int]  # those of them that hold it after the last time step
    last_name: str


@dataclass(slots=True)
class _Recurrence:
    label: str
    carried: list[_Carried]
    backwards: bool = False
    fixed: bool = False  # a loop with a fixed number of rounds: not over time


@dataclass(slots=True)
class _Flow:
    """A graph's values, numbered, with its subgraphs and functions written out."""

    functions: Mapping[tuple[str, str], Graph]
    where: str
    sources: list[list[int]] = field(default_factory=list)  # for each value: the values it is computed from
    known: dict[int, Known] = field(default_factory=dict)  # values whose few integers the file fixes
    shapes: dict[int, Known] = field(default_factory=dict)
    found: list[_Recurrence] = field(default_factory=list)

    def new(self, sources: Iterable[int] = ()) -> int:
        if len(self.sources) >= MAX_VALUES:
            raise ModelError(f"{self.where}: its graph has more than {MAX_VALUES} values")
        self.sources.append(list(sources))
        return len(self.sources) - 1

    def reached(self, ends: Iterable[int]) -> set[int]:
        """Return `ends` and all values that they are computed from."""
        seen, todo = set(), list(ends)
        while todo:
            value = todo.pop()
            if value not in seen:
                seen.add(value)
                todo += self.sources[value]
        return seen


def check(data: bytes, spec: ModelSpec, restarts: bool, where: str) -> None:
    """Refuse a declared file with a recurrent operator that keeps no state between calls.

    `restarts`: the pipeline file states that each time step is computed alone. Raises PipelineError if the
    declaration lacks a state, ModelError for a file that cannot be stepped.
    """
    graph, functions = read(data, where)
    flow = _Flow(functions, where)
    scope: ChainMap[str, int] = ChainMap()
    for name in graph.inputs:
        scope[name] = flow.new()
    shapes = {t.name: t.shape for t in spec.inputs} | {s.input: s.shape for s in spec.states}
    for name, shape in shapes.items():
        if name in scope:
            flow.shapes[scope[name]] = tuple(d if isinstance(d, int) else None for d in shape)
    for name, value in spec.constants.items():
        if name in scope and value.dtype.kind in "iub" and value.size == 1:
            flow.known[scope[name]] = (int(value.reshape(-1)[0]),)
    _write_out(flow, graph, scope, 0)
    states = {scope[s.input] for s in spec.states if s.input in scope}
    given = states | {scope[t.name] for t in spec.inputs if t.name in scope}
    kept = flow.reached(scope[s.output] for s in spec.states if s.output in scope)
    used = flow.reached(scope[name] for name in graph.outputs if name in scope)
    for one in flow.found:
        _judge(flow, one, states, given, kept, used, spec.any_ticks, restarts)


def _judge(
    flow: _Flow,
    one: _Recurrence,
    states: set[int],
    given: set[int],
    kept: set[int],
    used: set[int],
    over_time: bool,
    restarts: bool,
) -> None:
    for carried in one.carried:
        if not given & flow.reached(carried.made) or not used.intersection(carried.made):
            continue  # a counter, or a value that no output depends on
        if over_time and one.backwards:
            raise ModelError(
                f"{flow.where}: operator {one.label} reads the time axis backwards, from an end that a "
                "stream does not know: such a model cannot be stepped. Train it with one direction"
            )
        begins = carried.initial is not None and bool(states & flow.reached([carried.initial]))
        ends = bool(kept.intersection(carried.last))
        if (begins and ends) or (over_time and one.fixed) or (restarts and not over_time):
            continue
        what = f"its {carried.name} comes from no declared state"
        if begins:
            what = f"its last value ({carried.last_name}) becomes no declared state"
        raise PipelineError(f"{flow.where}: operator {one.label} {_FORGETS[over_time].format(what)}")


_DECLARE = (
    "declare under state ([[model.state]]) the input that it comes from and the output that holds it last. A "
    "file without such an input must be exported again, with its states as inputs and outputs (runnel export "
    "does that)"
)
_FORGETS = {
    True: "runs over the time axis and forgets: {}, so that each chunk would start anew: " + _DECLARE,
    False: "forgets between time steps: {}: "
    + _DECLARE
    + ". If each time step is computed on its own (a window, a spectrum), say restarts = true",
}


def _write_out(flow: _Flow, graph: Graph, scope: ChainMap[str, int], depth: int) -> None:
    """Number the values of `graph`. `scope`: the values that it may name."""
    for name, numbers in graph.constants.items():
        value = scope[name] = flow.new()
        if numbers is not None:
            flow.known[value] = numbers
    for node in graph.nodes:
        ins = [_named(flow, scope, name) for name in node.inputs]
        body = flow.functions.get((node.domain, node.op))
        if body is not None:
            outs = _function(flow, body, ins, depth)
        elif node.op == "If":
            outs = _branches(flow, node, ins, scope, depth)
        elif node.op in ("Loop", "Scan"):
            outs = _loop(flow, node, ins, scope, depth)
        else:
            outs = _plain(flow, node, ins, scope, depth)
        for name, value in zip(node.outputs, outs, strict=False):
            scope[name] = value


def _named(flow: _Flow, scope: ChainMap[str, int], name: str) -> int | None:
    if not name:
        return None
    if name not in scope:
        scope[name] = flow.new()
    return scope[name]


def _inner(flow: _Flow, graph: Graph, scope: ChainMap[str, int], depth: int) -> tuple[list[int], list[int]]:
    """Write out a subgraph; return its inputs and outputs."""
    if depth > 64:
        raise ModelError(f"{flow.where}: its functions and subgraphs nest more than 64 deep")
    child = scope.new_child()
    formals = [flow.new() for _ in graph.inputs]
    child.update(zip(graph.inputs, formals, strict=True))
    _write_out(flow, graph, child, depth + 1)
    return formals, [value for n in graph.outputs if (value := _named(flow, child, n)) is not None]


def _function(flow: _Flow, body: Graph, ins: list[int | None], depth: int) -> list[int]:
    formals, outs = _inner(flow, body, ChainMap(), depth)
    for formal, given in zip(formals, ins, strict=False):
        if given is not None:
            flow.sources[formal].append(given)
    return outs


def _branches(
    flow: _Flow, node: Node, ins: list[int | None], scope: ChainMap[str, int], depth: int
) -> list[int]:
    """Write out the branch that is taken if the file fixes it; else both."""
    condition = flow.known.get(ins[0], (None,))[0] if ins and ins[0] is not None else None
    names = (
        ("then_branch", "else_branch")
        if condition is None
        else ("then_branch" if condition else "else_branch",)
    )
    outs = [flow.new() for _ in node.outputs]
    for name in names:
        if name in node.graphs:
            _, made = _inner(flow, node.graphs[name], scope, depth)
            for out, value in zip(outs, made, strict=False):
                flow.sources[out].append(value)
                if condition is not None and value in flow.known:
                    flow.known[out] = flow.known[value]
    return outs


def _loop(flow: _Flow, node: Node, ins: list[int | None], scope: ChainMap[str, int], depth: int) -> list[int]:
    body = node.graphs.get("body", Graph())
    formals, made = _inner(flow, body, scope, depth)
    if node.op == "Loop":  # trip count, condition, carried; the body's: round, condition, carried
        carried_in, first_formal, first_made = ins[2:], 2, 1
        rounds = flow.known.get(ins[0], (None,))[0] if ins and ins[0] is not None else None
        fixed = rounds is not None and rounds > 1
    else:  # carried, then scanned; before opset 9 the lengths come first
        scanned = (node.numbers.get("num_scan_inputs") or (0,))[0]
        carried_in = ins[max(0, len(ins) - len(formals)) : len(ins) - scanned]
        first_formal = first_made = 0
        fixed = False
        for formal, value in zip(formals[len(carried_in) :], ins[len(ins) - scanned :], strict=False):
            if value is not None:
                flow.sources[formal].append(value)
    outs = [flow.new() for _ in node.outputs]
    one = _Recurrence(_label(node), [], fixed=fixed)
    for i, initial in enumerate(carried_in):
        before = [] if initial is None else [initial]
        after = made[first_made + i : first_made + i + 1]
        for formal in formals[first_formal + i : first_formal + i + 1]:
            flow.sources[formal] += before + after
        for out in outs[i : i + 1]:
            flow.sources[out] += before + after
        # An output list that a loop appends to is not a state: it is always empty at first.
        if initial is None or flow.known.get(initial) != ():
            last = outs[i : i + 1]
            name = f"carried value number {i + 1}"
            one.carried.append(_Carried(name, initial, [*last, *after], last, f"output number {i + 1}"))
    for out, value in zip(outs[len(carried_in) :], made[first_made + len(carried_in) :], strict=False):
        flow.sources[out].append(value)
    flow.found.append(one)
    return outs


def _plain(
    flow: _Flow, node: Node, ins: list[int | None], scope: ChainMap[str, int], depth: int
) -> list[int]:
    given = [value for value in ins if value is not None]
    for graph in node.graphs.values():  # of an unknown operator: every input may affect every output
        formals, made = _inner(flow, graph, scope, depth)
        for formal in formals:
            flow.sources[formal] += given
        given = [*given, *made]
    if node.op in _SHAPES_ONLY:
        given = []
    outs = [flow.new(given) for _ in node.outputs]
    if outs and (numbers := _folded(flow, node, ins)) is not None:
        flow.known[outs[0]] = numbers
    if node.op in _INITIAL:
        carried = []
        for name, at, finals in _INITIAL[node.op]:
            there = [outs[i] for _, i in finals if i < len(outs) and node.outputs[i]]
            carried.append(_Carried(name, ins[at] if at < len(ins) else None, outs, there, finals[0][0]))
        direction = node.texts.get("direction", "forward")
        flow.found.append(_Recurrence(_label(node), carried, backwards=direction != "forward"))
    return outs


def _label(node: Node) -> str:
    return f"{node.op} {node.name[:80]!r}" if node.name else node.op


def _folded(flow: _Flow, node: Node, ins: list[int | None]) -> Known | None:
    """Return the output's integers if the file fixes them; needed for an If."""
    if node.op == "Constant":
        return next(iter(node.numbers.values()), None) or None
    if node.op == "SequenceEmpty":
        return ()
    if not ins or ins[0] is None:
        return None
    if node.op == "Shape" and not node.numbers:
        return flow.shapes.get(ins[0])
    first = flow.known.get(ins[0])
    if node.op == "Size":
        shape = flow.shapes.get(ins[0])
        sizes = [d for d in shape or () if d is not None]
        return (math.prod(sizes),) if shape is not None and len(sizes) == len(shape) else None
    if not first:
        return None
    if node.op in ("Identity", "Squeeze", "Unsqueeze"):
        return first
    if node.op == "Cast":
        to_bool = node.numbers.get("to") == (9,)
        return tuple(None if v is None else int(v != 0) if to_bool else v for v in first)
    if node.op == "Not":
        return tuple(None if v is None else int(not v) for v in first)
    second = flow.known.get(ins[1]) if len(ins) > 1 and ins[1] is not None else None
    if not second or any(v is None for v in second):
        return None
    if node.op == "Gather":
        return tuple(first[i] if -len(first) <= i < len(first) else None for i in second if i is not None)
    if node.op == "Equal" and len(first) == len(second) == 1:
        return (None if first[0] is None else int(first[0] == second[0]),)
    return None
