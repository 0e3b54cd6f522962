"""Snapshots: a stream's state as bytes, and back.

Layout: magic, format (1 byte), header length (4 bytes, little-endian), header (JSON), the arrays' buffers in
C order, and a BLAKE2b-128 of everything before it. No pickle: only names, dtypes, shapes and numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .errors import SnapshotError
from .pipeline import identity
from .pipeline.identity import Part
from .spec import DTYPES, MAX_RANK, Array

MAGIC = b"RNLS"
FORMAT = 1
MAX_SNAPSHOT = 256 * 2**20  # bytes: a stream's state is small; anything larger is not a snapshot
MAX_HEADER = 2**18  # bytes of JSON: about 4,000 arrays, read in milliseconds
MAX_SEQ = 2**63 - 1  # the largest number that the wire format holds
_DIGEST = 16
_HEAD = struct.Struct("<4sBI")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of one stream between two calls."""

    pipeline: str  # fingerprint of the stream's pipeline
    seq: int
    ended: bool
    stages: tuple[tuple[str, Mapping[str, Array]], ...]  # (stage name, its state's arrays), in order
    parts: tuple[Part, ...] = ()  # what the fingerprint was made from, to describe a difference


def encode(snapshot: Snapshot) -> bytes:
    """Return the snapshot as bytes: equal states give equal bytes.

    Raises SnapshotError for a state that `decode` would refuse.
    """
    buffers: list[bytes] = []
    stages = []
    for name, arrays in snapshot.stages:
        entries = []
        for key, array in sorted(arrays.items()):
            if array.dtype.name not in DTYPES or array.ndim > MAX_RANK:
                raise SnapshotError(
                    f"stage {name!r}: state {key!r} is {array.dtype} of rank {array.ndim}; a snapshot holds "
                    f"{', '.join(DTYPES)} of rank {MAX_RANK} at most"
                )
            entries.append([key, array.dtype.name, list(array.shape)])
            buffers.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        stages.append([name, entries])
    header = {
        "pipeline": snapshot.pipeline,
        "seq": snapshot.seq,
        "ended": snapshot.ended,
        "stages": stages,
        "parts": [list(part) for part in snapshot.parts],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    body = b"".join((_HEAD.pack(MAGIC, FORMAT, len(text)), text, *buffers))
    if len(text) > MAX_HEADER:
        raise SnapshotError(f"the names of the stream's state take {len(text)} bytes; at most {MAX_HEADER}")
    if len(body) + _DIGEST > MAX_SNAPSHOT:
        raise SnapshotError(f"the stream's state takes {len(body)} bytes; a snapshot holds {MAX_SNAPSHOT}")
    return body + hashlib.blake2b(body, digest_size=_DIGEST).digest()


class Claim(NamedTuple):
    """The contents that a snapshot's header claims, read before any array is made."""

    pipeline: str  # fingerprint
    parts: tuple[Part, ...]
    stages: tuple[tuple[str, tuple[str, ...]], ...]  # (stage name, names of its states)


def decode(
    blob: bytes,
    admit: Callable[[Claim], None] | None = None,
    checked: bool = False,
    most_header: int = MAX_HEADER,
) -> Snapshot:
    """Read a snapshot; the arrays are read-only. Raises SnapshotError.

    `admit` is called before any array is made, and may raise, so that a foreign snapshot costs almost
    nothing. `checked`: the caller has verified the checksum. `most_header`: a longer header, in bytes, cannot
    belong to the caller's pipeline and is not read.

    The checksum detects damage, not an attack: a client that may restore may also have written the bytes. The
    result is well-formed. Whether it is a valid state is for the stage to check, in `Stage.load`.
    """
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise SnapshotError(f"a snapshot is bytes, not {type(blob).__name__}")
    data = memoryview(bytes(blob))
    if not _HEAD.size + _DIGEST <= len(data) <= MAX_SNAPSHOT or data[:4] != MAGIC:
        raise SnapshotError(f"these {len(data)} bytes are not a snapshot of a Runnel stream")
    _, version, length = _HEAD.unpack_from(data)
    if version != FORMAT:
        raise SnapshotError(f"snapshot format {version}; this version of runnel reads format {FORMAT}")
    if length > MAX_HEADER:
        raise SnapshotError(f"the snapshot's header has {length} bytes; at most {MAX_HEADER}")
    if length > most_header:
        raise SnapshotError(
            f"the snapshot is of another pipeline: its header has {length} bytes, at most {most_header} here"
        )
    body = data[:-_DIGEST]
    if not checked:
        check = Checksum()
        check.update(data)
        check.end()
    at = _HEAD.size + length
    try:
        header = json.loads(bytes(body[_HEAD.size : at]))
        if admit is not None:
            admit(_claim(header))
        return _parse(header, body, at)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise SnapshotError(f"the snapshot's header makes no sense: {error}") from None


class Checksum:
    """Check the checksum at the end of a snapshot whose bytes come in pieces."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=_DIGEST)
        self._last = b""  # the last bytes so far, which may be the checksum

    def update(self, piece: bytes | memoryview) -> None:
        """Add the next bytes, in order."""
        if len(piece) < _DIGEST:
            piece, self._last = self._last + bytes(piece), b""
        self._hash.update(self._last)
        self._hash.update(piece[: max(0, len(piece) - _DIGEST)])
        self._last = bytes(piece[max(0, len(piece) - _DIGEST) :])

    def end(self) -> None:
        """Raise SnapshotError unless the bytes ended with their checksum."""
        if self._hash.digest() != self._last:
            raise SnapshotError("the snapshot is damaged: its checksum does not match")


def _claim(header: Any) -> Claim:
    stages = tuple(
        (str(name), tuple(str(key) for key, _, _ in entries)) for name, entries in header["stages"]
    )
    return Claim(str(header["pipeline"]), identity.read(header.get("parts", [])), stages)


def _parse(header: Any, body: memoryview, at: int) -> Snapshot:
    stages = []
    for name, entries in header["stages"]:
        arrays: dict[str, Array] = {}
        for key, dtype, shape in entries:
            if dtype not in DTYPES or len(shape) > MAX_RANK or any(not 0 <= d <= MAX_SNAPSHOT for d in shape):
                raise ValueError(f"array {key!r} is {dtype} {shape}")
            kind = np.dtype(dtype).newbyteorder("<")
            count = math.prod(shape)
            if at + count * kind.itemsize > len(body):
                raise ValueError(f"array {key!r} runs past the end")
            if dtype == "bool" and (np.frombuffer(body, np.uint8, count, at) > 1).any():
                raise ValueError(f"array {key!r} is bool, and holds what is neither 0 nor 1")
            # A copy: inside the body an array may be unaligned, which some machines cannot read.
            end = at + count * kind.itemsize
            array: Array = np.ndarray(tuple(shape), kind, bytes(body[at:end]))
            if not kind.isnative:
                array = array.astype(np.dtype(dtype))
                array.flags.writeable = False
            arrays[str(key)] = array
            at = end
        stages.append((str(name), arrays))
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes too many")
    seq, ended = header["seq"], header["ended"]
    if type(seq) is not int or not 0 <= seq <= MAX_SEQ or type(ended) is not bool:
        raise ValueError(f"seq is {seq!r:.80}, ended is {ended!r:.80}")
    parts = identity.read(header.get("parts", []))  # absent in earlier versions
    return Snapshot(str(header["pipeline"]), seq, ended, tuple(stages), parts)


def fit_names(name: str, keys: Sequence[str], like: Mapping[str, Array]) -> None:
    """Raise SnapshotError unless `keys` are the names of a stage's state `like`."""
    if sorted(keys) != sorted(like):
        held = f"{sorted(keys)}" if len(keys) <= 64 else f"{len(keys)} arrays"
        raise SnapshotError(f"stage {name!r}: the state holds {held}, expected {sorted(like)}")


def fit(name: str, arrays: Mapping[str, Array], like: Mapping[str, Array]) -> None:
    """Raise SnapshotError unless `arrays` have the names, dtypes and ranks of a stage's state `like`."""
    fit_names(name, tuple(arrays), like)
    for key, array in arrays.items():
        if array.dtype != like[key].dtype or array.ndim != like[key].ndim:
            hint = ""
            if array.dtype != like[key].dtype:
                hint = (
                    ". Was it computed from a Python number and an array of another dtype? Say the dtype, as "
                    f"in np.asarray(value, np.{like[key].dtype.name})"
                )
            raise SnapshotError(
                f"stage {name!r}: state {key!r} is {array.dtype} of rank {array.ndim}, "
                f"expected {like[key].dtype} of rank {like[key].ndim}{hint}"
            )
