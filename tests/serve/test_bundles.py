"""Bundles without sockets: a bundle does what its messages would do one by one, or is refused whole."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.client.protocol import ClientProtocol, ClientStream, PendingRequest
from runnel.daemon.protocol import intake
from runnel.daemon.protocol import outgoing as outgoing_module
from runnel.daemon.protocol.server import Outgoing, ServerProtocol
from runnel.errors import RunnelError, TooLargeError, WireError
from runnel.wire import messages
from runnel.wire.messages import Request
from runnel.wire.tensors import pack

from .support import POISON, UNLUCKY, SpyEngine, code, rows, tally_engine
from .test_wire import chunks

encode = msgspec.msgpack.encode
HELLO = {"v": 1, "op": "hello", "id": "h"}
FEED = {"v": 1, "op": "feed", "id": "f", "sequence_id": "a"}
# The rest of such an error is msgspec's, whose wording changes from version to version.
NO_BUNDLE = r"the header is not a msgpack array of maps of version 1: \S"


def tensor(*shape: int, name: str = "x", datatype: str = "FP32") -> dict[str, Any]:
    return {**FEED, "inputs": [{"name": name, "datatype": datatype, "shape": list(shape)}]}


def message(op: Any, id: str, stream: str = "", *values: float, **fields: Any) -> list[bytes]:
    infos, buffers = pack({"x": rows(*values)}) if values else ([], [])
    return messages.encode_request(
        Request(v=1, op=op, id=id, sequence_id=stream, inputs=infos, **fields), buffers
    )


def replies_in(outgoing: Sequence[Outgoing]) -> list[tuple[messages.Reply, list[bytes]]]:
    """All replies, in order, of bundles and of others."""
    found: list[tuple[messages.Reply, list[bytes]]] = []
    for _, frames in outgoing:
        told = (
            messages.decode_replies(frames) if messages.bundled(frames) else [messages.decode_reply(frames)]
        )
        found += [(reply, list(buffers)) for reply, buffers in told]
    return found


# The wire.


@given(st.lists(st.tuples(chunks, st.text(max_size=9)), min_size=1, max_size=20))
def test_a_bundle_is_its_messages(made: list[tuple[dict[str, Any], str]]) -> None:
    parts = []
    for chunk, id in made:
        infos, buffers = pack(chunk)
        parts.append(messages.encode_request(Request(v=1, op="feed", id=id, inputs=infos), buffers))
    frames = messages.bundle(parts)
    assert len(frames) == 2
    assert messages.bundled(frames)
    assert not any(messages.bundled(single) for single in parts)
    assert msgspec.msgpack.decode(frames[0]) == [msgspec.msgpack.decode(single[0]) for single in parts]
    back = [(header, list(buffers)) for header, buffers in messages.decode_requests(frames)]
    assert back == [(header, list(buffers)) for header, buffers in map(messages.decode_request, parts)]
    assert messages.salvage_ids(frames) == [id for _, id in made]


@pytest.mark.parametrize("count", [1, 15, 16, 255, messages.MAX_BUNDLE])
def test_a_bundle_of_the_largest_count(count: int) -> None:
    frames = messages.bundle([message("hello", str(i)) for i in range(count)])
    assert [header.id for header, _ in messages.decode_requests(frames)] == [str(i) for i in range(count)]


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(0, 700), st.booleans())
def test_messages_go_in_as_few_bundles_as_possible(sizes: list[int], most: int, always: bool) -> None:
    parts = [[b"\x80", bytes([i]) * size] for i, size in enumerate(sizes)]
    rest = list(parts)
    took: list[int] = []
    for count, frames in messages.bundles(parts, most, always):
        part, rest = rest[:count], rest[count:]
        nbytes = sum(map(len, (frame for one in part for frame in one)))
        together = count > 1 or (always and nbytes <= most)
        assert frames == (messages.bundle(part) if together else part[0])
        assert count == 1 or nbytes <= most
        assert not rest or nbytes + sum(map(len, rest[0])) > most, "the next one had room"
        took.append(count)
    assert not rest
    assert sum(took) == len(parts)


def test_a_bundle_never_exceeds_its_bound() -> None:
    parts = [message("hello", str(i)) for i in range(2 * messages.MAX_BUNDLE + 1)]
    assert [count for count, _ in messages.bundles(parts, 2**30)] == [
        messages.MAX_BUNDLE,
        messages.MAX_BUNDLE,
        1,
    ]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([encode([])], "1 frames; a bundle has two"),
        ([encode([]), b""], NO_BUNDLE),
        ([encode([HELLO])], "1 frames; a bundle has two"),
        ([encode([HELLO]), b"", b""], "3 frames; a bundle has two"),
        ([encode([HELLO] * (messages.MAX_BUNDLE + 1)), b""], NO_BUNDLE),
        ([b"\xdd\xff\xff\xff\xff" + encode(HELLO), b""], NO_BUNDLE),
        ([b"\xdc\x00\x02" + encode(HELLO), b""], NO_BUNDLE),
        ([encode([HELLO]) + b"\x80", b""], NO_BUNDLE),
        ([encode([HELLO])[:-1], b""], NO_BUNDLE),
        ([encode([HELLO, 5]), b""], NO_BUNDLE),
        ([encode([[HELLO]]), b""], NO_BUNDLE),
        ([b"\x91" * 16_000, b""], NO_BUNDLE),
        ([b"\x91\x82\xa1v\x01\xa1x" + b"\x91" * 10_000, b""], NO_BUNDLE),
        ([b"\x91\x82\xa1v\x01\xa2op\xa2\xff\xfe", b""], NO_BUNDLE),
        ([encode([HELLO, {**HELLO, "v": 2}]), b""], "version 2"),
        ([encode([HELLO, {**HELLO, "v": 2, "new": 1}]), b""], "version 2"),
        ([encode([HELLO, {**HELLO, "sequence_edn": True}]), b""], NO_BUNDLE),
        ([encode([HELLO, {"op": "hello"}]), b""], NO_BUNDLE),
        ([encode([HELLO]), b"x"], "take 0 bytes, but their frame has 1"),
        ([encode([tensor(1, 2)]), bytes(9)], "take 8 bytes, but their frame has 9"),
        ([encode([tensor(1, 2)]), bytes(7)], "takes 8 bytes, but its frame has 7"),
        ([encode([tensor(1), tensor(1)]), bytes(4)], "takes 4 bytes, but its frame has 0"),
        ([encode([tensor(2), tensor(0)]), bytes(4)], "takes 8 bytes, but its frame has 4"),
        ([encode([{**FEED, "inputs": tensor(1)["inputs"] * 2}]), bytes(8)], "named twice: 'x'"),
        ([encode([tensor(1, name="")]), bytes(4)], NO_BUNDLE),
        ([encode([tensor(-1)]), bytes(4)], NO_BUNDLE),
    ],
)  # fmt: skip
def test_invalid_bundles(frames: list[bytes], words: str) -> None:
    assert messages.bundled(frames)
    with pytest.raises(WireError, match=words) as caught:
        messages.decode_requests(frames)
    assert type(caught.value) is WireError


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([encode(["x" * messages.MAX_BUNDLE_HEADER]), b""], f"at most {messages.MAX_BUNDLE_HEADER}"),
        ([encode([HELLO]), bytes(messages.MAX_MESSAGE_BYTES)], "the message has"),
        ([encode([tensor(2**40)]), bytes(8)], "too large"),
        ([encode([tensor(0, 2**62)]), b""], "too large"),
        ([encode([tensor(*[2**62] * 9)] * 200), bytes(8)], "too large"),
        ([encode([tensor(*[2**31] * 2, 2)]), bytes(8)], "too large"),
        (
            [encode([tensor(messages.MAX_TENSOR_BYTES // 4 + 1)]), bytes(messages.MAX_TENSOR_BYTES + 4)],
            "too large",
        ),
    ],
)
def test_bundles_beyond_a_bound(frames: list[bytes], words: str) -> None:
    with pytest.raises(TooLargeError, match=words):
        messages.decode_requests(frames)


def test_empty_tensors_are_valid_at_any_position() -> None:
    frames = [encode([tensor(0, 2), tensor(1), tensor(3, 0), HELLO]), bytes(4)]
    assert [[*map(len, buffers)] for _, buffers in messages.decode_requests(frames)] == [[0], [4], [0], []]


def read_all(frames: list[bytes]) -> None:
    """Read frames in every way that a peer's bytes are read; only errors of the tree may come out."""
    assert 1 <= len(messages.salvage_ids(frames)) <= messages.MAX_BUNDLE
    for decode in (messages.decode_requests, messages.decode_replies):
        with suppress(RunnelError):
            assert 1 <= len(decode(frames)) <= messages.MAX_BUNDLE  # type: ignore[operator]


