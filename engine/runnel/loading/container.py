"""The model file as bytes: its description, and the hash that its certificate covers.

An ONNX file is a protobuf message. Only its outermost fields are read here, so that a device can check a file
without the onnx package. The hash covers every byte of the message except the `runnel` entry, and that
entry's document except the hash in it: one flipped bit anywhere is detected. (Protobuf wire format:
https://protobuf.dev/programming-guides/encoding/; field numbers: onnx.proto.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import regular
from ..errors import ModelError

KEY = "runnel"  # the metadata entry with the document
MAX_FILE = 2**31 - 1  # bytes: protobuf's own limit for one message
MAX_DOCUMENT = 16 * 2**20  # bytes of JSON

_METADATA_PROPS = 14  # ModelProto.metadata_props: StringStringEntryProto {1: key, 2: value}
# ModelProto's fields that do not affect the computation: producer_name, producer_version, domain,
# model_version, doc_string, metadata_props.
_ABOUT = (2, 3, 4, 5, 6, _METADATA_PROPS)
MAX_DEPTH = 100  # nested messages; the same limit as protobuf's own parsers

_Kind = str
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _FUNCTION, _SPARSE, _TENSOR = (
    "model", "graph", "node", "attribute", "function", "sparse tensor", "tensor",
)  # fmt: skip
# The fields of a message that hold a tensor, or a message that may. Training graphs are not run.
_INNER: Mapping[_Kind, Mapping[int, _Kind]] = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
}
_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14  # of a TensorProto; location 0: in this file
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read(path: str | Path) -> bytes:
    """Return the file's bytes; ModelError if it is no readable model file."""
    data = regular.read(path, MAX_FILE, "the model", ModelError)
    if not data:
        raise ModelError(f"{path}: the file is empty")
    return data


def document(data: bytes, where: str) -> dict[str, Any] | None:
    """Return the model's own description; None if the file has none."""
    for field, wire, start, end in fields(data, where):
        entry = _entry(data[start:end], where) if (field, wire) == (_METADATA_PROPS, _BYTES) else None
        if entry is not None:
            try:
                found = json.loads(entry)
            except (ValueError, RecursionError) as error:
                raise ModelError(
                    f"{where}: its description is not JSON ({error}): the file is damaged"
                ) from None
            if not isinstance(found, dict):
                raise ModelError(f"{where}: its description is not a JSON object: the file is damaged")
            return found
    return None


def refuse_external(data: bytes, where: str) -> None:
    """Raise ModelError if any tensor's numbers are in another file.

    The hash does not cover that file, and the model chooses its path.
    """
    for found in _tensors(memoryview(data), _MODEL, where, 0):
        name, location, external = "", "", False
        for field, wire, start, end in fields(found, where):
            if (field, wire) == (_NAME, _BYTES):
                name = bytes(found[start:end]).decode(errors="replace")
            elif (field, wire) == (_EXTERNAL_DATA, _BYTES):
                entry = found[start:end]
                parts = {f: bytes(entry[s:e]) for f, w, s, e in fields(entry, where) if w == _BYTES}
                external = True
                if parts.get(1) == b"location":
                    location = parts.get(2, b"").decode(errors="replace")
            elif (field, wire) == (_DATA_LOCATION, _VARINT):
                external = external or any(found[start:end])
        if external:
            raise ModelError(
                f"{where}: the numbers of tensor {name!r:.80} are in another file, {location!r:.80}, which "
                "no certificate covers: save the model in one file (onnx.load, then onnx.save without "
                "save_as_external_data; torch.onnx.export with external_data=False)"
            )


def _tensors(part: memoryview, kind: _Kind, where: str, depth: int) -> Iterator[memoryview]:
    """Yield each TensorProto in a message, including those of sub-graphs."""
    if depth > MAX_DEPTH:
        raise ModelError(f"{where}: graphs within graphs, more than {MAX_DEPTH} messages deep")
    for field, wire, start, end in fields(part, where):
        inner = _INNER[kind].get(field) if wire == _BYTES else None
        if inner == _TENSOR:
            yield part[start:end]
        elif inner is not None:
            yield from _tensors(part[start:end], inner, where, depth + 1)


def digest(data: bytes, description: Mapping[str, Any], where: str) -> str:
    """Return the SHA-256 of the file without its description, then of the description: certificate.hash."""
    found = hashlib.sha256()
    for field, wire, start, end in fields(data, where):
        if (field, wire) == (_METADATA_PROPS, _BYTES) and _entry(data[start:end], where) is not None:
            continue
        found.update(f"{field}:{wire}:{end - start};".encode())
        found.update(memoryview(data)[start:end])
    unsigned = dict(description)
    if isinstance(unsigned.get("certificate"), Mapping):
        unsigned["certificate"] = {k: v for k, v in unsigned["certificate"].items() if k != "hash"}
    found.update(json.dumps(unsigned, sort_keys=True, separators=(",", ":")).encode())
    return "sha256:" + found.hexdigest()


def content(data: bytes, description: Mapping[str, Any] | None, where: str) -> str:
    """Return a digest of what the model computes.

    It covers the graph, and the inputs and states of the description. The file's author, date and versions
    are excluded, so that a new export of the same weights has the same content.
    """
    found = hashlib.sha256()
    for field, wire, start, end in fields(data, where):
        if field not in _ABOUT:
            found.update(f"{field}:{wire}:{end - start};".encode())
            found.update(memoryview(data)[start:end])
    computing = {k: v for k, v in (description or {}).items() if k not in ("certificate", "graph")}
    found.update(json.dumps(computing, sort_keys=True, separators=(",", ":")).encode())
    return found.hexdigest()[:32]


def seal(graph: bytes, description: Mapping[str, Any]) -> bytes:
    """Return the model file: `graph` and `description`, with its hash.

    `graph` is an ONNX file without a description. `description["certificate"]`, if present, gets the key
    ``hash``.
    """
    final = dict(description)
    if final.get("certificate") is not None:
        final["certificate"] = {**final["certificate"], "hash": digest(graph, description, "the model")}
    text = json.dumps(final, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > MAX_DOCUMENT:
        raise ModelError(f"the model's description takes {len(text)} bytes; at most {MAX_DOCUMENT}")
    entry = _tagged(1, KEY.encode()) + _tagged(2, text)
    return graph + _tagged(_METADATA_PROPS, entry)  # appending is valid, because the field is repeated


def _tagged(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _entry(payload: bytes, where: str) -> bytes | None:
    """Return the value of a metadata entry if its key is `KEY`; else None."""
    parts = {f: payload[s:e] for f, w, s, e in fields(payload, where) if w == _BYTES}
    return parts.get(2, b"") if parts.get(1) == KEY.encode() else None


def fields(data: bytes | memoryview, where: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, start, end of the payload) of a message's outermost fields."""
    at, size = 0, len(data)
    while at < size:
        tag, at = read_varint(data, at, where)
        field, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            length, at = read_varint(data, at, where)
            end = at + length
        elif wire == _VARINT:
            _, end = read_varint(data, at, where)
        elif wire in (_FIXED64, _FIXED32):
            end = at + (8 if wire == _FIXED64 else 4)
        else:
            raise ModelError(f"{where}: not an ONNX file (wire type {wire} at byte {at})")
        if field == 0 or end > size:
            raise ModelError(f"{where}: not an ONNX file, or cut off at byte {size}")
        yield field, wire, at, end
        at = end


def read_varint(data: bytes | memoryview, at: int, where: str) -> tuple[int, int]:
    """Return the integer at `at` and the position after it. Raises ModelError."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ModelError(f"{where}: not an ONNX file, or cut off at byte {at}")
