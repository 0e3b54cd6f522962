"""Encode and decode messages of wire version 1. Pure and bounded.

A message is ``[header][tensor]*``: a msgpack map, then one buffer for each tensor that the header describes,
in that order, little-endian and in C order. Names and datatypes are those of the Open Inference Protocol;
``sequence_*`` are those of Triton's sequence extension.

Several messages may travel as one, a *bundle*: ``[header][tensors]``. Its header is a msgpack array of their
headers, and its second frame holds all their tensors, one after the other. A bundle costs ZeroMQ, and both
ends, little more than one message.

Requests are decoded strictly: an unknown field is refused, because ignoring a misspelt ``sequence_end`` would
change what a stream does. Replies are decoded leniently: a daemon newer than its client may send more. A
change of a known field's meaning changes ``v``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from ..errors import TooLargeError, WireError

VERSION: Final = 1

# Bounds of a request. All of it is in memory before it is checked, so all of it is bounded.
MAX_HEADER: Final = 16 * 1024  # bytes: enough for 64 tensors with long names; keeps nesting shallow
MAX_TENSORS: Final = 64  # frames after the header: a pipeline has a few inputs
MAX_RANK: Final = 9  # time and the eight axes that a model's tensor may have
MAX_TENSOR_BYTES: Final = 16 * 2**20  # 87 s of 48 kHz float32: a backlog, not an archive
MAX_MESSAGE_BYTES: Final = 2 * MAX_TENSOR_BYTES  # header and tensors together
MAX_BUNDLE: Final = 256  # messages in a bundle: more would gain nothing
MAX_BUNDLE_HEADER: Final = 512 * 1024  # bytes of all headers of a bundle
MAX_ID: Final = 256  # characters of a correlation id or a stream's name: stored, and repeated in replies
MAX_STEPS: Final = 1024  # for a feed without input: as in `runnel.stage`
MAX_LABELS: Final = 4096  # sent for one tensor
MAX_LABEL_CHARACTERS: Final = 64 * 1024  # in one tensor's labels: hello stays a small message
MAX_NAME: Final = 256  # characters of a tensor's name
MAX_COUNT: Final = 2**63 - 1  # epoch, seq, a dimension: a signed 64-bit integer
MAX_FAULT: Final = 300  # characters of msgspec's text, sent once per message of a bundle

ITEM_BYTES: Final = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8,
    "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8, "FP16": 2, "FP32": 4, "FP64": 8,
}  # fmt: skip
"""Datatypes of version 1 and the bytes of one element. BYTES is reserved: no input takes strings yet."""

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"
]
Op = Literal[
    "hello", "stats", "open", "feed", "flush", "reset", "close", "resume", "snapshot", "restore"
]  # fmt: skip

Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Id = Annotated[str, Meta(max_length=MAX_ID)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]


class TensorInfo(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One tensor of a message. Its time axis is the first: shape (T, ...)."""

    name: Name
    datatype: Datatype
    shape: Annotated[list[Count], Meta(max_length=MAX_RANK)]


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A client's request. A count of 0 and an empty name mean: not stated."""

    v: int
    op: Op
    id: Id = ""  # correlation id: repeated in the reply
    sequence_id: Id = ""  # the stream
    sequence_start: bool = False  # a feed that opens the stream first
    sequence_end: bool = False  # a feed that flushes and closes the stream afterwards
    epoch: Count = 0  # which holder of the stream sends this
    new_epoch: Count = 0  # for a resume: the epoch that it begins
    seq: Count = 0  # of this feed, flush, reset or close; the first one after open is 1
    steps: Annotated[int, Meta(ge=0, le=MAX_STEPS)] = 0  # for a feed without inputs
    inputs: Annotated[list[TensorInfo], Meta(max_length=MAX_TENSORS)] = []


class ErrorInfo(Struct, frozen=True):
    """An error of `runnel.errors`: its class's code, its text, whether a retry can help."""

    code: str
    message: str
    retry: bool = False


class TensorMetadata(Struct, frozen=True, omit_defaults=True):
    """One input or output of a pipeline: like TensorInfo, with -1 for the time axis, which is free."""

    name: str
    datatype: Datatype
    shape: list[int]
    labels: list[str] = []  # the meanings of its numbers 0, 1, 2 ...; empty: none, or too many to send


