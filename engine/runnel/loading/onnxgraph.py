"""Read an ONNX file as nodes: its operators, and the values between them.

Only what `recurrence` needs is read; weights are skipped. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import ModelError
from .container import fields, read_varint

MAX_DEPTH = 64  # nested subgraphs
MAX_SMALL = 64  # numbers of a constant that are read: an index or a shape; a longer one is a weight

_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_VARINT, _BYTES = 0, 2
_INTEGERS = {2: "<B", 3: "<b", 6: "<i", 7: "<q", 9: "<?"}  # TensorProto.DataType: how raw_data is packed
_INT32_DATA, _INT64_DATA, _RAW_DATA = 5, 7, 9

Integers = tuple[int, ...]


@dataclass(slots=True)
class Node:
    op: str = ""
    domain: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)  # "" for an omitted input
    outputs: list[str] = field(default_factory=list)
    numbers: dict[str, Integers] = field(default_factory=dict)  # integer attributes
    texts: dict[str, str] = field(default_factory=dict)
    graphs: dict[str, Graph] = field(default_factory=dict)


@dataclass(slots=True)
class Graph:
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Integers | None] = field(default_factory=dict)  # None: not a few integers


def read(data: bytes, where: str) -> tuple[Graph, dict[tuple[str, str], Graph]]:
    """Return the file's graph, and its functions by domain and name.

    Raises ModelError for a damaged file.
    """
    graph: Graph | None = None
    functions = {}
    for number, payload in _parts(memoryview(data), where):
        if number == _MODEL_GRAPH:
            graph = _graph(payload, where, 0)
        elif number == _MODEL_FUNCTIONS:
            key, body = _function(payload, where)
            functions[key] = body
    if graph is None:
        raise ModelError(f"{where}: the ONNX file has no graph")
    return graph, functions


def _parts(message: memoryview, where: str) -> Iterator[tuple[int, Any]]:
    """Yield (field number, bytes or integer) of a message's fields of these two kinds."""
    for number, wire, start, end in fields(message, where):
        if wire == _BYTES:
            yield number, message[start:end]
        elif wire == _VARINT:
            yield number, read_varint(message, start, where)[0]


def _text(payload: Any) -> str:
    return bytes(payload).decode(errors="replace")


def _graph(message: memoryview, where: str, depth: int) -> Graph:
    if depth > MAX_DEPTH:
        raise ModelError(f"{where}: its graph nests more than {MAX_DEPTH} subgraphs")
    graph = Graph()
    for number, payload in _parts(message, where):
        if number == 1:
            graph.nodes.append(_node(payload, where, depth))
        elif number == 5:
            name, values = _tensor(payload, where)
            graph.constants[name] = values
        elif number == 15:  # a sparse initializer: its first field holds the values, with the name
            for inner, tensor in _parts(payload, where):
                if inner == 1:
                    graph.constants[_tensor(tensor, where)[0]] = None
        elif number in (11, 12):
            names = graph.inputs if number == 11 else graph.outputs
            names += [_text(value) for inner, value in _parts(payload, where) if inner == 1]
    return graph


def _function(message: memoryview, where: str) -> tuple[tuple[str, str], Graph]:
    name = domain = ""
    body = Graph()
    for number, payload in _parts(message, where):
        if number == 1:
            name = _text(payload)
        elif number == 10:
            domain = _text(payload)
        elif number == 4:
            body.inputs.append(_text(payload))
        elif number == 5:
            body.outputs.append(_text(payload))
        elif number == 7:
            body.nodes.append(_node(payload, where, 0))
    return (domain, name), body


def _node(message: memoryview, where: str, depth: int) -> Node:
    node = Node()
    for number, payload in _parts(message, where):
        if number == 1:
            node.inputs.append(_text(payload))
        elif number == 2:
            node.outputs.append(_text(payload))
        elif number == 3:
            node.name = _text(payload)
        elif number == 4:
            node.op = _text(payload)
        elif number == 7:
            node.domain = _text(payload)
        elif number == 5:
            _attribute(node, payload, where, depth)
    return node


def _attribute(node: Node, message: memoryview, where: str, depth: int) -> None:
    parts = list(_parts(message, where))
    name = next((_text(payload) for number, payload in parts if number == 1), "")
    numbers: list[int] = []
    for number, payload in parts:
        if number in (3, 8):  # i, ints
            numbers += _signed(payload, where)
        elif number == 4:
            node.texts[name] = _text(payload)
        elif number == 5:
            node.numbers[name] = _tensor(payload, where)[1] or ()
        elif number == 6:
            node.graphs[name] = _graph(payload, where, depth + 1)
    if numbers:
        node.numbers[name] = tuple(numbers[:MAX_SMALL])


def _signed(payload: Any, where: str) -> list[int]:
    """Read signed 64-bit integers: one, or several packed."""
    found = [payload] if isinstance(payload, int) else []
    at = 0
    while not isinstance(payload, int) and at < len(payload) and len(found) <= MAX_SMALL:
        value, at = read_varint(payload, at, where)
        found.append(value)
    return [value - 2**64 if value >= 2**63 else value for value in found]


def _tensor(message: memoryview, where: str) -> tuple[str, Integers | None]:
    """Return a tensor's name, and its numbers if they are few and integers."""
    name, kind, raw = "", 0, b""
    numbers: list[int] = []
    for number, payload in _parts(message, where):
        if number == 8:
            name = _text(payload)
        elif number == 2:
            kind = payload
        elif number in (_INT32_DATA, _INT64_DATA) and len(numbers) <= MAX_SMALL:
            numbers += _signed(payload, where)
        elif number == _RAW_DATA and len(payload) <= 8 * MAX_SMALL:
            raw = bytes(payload)
    form = _INTEGERS.get(kind)
    if form is None:
        return name, None
    if raw and len(raw) % struct.calcsize(form) == 0:
        numbers = [int(value) for (value,) in struct.iter_unpack(form, raw)]
    return name, tuple(numbers) if 0 < len(numbers) <= MAX_SMALL else None