@given(st.sampled_from([b"", b"\x90", b"\x91", b"\x92", b"\xdc", b"\xdd", b"\x91\x82\xa1v\x01"]),
       st.binary(max_size=300), st.lists(st.binary(max_size=99), min_size=1, max_size=3))  # fmt: skip
def test_any_bytes_are_a_bundle_or_a_typed_error(start: bytes, head: bytes, rest: list[bytes]) -> None:
    read_all([start + head, *rest])


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6), st.integers(0, 400))
def test_a_mutated_bundle_is_a_bundle_or_a_typed_error(changes: list[tuple[int, int]], cut: int) -> None:
    head, body = messages.bundle([message("feed", str(i), "a", 1, 2) for i in range(3)])
    data = bytearray(head)
    for at, byte in changes:
        data[at % len(data)] = byte
    read_all([bytes(data[: cut or None]), body])


@pytest.mark.parametrize(
    ("head", "ids"),
    [
        ([HELLO, {**FEED, "zz": 1}, {}], ["h", "f", ""]),
        ([{"id": 7}, {"id": "x" * 300}, {"id": "y", "v": "one"}], ["", "", "y"]),
        ([], [""]),
        ([5], [""]),
        ([HELLO] * (messages.MAX_BUNDLE + 1), [""]),
        (["x" * messages.MAX_BUNDLE_HEADER], [""]),
    ],
)
def test_the_ids_of_an_invalid_bundle(head: list[Any], ids: list[str]) -> None:
    assert messages.salvage_ids([encode(head)]) == ids