class Limits(Struct, frozen=True):
    """A daemon's limits; a client within these is never refused for size.

    A limit named `user_` is what each user can always count on; often there is room for more.
    """

    streams: int
    pending_per_peer: int
    user_streams: int = 0
    user_pending: int = 0  # queued requests
    user_pending_bytes: int = 0  # of their tensors
    kept_replies: int = 0  # per stream, for repeats
    idle_seconds: float = 0.0  # a stream without a request for longer is closed; 0: never
    pending_bytes: int = MAX_MESSAGE_BYTES  # for one client's requests; the last one may exceed it
    reply_bytes: int = 0  # for one reply's tensors; 0: not stated
    header_bytes: int = MAX_HEADER
    tensors: int = MAX_TENSORS
    tensor_bytes: int = MAX_TENSOR_BYTES
    message_bytes: int = MAX_MESSAGE_BYTES


class Description(Struct, frozen=True, kw_only=True):
    """What a daemon serves: the answer to hello. Rates are in Hz; 0 if unknown."""

    version: str  # of runnel
    boot_id: str  # new at each start of the worker, which loses its streams
    worker: int = 0  # index of the worker that answers
    workers: list[str] = []  # all addresses; stream `name` is at workers[crc32(name) % len(workers)]
    pipeline: str = ""  # fingerprint of the model, the stages and their options
    stages: list[str] = []
    state_bytes: int = 0  # of one stream, in its models
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    input_rate: float
    output_rate: float
    latency: int  # input time steps
    limits: Limits


