"""The wire: it reads what it writes, and refuses everything else with a typed error."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runnel.errors import ChunkError, RunnelError, TooLargeError, WireError
from runnel.spec import DTYPES
from runnel.wire import messages, tensors
from runnel.wire.messages import Request, TensorInfo

encode = msgspec.msgpack.encode

arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
chunks = st.dictionaries(st.text(min_size=1, max_size=8), arrays, max_size=4)
counts = st.integers(0, messages.MAX_COUNT)


@given(chunks, st.sampled_from(["open", "feed", "close"]), st.text(max_size=9), st.booleans(), counts, counts)
@settings(deadline=None)
def test_a_request_survives_a_round_trip(
    chunk: dict[str, Any], op: Any, id: str, start: bool, seq: int, epoch: int
) -> None:
    infos, buffers = tensors.pack(chunk)
    header = Request(
        v=1, op=op, id=id, sequence_id=id, sequence_start=start, seq=seq, epoch=epoch, inputs=infos
    )
    read, read_buffers = messages.decode_request(messages.encode_request(header, buffers))
    assert read == header
    back = tensors.unpack(read.inputs, read_buffers)
    assert list(back) == list(chunk)
    for name, array in chunk.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()
        assert not back[name].flags.writeable


def test_the_bytes_are_little_endian_and_in_c_order() -> None:
    array = np.arange(6, dtype=">i2").reshape(2, 3).T
    [info], [buffer] = tensors.pack({"x": array})
    assert (info.datatype, info.shape) == ("INT16", [3, 2])
    assert buffer == bytes([0, 0, 3, 0, 1, 0, 4, 0, 2, 0, 5, 0])


def test_every_dtype_of_a_pipeline_has_a_datatype_of_its_size() -> None:
    assert set(tensors.DATATYPES) == set(DTYPES)
    for name, datatype in tensors.DATATYPES.items():
        assert messages.ITEM_BYTES[datatype] == np.dtype(name).itemsize


@pytest.mark.parametrize("value", [[1.0], "text", np.zeros(3, "complex64"), np.array(["a"]), None])
def test_only_arrays_of_known_dtypes_are_packed(value: Any) -> None:
    with pytest.raises(ChunkError, match="'x' is"):
        tensors.pack({"x": value})


def test_a_bool_is_0_or_1() -> None:
    info = TensorInfo("b", "BOOL", [3])
    assert tensors.unpack([info], [b"\x00\x01\x00"])["b"].tolist() == [False, True, False]
    with pytest.raises(ChunkError, match="holds 2"):
        tensors.unpack([info], [b"\x00\x02\x00"])


# Refused messages.

GOOD = {
    "v": 1,
    "op": "feed",
    "id": "7",
    "sequence_id": "a",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
}
BODY = bytes(8)
# The rest of such an error is msgspec's, whose wording changes from version to version.
NO_MAP = r"the header is not a msgpack map of version 1: \S"


def tensor(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "inputs": [{**GOOD["inputs"][0], **changes}]}  # type: ignore[index]


def test_the_base_of_the_refused_messages_is_valid() -> None:
    messages.decode_request([encode(GOOD), BODY])


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "0 frames"),
        ([b""], "DEALER"),
        ([b"", encode(GOOD), BODY], "DEALER"),
        ([b"\xc1"], NO_MAP),
        ([encode([1, 2])], NO_MAP),
        ([encode(GOOD) + b"x", BODY], NO_MAP),
        ([encode(GOOD)[:-1], BODY], NO_MAP),
        ([encode({**GOOD, "v": 2, "new": 1}), BODY], "version 2; this end speaks version 1"),
        ([encode({**GOOD, "v": 0}), BODY], "version 0"),
        ([encode({"op": "hello"})], NO_MAP),
        ([encode({**GOOD, "op": "format"}), BODY], NO_MAP),
        ([encode({**GOOD, "sequence_edn": True}), BODY], NO_MAP),
        ([encode({**GOOD, "id": "x" * 257}), BODY], NO_MAP),
        ([encode({**GOOD, "sequence_id": 5}), BODY], NO_MAP),
        ([encode({**GOOD, "seq": -1}), BODY], NO_MAP),
        ([encode({**GOOD, "seq": True}), BODY], NO_MAP),
        ([encode({**GOOD, "epoch": 2**63}), BODY], NO_MAP),
        ([encode({**GOOD, "inputs": []}), BODY], "describes 0 tensors, but 1 frames"),
        ([encode(GOOD)], "describes 1 tensors, but 0 frames"),
        ([encode({**GOOD, "inputs": GOOD["inputs"] * 2}), BODY, BODY], "named twice"),  # type: ignore[operator]
        ([encode(tensor(name="")), BODY], NO_MAP),
        ([encode(tensor(datatype="BYTES")), BODY], NO_MAP),
        ([encode(tensor(datatype="float32")), BODY], NO_MAP),
        ([encode(tensor(shape=[2, -1])), BODY], NO_MAP),
        ([encode(tensor(shape=[1.5])), BODY], NO_MAP),
        ([encode(tensor(shape=[1] * 10)), BODY], NO_MAP),
        ([encode(tensor(shape=[1, 3])), BODY], "takes 12 bytes, but its frame has 8"),
        ([encode(tensor(shape=[0, 2])), BODY], "takes 0 bytes, but its frame has 8"),
        ([encode(tensor(parameters={})), BODY], NO_MAP),
        ([b"\x82\xa1v\x01\xa2op\xa2\xff\xfe"], NO_MAP),
        ([b"\x82\xa1v\x01\xa1x" + b"\x91" * 10_000], NO_MAP),
        ([encode(GOOD)] + [b""] * 65, "66 frames"),
    ],
)
def test_invalid_messages(frames: list[bytes], words: str) -> None:
    with pytest.raises(WireError, match=words) as caught:
        messages.decode_request(frames)
    assert type(caught.value) is WireError


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([bytes(messages.MAX_HEADER + 1)], "the header has 16385 bytes"),
        ([encode(tensor(shape=[2**40])), BODY], "too large"),
        ([encode(tensor(shape=[0, 2**62])), b""], "too large"),
        ([encode(tensor(shape=[2**62] * 9)), BODY], "too large"),
        ([encode(GOOD), bytes(messages.MAX_MESSAGE_BYTES)], "the message has"),
        (
            [
                encode(tensor(shape=[messages.MAX_TENSOR_BYTES // 4 + 1])),
                bytes(messages.MAX_TENSOR_BYTES + 4),
            ],
            "large",
        ),
    ],
)
def test_messages_beyond_a_bound(frames: list[bytes], words: str) -> None:
    with pytest.raises(TooLargeError, match=words) as caught:
        messages.decode_request(frames)
    assert len(caught.value.message) < 300


def test_the_largest_tensor_is_taken() -> None:
    header = encode(tensor(shape=[messages.MAX_TENSOR_BYTES // 4]))
    messages.decode_request([header, bytes(messages.MAX_TENSOR_BYTES)])


def test_an_invalid_message_raises_at_its_sender() -> None:
    header = Request(v=1, op="feed", sequence_id="a", inputs=[TensorInfo("x", "FP32", [2])])
    with pytest.raises(WireError, match="takes 8 bytes"):
        messages.encode_request(header, [bytes(4)])
    with pytest.raises(TooLargeError, match="smaller chunks"):
        messages.encode_request(header, [bytes(messages.MAX_MESSAGE_BYTES + 1)])


def test_unknown_reply_fields_are_skipped_but_another_version_is_refused() -> None:
    reply, _ = messages.decode_reply([encode({"v": 1, "id": "7", "durable_seq": 4})])
    assert reply.id == "7"
    with pytest.raises(WireError, match="version 2"):
        messages.decode_reply([encode({"v": 2, "id": "7"})])
    with pytest.raises(WireError):
        messages.decode_reply([])


@pytest.mark.parametrize(
    ("frames", "id"),
    [
        ([], ""),
        ([b"\xff"], ""),
        ([encode({"id": "7", "v": "one", "x": [1]})], "7"),
        ([encode({"id": 7})], ""),
        ([encode({"id": "7" * 300})], ""),
        ([encode({"id": "7", "pad": bytes(messages.MAX_HEADER)})], ""),
    ],
)
def test_the_id_of_an_invalid_message(frames: list[bytes], id: str) -> None:
    assert messages.salvage_ids(frames) == [id]


def read_all(frames: list[bytes]) -> None:
    """Read frames in every way that a peer's bytes are read; only errors of the tree may come out."""
    messages.salvage_ids(frames)
    for decode in (messages.decode_request, messages.decode_reply):
        with suppress(RunnelError):
            header, buffers = decode(frames)
            infos = header.inputs if isinstance(header, Request) else header.outputs
            tensors.unpack(infos, buffers)


@given(st.lists(st.binary(max_size=300), max_size=6))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_message_or_a_typed_error(frames: list[bytes]) -> None:
    read_all(frames)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*GOOD, "error", "outputs", "server", "zz"]), values, st.binary(max_size=16))
@settings(max_examples=500, deadline=None)
def test_any_value_of_any_field_is_accepted_or_refused(key: str, value: Any, body: bytes) -> None:
    read_all([encode({**GOOD, key: value}), body])


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6),
    st.integers(0, 200),
    st.booleans(),
)
@settings(max_examples=1000, deadline=None)
def test_a_mutated_message_is_a_message_or_a_typed_error(
    changes: list[tuple[int, int]], cut: int, drop: bool
) -> None:
    data = bytearray(encode(GOOD))
    for at, byte in changes:
        data[at % len(data)] = byte
    read_all([bytes(data[: cut or None]), *([] if drop else [BODY])])
