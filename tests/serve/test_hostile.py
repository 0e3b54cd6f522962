"""Any bytes from a peer: a typed error or a closed connection, and no other stream touched.

Over real sockets, through libzmq: faults below the messages, in the messages, and in their meaning, beside a
stream whose outputs are checked.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel import errors
from runnel.daemon import loop as daemon_module
from runnel.daemon.loop import Daemon
from runnel.wire import messages
from runnel.wire.tensors import unpack

from . import raw
from .mutations import mutated
from .peers import ask, dealer, feed, replies_of, reply_of, run, until
from .support import SpyEngine, code

HELLO = messages.encode_request(messages.Request(v=1, op="hello", id="h"))
CODES = {cls.code for cls in errors._walk(errors.RunnelError)} | {"ok"}


class Witness:
    """A stream of another client, whose outputs are known."""

    def __init__(self, sock: zmq.Socket[bytes]) -> None:
        self._sock = sock
        self._sum = self._held = 0.0
        self._seq = 0
        assert code(ask(sock, "open", "witness")) == "ok"

    def check(self) -> None:
        """Feed one more chunk, and check the output against the stream's whole past."""
        self._seq += 1
        self._sock.send_multipart(feed("witness", self._seq, seq=self._seq))
        assert self._sock.poll(20_000), "the daemon is silent"
        reply, buffers = messages.decode_reply(self._sock.recv_multipart())
        assert code(reply) == "ok", reply
        assert reply.applied_seq == self._seq
        expected = [[self._held] * 2] if self._seq > 1 else []
        assert unpack(reply.outputs, buffers)["y"].tolist() == expected
        self._held = self._sum = self._sum + self._seq


@pytest.fixture
def witness(daemon: Daemon) -> Iterator[Witness]:
    with dealer(daemon.address) as sock:
        witness = Witness(sock)
        yield witness
        witness.check()


@pytest.fixture
def _nothing_left(witness: Witness) -> Iterator[None]:
    """No more descriptors and threads than before, once all is quiet.

    There may be fewer: a listening socket is closed when the last client that came through it has left.
    """
    witness.check()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    yield
    until(lambda: len(os.listdir("/proc/self/fd")) <= files and threading.active_count() <= threads)


# Below the messages


NO_HANDSHAKE = {
    "not ZMTP": b"GET / HTTP/1.1\r\n\r\n" * 20,
    "zeros": bytes(5000),
    "an old version": b"\xff" + bytes(8) + b"\x7f\x00" + bytes(100),
    "an unknown mechanism": raw.greeting(b"MAGIC") + raw.ready(),
    "CURVE where there are no keys": raw.greeting(b"CURVE") + raw.frame(bytes(200), raw.COMMAND),
    "no READY": raw.greeting() + raw.message(*HELLO),
    "READY cut short": raw.greeting() + raw.frame(b"\x05READY\x0bSocket", raw.COMMAND),
    "a property that says it is long": raw.greeting()
    + raw.frame(b"\x05READY\x0bSocket-Type\xff\xff\xff\xffDEALER", raw.COMMAND),
    "a SUB socket": raw.greeting() + raw.ready(b"SUB"),
}  # fmt: skip
NO_FRAME = {
    "a frame of 2**63 bytes": raw.frame(b"x", raw.LONG, 2**63),
    "a frame of 2**64 - 1 bytes": raw.frame(b"x", raw.LONG, 2**64 - 1),
    "a frame past the bound": raw.frame(b"x", raw.LONG, messages.MAX_TENSOR_BYTES + 1),
}


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize("sent", NO_HANDSHAKE.values(), ids=NO_HANDSHAKE.keys())
def test_an_invalid_handshake_ends_its_connection(daemon: Daemon, witness: Witness, sent: bytes) -> None:
    with raw.connected(daemon.address) as peer:
        raw.tell(peer, sent, end=True)
        assert b"boot_id" not in raw.rest(peer)
    witness.check()


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize("sent", NO_FRAME.values(), ids=NO_FRAME.keys())
def test_a_frame_beyond_the_bound_ends_its_connection(daemon: Daemon, witness: Witness, sent: bytes) -> None:
    """Before any of it is read: its header is enough."""
    with raw.shaken(daemon.address) as peer:
        raw.tell(peer, sent)
        assert raw.rest(peer) == b""
    witness.check()


@pytest.mark.usefixtures("_nothing_left")
@settings(max_examples=30)
@given(st.sampled_from([b"", raw.greeting()[:11], raw.greeting()]), st.binary(max_size=300))
def test_any_bytes_instead_of_a_handshake(
    daemon: Daemon, witness: Witness, start: bytes, more: bytes
) -> None:
    with raw.connected(daemon.address) as peer:
        raw.tell(peer, start + more)
    witness.check()