class Reply(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The daemon's answer: outputs or an error, and the stream's epoch and seq.

    A reply without an id, and without a request, is a notice: the daemon closed the stream that it names.
    """

    v: int
    op: str = ""  # the request's; empty if it could not be read
    id: str = ""
    sequence_id: str = ""
    epoch: int = 0
    applied_seq: int = 0  # the last seq applied: the next one is one more
    outputs: list[TensorInfo] = []
    error: ErrorInfo | None = None
    server: Description | None = None
    stats: dict[str, Any] | None = None


class _Envelope(Struct):
    """The part of an invalid message that is needed to answer it; unknown fields are skipped."""

    v: Any = None
    id: Any = ""


_encode = msgspec.msgpack.Encoder().encode
_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)
_envelopes = msgspec.msgpack.Decoder(_Envelope)
# Lengths are checked before contents.
_request_lists = msgspec.msgpack.Decoder(Annotated[list[Request], Meta(min_length=1, max_length=MAX_BUNDLE)])
_reply_lists = msgspec.msgpack.Decoder(Annotated[list[Reply], Meta(min_length=1, max_length=MAX_BUNDLE)])
_envelope_lists = msgspec.msgpack.Decoder(Annotated[list[_Envelope], Meta(max_length=MAX_BUNDLE)])

# Seen: msgspec raises UnicodeDecodeError for a string that is not UTF-8, and RecursionError for nesting.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_H = TypeVar("_H", Request, Reply)


def encode_request(header: Request, buffers: Sequence[bytes] = ()) -> list[bytes]:
    """Encode a request into frames. Raises as `decode_request` does, so that a fault shows at its origin."""
    frames = [_encode(header), *buffers]
    _check_size(frames)
    _check_tensors(header.inputs, buffers, MAX_TENSOR_BYTES)
    return frames


def decode_request(frames: Sequence[bytes]) -> tuple[Request, Sequence[bytes]]:
    """Decode a request into its header and its tensors' buffers.

    Accepts any bytes: raises WireError for anything but a message of version 1, its subclass TooLargeError
    for one that exceeds a bound of size, and nothing else.
    """
    _check_size(frames)
    header = _decode(_requests, frames[0])
    _check_tensors(header.inputs, frames[1:], MAX_TENSOR_BYTES)
    return header, frames[1:]


def encode_reply(header: Reply, buffers: Sequence[bytes] = ()) -> list[bytes]:
    """Encode a reply into frames. Its size is not bounded here: it follows from the request's."""
    return [_encode(header), *buffers]


def decode_reply(frames: Sequence[bytes]) -> tuple[Reply, Sequence[bytes]]:
    """Decode a reply into its header and its tensors' buffers. Raises WireError."""
    if not frames:
        raise WireError("a reply has at least one frame, the header; this one has none")
    header = _decode(_replies, frames[0])
    _check_tensors(header.outputs, frames[1:], MAX_COUNT)
    return header, frames[1:]


def salvage_ids(frames: Sequence[bytes]) -> list[str]:
    """Find the correlation ids in an invalid message, so that errors reach their requests.

    Returns at least one; '' if there is none, as in a message that exceeds a bound.
    """
    if bundled(frames):
        envelopes: Sequence[_Envelope | None] = _peek_all(frames[0])
    else:
        envelopes = [_peek(frames[0])] if frames else []
    ids = (envelope.id if envelope is not None else "" for envelope in envelopes)
    return [id if isinstance(id, str) and len(id) <= MAX_ID else "" for id in ids] or [""]


# Bundles.


def bundle(messages: Sequence[Sequence[bytes]]) -> list[bytes]:
    """Join up to `MAX_BUNDLE` messages into one bundle; return its frames."""
    count = len(messages)
    head = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return [
        head + b"".join([frames[0] for frames in messages]),
        b"".join([frame for frames in messages for frame in frames[1:]]),
    ]


def bundles(
    messages: Sequence[list[bytes]], most: int, always: bool = False
) -> Iterator[tuple[int, list[bytes]]]:
    """Bundle the messages, in order; yield for each bundle its number of messages and its frames.

    A bundle has at most `most` bytes. A single message is not bundled, unless `always` is set and it has at
    most `most` bytes.
    """
    if len(messages) == 1:  # the usual case
        yield 1, bundle(messages) if always and sum(map(len, messages[0])) <= most else messages[0]
        return
    part: list[list[bytes]] = []
    nbytes = 0
    for frames in messages:
        size = sum(map(len, frames))
        if part and (len(part) == MAX_BUNDLE or nbytes + size > most):
            yield len(part), bundle(part) if len(part) > 1 or (always and nbytes <= most) else part[0]
            part, nbytes = [], 0
        part.append(frames)
        nbytes += size
    if part:
        yield len(part), bundle(part) if len(part) > 1 or (always and nbytes <= most) else part[0]


def bundled(frames: Sequence[bytes]) -> bool:
    """Whether these are the frames of a bundle: the header is a msgpack array."""
    if not frames or not frames[0]:
        return False
    first = frames[0][0]
    return 0x90 <= first <= 0x9F or first == 0xDC or first == 0xDD


def decode_requests(frames: Sequence[bytes]) -> list[tuple[Request, Sequence[bytes]]]:
    """Decode the requests of a bundle, at least one. All or none: raises as `decode_request` does."""
    _check_size(frames, MAX_BUNDLE_HEADER)
    headers = _decode_all(_request_lists, frames)
    return _split(headers, [header.inputs for header in headers], frames[1], MAX_TENSOR_BYTES)


def decode_replies(frames: Sequence[bytes]) -> list[tuple[Reply, Sequence[bytes]]]:
    """Decode the replies of a bundle, at least one. Raises WireError."""
    headers = _decode_all(_reply_lists, frames)
    return _split(headers, [header.outputs for header in headers], frames[1], MAX_COUNT)


def _decode_all(decoder: msgspec.msgpack.Decoder[list[_H]], frames: Sequence[bytes]) -> list[_H]:
    if len(frames) != 2:
        raise WireError(f"{len(frames)} frames; a bundle has two: the headers, and all tensors")
    try:
        headers = decoder.decode(frames[0])
    except _UNREADABLE as error:
        _check_versions(_peek_all(frames[0]))
        raise WireError(
            f"the header is not a msgpack array of maps of version {VERSION}: {_fault(error)}"
        ) from None
    _check_versions(headers)
    return headers


def _split(
    headers: list[_H], tensors: Sequence[Sequence[TensorInfo]], body: bytes, most: int
) -> list[tuple[_H, Sequence[bytes]]]:
    """Pair each header of a bundle with its own tensors' buffers."""
    messages: list[tuple[_H, Sequence[bytes]]] = []
    at = 0
    for header, infos in zip(headers, tensors, strict=True):
        buffers = []
        for info in infos:
            end = at + prod(info.shape) * ITEM_BYTES[info.datatype]
            buffers.append(body[at:end])  # too short if the shape is wrong: checked below
            at = end
        _check_tensors(infos, buffers, most)
        messages.append((header, buffers))
    if at != len(body):
        raise WireError(f"the bundle's tensors take {at} bytes, but their frame has {len(body)}")
    return messages


def _peek_all(frame: bytes) -> Sequence[_Envelope]:
    if len(frame) > MAX_BUNDLE_HEADER:
        return []
    try:
        envelopes: list[_Envelope] = _envelope_lists.decode(frame)
    except _UNREADABLE:
        return []
    return envelopes


def _decode(decoder: msgspec.msgpack.Decoder[_H], frame: bytes) -> _H:
    try:
        header = decoder.decode(frame)
    except _UNREADABLE as error:
        envelope = _peek(frame)
        _check_versions([envelope] if envelope is not None else [])
        hint = " (an empty frame: a DEALER socket is expected, not a REQ)" if not len(frame) else ""
        raise WireError(
            f"the header is not a msgpack map of version {VERSION}: {_fault(error)}{hint}"
        ) from None
    if header.v != VERSION:
        _check_versions([header])
    return header


def _peek(frame: bytes) -> _Envelope | None:
    if len(frame) > MAX_HEADER:
        return None
    try:
        return _envelopes.decode(frame)
    except _UNREADABLE:
        return None


def _fault(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= MAX_FAULT else f"{text[:MAX_FAULT]}…"


def _check_versions(headers: Sequence[_Envelope] | Sequence[Request] | Sequence[Reply]) -> None:
    for header in headers:
        if header.v != VERSION and type(header.v) is int:
            raise WireError(f"the header says version {header.v:.6g}; this end speaks version {VERSION}")


def _check_size(frames: Sequence[bytes], most_header: int = MAX_HEADER) -> None:
    if not 1 <= len(frames) <= 1 + MAX_TENSORS:
        raise WireError(f"{len(frames)} frames; a message has a header and at most {MAX_TENSORS} tensors")
    if len(frames[0]) > most_header:
        raise TooLargeError(f"the header has {len(frames[0])} bytes; at most {most_header}")
    total = sum(map(len, frames))
    if total > MAX_MESSAGE_BYTES:
        raise TooLargeError(
            f"the message has {total} bytes; at most {MAX_MESSAGE_BYTES}: send smaller chunks"
        )


def _check_tensors(infos: Sequence[TensorInfo], buffers: Sequence[bytes], most: int) -> None:
    if len(infos) != len(buffers):
        raise WireError(f"the header describes {len(infos)} tensors, but {len(buffers)} frames follow it")
    if len(infos) > 1 and len({info.name for info in infos}) != len(infos):
        names = [info.name for info in infos]
        raise WireError(f"a tensor is named twice: {next(n for n in names if names.count(n) > 1)!r}")
    for info, buffer in zip(infos, buffers, strict=True):
        if 0 < prod(info.shape) * ITEM_BYTES[info.datatype] == len(buffer) <= most:
            continue  # the usual case; the rest finds the fault
        # An empty array with a huge axis, (0, 2**62), has no bytes, and yet no library can hold it. So bound
        # the product of the other axes.
        span = ITEM_BYTES[info.datatype]
        empty = False
        for length in info.shape:
            span *= length or 1
            empty = empty or not length
        if span > most:
            raise TooLargeError(
                f"tensor {info.name!r} of shape {info.shape} is too large: "
                f"at most {most} bytes a tensor; send smaller chunks"
            )
        size = 0 if empty else span
        if len(buffer) != size:
            raise WireError(
                f"tensor {info.name!r}: {info.datatype} of shape {info.shape} takes {size} bytes, "
                f"but its frame has {len(buffer)}"
            )