# The server.

OPS = ["open", "feed", "first", "last", "only", "flush", "reset", "close", "resume", "snapshot", "hello"]
FLAGS = {
    "first": {"sequence_start": True},
    "last": {"sequence_end": True},
    "only": {"sequence_start": True, "sequence_end": True},
}
asked = st.tuples(
    st.sampled_from(OPS),
    st.sampled_from("abc"),
    st.sampled_from([1.0, 2.0, UNLUCKY, POISON]),
    st.integers(0, 4),  # seq
    st.sampled_from([0, 0, 5, 9]),  # epoch
)


def made(groups: list[list[tuple[str, str, float, int, int]]]) -> list[list[list[bytes]]]:
    """Each request as a message, with its own id."""
    numbered, number = [], 0
    for group in groups:
        numbered.append([])
        for op, stream, value, seq, epoch in group:
            number += 1
            fields = {**FLAGS.get(op, {}), "epoch": epoch, "seq": seq}
            fed = op == "feed" or op in FLAGS
            values = (value,) if fed else ()
            numbered[-1].append(message("feed" if fed else op, str(number), stream, *values, **fields))
    return numbered


def told(
    groups: list[list[list[bytes]]], together: bool, max_streams: int = 2
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A server's answer to each id, and the streams that it then has."""
    engine = tally_engine(max_streams)
    server = ServerProtocol(engine, "boot", first_epoch=100)
    answers: dict[str, Any] = {}
    for group in groups:
        outgoing: list[Outgoing] = []
        for frames in [messages.bundle(group)] if together and group else group:
            outgoing += server.receive(b"peer", frames, 0.0)
        while server.pending:
            outgoing += server.run(0.0)
        for reply, buffers in replies_in(outgoing):
            assert reply.id not in answers, "answered twice"
            answers[reply.id] = reply, buffers
    return answers, {name: stream.snapshot() for name, stream in engine.streams.items()}


@given(st.lists(st.lists(asked, max_size=12), max_size=8))
def test_a_bundle_does_what_its_messages_do(groups: list[list[tuple[str, str, float, int, int]]]) -> None:
    """With several requests of one stream, repeats, refusals, and more streams than allowed."""
    parts = made(groups)
    answers, streams = told(parts, together=True)
    assert (answers, streams) == told(parts, together=False)
    assert len(answers) == sum(map(len, groups)), "not one answer to each"


def test_a_repeat_within_its_bundle_is_answered_from_the_cache() -> None:
    feed = message("feed", "2", "a", 1, 2, seq=1)
    again = message("feed", "3", "a", 1, 2, seq=1)
    other = message("feed", "4", "a", 9, seq=1)
    answers, _ = told(
        [[message("open", "1", "a"), feed, again, other, message("feed", "5", "a", 3, seq=2)]], True
    )
    ys = {id: np.frombuffer(b"".join(buffers), "<f4")[::2].tolist() for id, (_, buffers) in answers.items()}
    assert ys == {"1": [], "2": [1], "3": [1], "4": [], "5": [3]}
    assert answers["4"][0].error.code == "CONFLICT"
    assert answers["5"][0].applied_seq == 2


@pytest.mark.parametrize("bound", ["MAX_PENDING", "MAX_PENDING_PER_PEER"])
def test_a_bundle_is_taken_up_to_a_bound(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(intake, bound, 3)
    parts = [message("feed", str(i), f"s{i}", 1, sequence_start=True) for i in range(5)]
    for together in (True, False):
        answers, streams = told([parts], together, max_streams=9)
        assert [code(answers[str(i)][0]) for i in range(5)] == ["ok", "ok", "ok", "LIMIT", "LIMIT"]
        assert list(streams) == ["s0", "s1", "s2"]


def test_replies_are_bundled_if_the_requests_were() -> None:
    server = ServerProtocol(tally_engine(), "boot")
    for i in range(3):
        assert not server.receive(b"plain", message("open", str(i), f"p{i}"), 0.0)
    assert not server.receive(
        b"bundler", messages.bundle([message("open", str(i), f"b{i}") for i in range(3)]), 0.0
    )
    sent: dict[bytes, list[bool]] = {}
    for peer, frames in server.run(0.0):
        sent.setdefault(peer, []).append(messages.bundled(frames))
    assert sent == {b"plain": [False] * 3, b"bundler": [True]}
    [hellos] = server.receive(
        b"bundler", messages.bundle([message("hello", "1"), message("hello", "2")]), 0.0
    )
    assert [reply.id for reply, _ in messages.decode_replies(hellos.frames)] == ["1", "2"]


def test_replies_are_split_into_bundles_by_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ServerProtocol(tally_engine(), "boot")
    for start in (0, messages.MAX_BUNDLE):
        group = [message("open", str(i), f"s{i}") for i in range(start, start + messages.MAX_BUNDLE)]
        server.receive(b"peer", messages.bundle(group[: messages.MAX_BUNDLE if not start else 10]), 0.0)
    parts = [len(messages.decode_replies(out.frames)) for out in server.run(0.0)]
    assert parts == [messages.MAX_BUNDLE, 10]
    monkeypatch.setattr(outgoing_module, "BUNDLE_BYTES", 600)
    feeds = [message("feed", str(i), f"s{i}", *[1.0] * (200 if i == 3 else 2)) for i in range(8)]
    server.receive(b"peer", messages.bundle(feeds), 0.0)
    outgoing = []
    while server.pending:
        outgoing += server.run(0.0)
    assert sorted(reply.id for reply, _ in replies_in(outgoing)) == [str(i) for i in range(8)]
    assert any(messages.bundled(out.frames) for out in outgoing)
    for out in outgoing:
        assert not messages.bundled(out.frames) or sum(map(len, out.frames)) < 600 + 8


FAULTY: dict[str, tuple[list[Any], bytes, list[str]]] = {
    "one field too many": ([{**FEED, "sequence_start": True}, {**HELLO, "zz": 1}], b"", ["f", "h"]),
    "a body too long": ([HELLO, tensor(1, 2)], bytes(9), ["h", "f"]),
    "a body too short": ([tensor(1, 2), HELLO], bytes(7), ["f", "h"]),
    "empty": ([], b"", [""]),
    "too many": ([HELLO] * (messages.MAX_BUNDLE + 1), b"", [""]),
}


@pytest.mark.parametrize(("head", "body", "ids"), FAULTY.values(), ids=FAULTY.keys())
def test_a_bundle_with_a_fault_is_refused_whole(head: list[Any], body: bytes, ids: list[str]) -> None:
    engine = tally_engine()
    server = ServerProtocol(engine, "boot")
    replies = replies_in(server.receive(b"peer", [encode(head), body], 0.0))
    assert [reply.id for reply, _ in replies] == ids
    assert {reply.error.code for reply, _ in replies if reply.error} == {"BAD_MESSAGE"}
    assert not server.pending
    assert not engine.streams


@pytest.mark.parametrize(
    "fault",
    [
        {"\U0001f300" * 50_000: 1},
        {"op": "\U0001f300" * 50_000},
        {"inputs": [{"name": "\U000e0001" * messages.MAX_NAME, "datatype": "FP32", "shape": [2**62] * 9}]},
        {"inputs": [{"name": "\U000e0001" * messages.MAX_NAME, "datatype": "FP32", "shape": [0]}] * 64},
    ],
    ids=["field", "op", "shape", "twice"],
)
def test_the_refusal_of_the_worst_bundle_fits_one_message(fault: dict[str, Any]) -> None:
    """The text is repeated for each id: without a bound, the replies would not fit one message."""
    ids = ["\U0001f300" * (messages.MAX_ID - 3) + f"{i:03d}" for i in range(messages.MAX_BUNDLE)]
    head = [{**HELLO, **(fault if not i else {}), "id": id} for i, id in enumerate(ids)]
    [out] = ServerProtocol(tally_engine(), "boot").receive(b"peer", [encode(head), b""], 0.0)
    assert [reply.id for reply, _ in replies_in([out])] == ids
    assert sum(map(len, out.frames)) <= outgoing_module.BUNDLE_BYTES


# The client protocol.


def spoken(server: ServerProtocol) -> tuple[ClientProtocol, list[PendingRequest], list[bytes]]:
    """Three chunks of two streams in flight, and the bundle of their replies; the second one failed."""
    protocol = ClientProtocol("c", lambda: 77)
    lines: list[ClientStream] = []
    for name in "ab":
        pending = protocol.open(name, 5)
        for frames in said(protocol):
            server.receive(b"peer", frames, 0.0)
        for out in server.run(0.0):
            protocol.received(out.frames)
        assert pending.stream
        lines.append(pending.stream)
    pendings = [
        protocol.post(stream, "feed", *pack({"x": rows(value)}))
        for stream, value in zip([lines[0], lines[1], lines[0]], [1, UNLUCKY, 2], strict=True)
    ]
    server.receive(b"peer", messages.bundle(said(protocol)), 0.0)
    outgoing: list[Outgoing] = []
    while server.pending:
        outgoing += server.run(0.0)
    return (
        protocol,
        pendings,
        messages.bundle([messages.encode_reply(*reply) for reply in replies_in(outgoing)]),
    )


def said(protocol: ClientProtocol) -> list[list[bytes]]:
    parts = [list(frames) for frames in protocol.outbox.values()]
    protocol.outbox.clear()
    return parts


@pytest.fixture
def engine() -> SpyEngine:
    return tally_engine()


def test_a_client_takes_each_reply_of_a_bundle(engine: SpyEngine) -> None:
    protocol, pendings, frames = spoken(ServerProtocol(engine, "boot"))
    settled = protocol.received(frames)
    assert sorted(settled, key=lambda pending: pending.id) == pendings
    assert [type(pending.error).__name__ for pending in pendings] == ["NoneType", "StageError", "NoneType"]
    assert [pending.stream.applied for pending in pendings if pending.stream] == [2, 0, 2]
    assert not protocol.received(frames), "heard once"
    assert protocol.in_flight == 0


def test_errors_in_a_bundle_over_a_new_connection_are_ignored(engine: SpyEngine) -> None:
    server = ServerProtocol(engine, "boot")
    protocol, pendings, frames = spoken(server)
    assert [pending.done for pending in protocol.received(frames, cut=True)] == [True, True]
    assert [pending.done for pending in pendings] == [True, False, True]
    protocol.reconnected()
    [resumed] = said(protocol)
    assert messages.decode_request(resumed)[0].op == "resume"


@pytest.mark.parametrize("fault", ["short", "long", "frames", "version", "deep"])
def test_an_invalid_bundle_of_replies_fails_all_its_requests(engine: SpyEngine, fault: str) -> None:
    protocol, pendings, (head, body) = spoken(ServerProtocol(engine, "boot"))
    told = msgspec.msgpack.decode(head)
    bad = {
        "short": [head, body[:-1]],
        "long": [head, body + b"x"],
        "frames": [head],
        "version": [encode([{**told[0], "v": 2}, *told[1:]]), body],
        "deep": [encode([{**told[0], "outputs": 5}, *told[1:]]), body],
    }[fault]
    assert len(protocol.received(bad)) == 3
    assert all(isinstance(pending.error, WireError) for pending in pendings)
    assert protocol.in_flight == 0
    for frames in ([], [b"\x90", b""], [b"\x91\x05", b""], [b"\xdd\xff\xff\xff\xff", b""]):
        assert not protocol.received(frames)