@pytest.mark.usefixtures("_nothing_left")
@settings(max_examples=30)
@given(st.binary(max_size=300))
def test_any_bytes_after_a_handshake(daemon: Daemon, witness: Witness, more: bytes) -> None:
    with raw.shaken(daemon.address) as peer:
        raw.tell(peer, more)
    witness.check()


def test_zmtp_by_hand_is_answered(daemon: Daemon) -> None:
    """Otherwise the tests above would show nothing."""
    with raw.shaken(daemon.address) as peer:
        peer.sendall(raw.message(*HELLO))
        assert messages.decode_reply(raw.read_message(peer))[0].id == "h"


@pytest.mark.parametrize(
    "begun",
    [b"", raw.greeting()[:10], raw.greeting(), raw.greeting() + raw.ready()[:9]],
    ids=["nothing", "half a greeting", "a greeting", "half a READY"],
)
def test_half_a_handshake_is_timed_out(
    engine: SpyEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(daemon_module, "HANDSHAKE_MS", 100)
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread, _ = run(daemon)
    assert daemon.started.wait(10)
    with raw.connected(daemon.address) as silent:
        silent.sendall(begun)
        assert raw.rest(silent).startswith(b"\xff"), "the daemon's greeting, then the end"
    daemon.stop()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.usefixtures("_nothing_left")
def test_many_silent_connections_lock_out_no_client(daemon: Daemon, witness: Witness) -> None:
    silent = [raw.connected(daemon.address) for _ in range(200)]
    try:
        for one in silent:
            one.__enter__().sendall(raw.greeting()[:10])
        witness.check()
        with dealer(daemon.address) as sock:
            assert code(ask(sock, "hello")) == "ok"
    finally:
        for one in silent:
            one.__exit__(None, None, None)


@pytest.mark.usefixtures("_nothing_left")
def test_a_truncated_message_is_ignored(daemon: Daemon, witness: Witness, engine: SpyEngine) -> None:
    whole = raw.message(*feed("cut", 1, sequence_start=True))
    with raw.shaken(daemon.address) as peer:
        peer.sendall(whole[:-1])
    witness.check()
    assert list(engine.streams) == ["witness"]


# The messages


@pytest.mark.parametrize(
    ("frames", "expected", "words"),
    [
        ([b""], "BAD_MESSAGE", "a DEALER socket is expected, not a REQ"),
        ([b"", *HELLO], "BAD_MESSAGE", "not a REQ"),
        ([b"\x81"], "BAD_MESSAGE", "not a msgpack map"),
        ([b"\x82\xa1v\x02\xa2op\xa5hello"], "BAD_MESSAGE", "version 2; this end speaks version 1"),
        ([b"\x82\xa1v\x01\xa2op\xa5hallo"], "BAD_MESSAGE", "not a msgpack map"),
        ([b"\x83\xa1v\x01\xa2op\xa5hello\xa1z\x01"], "BAD_MESSAGE", "not a msgpack map"),
        ([*HELLO, b"x"], "BAD_MESSAGE", "describes 0 tensors, but 1 frames follow"),
        ([*feed("s", 1)[:1], b"short"], "BAD_MESSAGE", "takes 8 bytes, but its frame has 5"),
        ([b"x" * (messages.MAX_HEADER + 1)], "TOO_LARGE", "the header has 16385 bytes"),
        ([b"x"] * (messages.MAX_TENSORS + 2), "BAD_MESSAGE", "66 frames"),
        ([b"x"] * 5000, "BAD_MESSAGE", "66 frames"),
        ([b"\x81\xa1z" + b"\x91" * 16_000], "BAD_MESSAGE", "not a msgpack map"),
        ([b"\x91" * 16_000], "BAD_MESSAGE", "1 frames; a bundle has two"),
        ([b"\x91" * 16_000, b""], "BAD_MESSAGE", "not a msgpack array of maps"),
        ([b"\x90", b""], "BAD_MESSAGE", "not a msgpack array of maps"),
        ([b"\x91" + HELLO[0], b"x"], "BAD_MESSAGE", "take 0 bytes, but their frame has 1"),
        ([b"\xdd\xff\xff\xff\xff" + HELLO[0], b""], "BAD_MESSAGE", "not a msgpack array of maps"),
        ([b"\x91" + bytes(messages.MAX_BUNDLE_HEADER), b""], "TOO_LARGE", "at most 524288"),
        ([b"\xdd" + bytes(messages.MAX_TENSOR_BYTES - 1), bytes(2**24)], "TOO_LARGE", "524288"),
        ([b"x", *[bytes(messages.MAX_TENSOR_BYTES)] * 3], "TOO_LARGE", "send smaller chunks"),
    ],
)  # fmt: skip
def test_each_fault_of_a_message_has_its_error(
    daemon: Daemon, witness: Witness, frames: list[bytes], expected: str, words: str
) -> None:
    with dealer(daemon.address) as sock:
        sock.send_multipart(frames)
        reply = reply_of(sock)
        assert code(reply) == expected
        assert reply.error
        assert words in reply.error.message
        assert code(ask(sock, "hello")) == "ok", "its connection lives"
    witness.check()


def test_a_tensor_with_a_false_shape(daemon: Daemon, witness: Witness) -> None:
    for shape, size in [
        ([2**62], 8),
        ([0, 2**62], 0),
        ([2**31, 2**31, 2], 8),
        ([3, 2], 8),
        ([-1], 8),
        ([1] * 10, 4),
    ]:
        header = messages._encode(
            {"v": 1, "op": "feed", "sequence_id": "s", "sequence_start": True,
             "inputs": [{"name": "x", "datatype": "FP32", "shape": shape}]}
        )  # fmt: skip
        with dealer(daemon.address) as sock:
            sock.send_multipart([header, bytes(size)])
            assert code(reply_of(sock)) in ("BAD_MESSAGE", "TOO_LARGE")
    witness.check()


def test_a_bundle_of_tensors_with_false_shapes(daemon: Daemon, witness: Witness) -> None:
    """Each id in it is answered, the valid one's too, and nothing of it is done."""
    for shape, size in [([2**62], 8), ([0, 2**62], 0), ([2**31, 2**31, 2], 8), ([3, 2], 8), ([1, 2], 9)]:
        header = messages._encode(
            [{"v": 1, "op": "feed", "id": id, "sequence_id": id, "sequence_start": True,
              "inputs": [{"name": "x", "datatype": "FP32", "shape": told}]}
             for id, told in (("good", [1, 2]), ("bad", shape))]
        )  # fmt: skip
        with dealer(daemon.address) as sock:
            sock.send_multipart([header, bytes(8 + size)])
            told = replies_of(sock, 2)
            assert [reply.id for reply in told] == ["good", "bad"]
            assert {code(reply) for reply in told} <= {"BAD_MESSAGE", "TOO_LARGE"}
            assert code(ask(sock, "close", "good")) == "UNKNOWN_STREAM"
    witness.check()


def test_a_req_socket_gets_no_answer_and_does_no_harm(daemon: Daemon, witness: Witness) -> None:
    """The reply has no empty frame, so the peer's libzmq drops it; the page requires a DEALER."""
    with zmq.Context.instance().socket(zmq.REQ) as req:
        req.linger = 0
        req.connect(daemon.address)
        req.send_multipart(HELLO)
        assert not req.poll(200)
    witness.check()


def test_a_forged_snapshot(daemon: Daemon, witness: Witness, engine: SpyEngine) -> None:
    good = engine.streams["witness"].snapshot()
    blobs = [b"", good[:-1], good + b"x", b"RNLS" + bytes(100), bytes(messages.MAX_TENSOR_BYTES)]
    blobs += [struct.pack("<4sBI", b"RNLS", 1, 2**32 - 1) + good[9:]]
    for blob in blobs:
        info = messages.TensorInfo("snapshot", "UINT8", [len(blob)])
        header = messages.Request(v=1, op="restore", sequence_id="s", inputs=[info])
        with dealer(daemon.address) as sock:
            sock.send_multipart(messages.encode_request(header, [blob]))
            assert code(reply_of(sock)) == "BAD_SNAPSHOT"
    assert list(engine.streams) == ["witness"]


# Their meaning


@pytest.mark.usefixtures("_nothing_left")
@settings(max_examples=40)
@given(st.lists(mutated(), min_size=1, max_size=20))
def test_no_message_affects_another_stream(
    daemon: Daemon, witness: Witness, engine: SpyEngine, sent: list[list[bytes]]
) -> None:
    with dealer(daemon.address) as sock:
        for frames in sent:
            sock.send_multipart(frames)
        due = [id for frames in sent for id in messages.salvage_ids(frames)]
        told = replies_of(sock, len(due))
        assert {code(reply) for reply in told} <= CODES
        assert sorted(reply.id for reply in told) == sorted(due), "one reply each"
        assert not sock.poll(0)
        for name in list(engine.streams):
            if name != "witness":
                assert code(ask(sock, "close", name)) == "ok"
    witness.check()
