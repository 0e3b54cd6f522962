"""Bytes in, a server's messages out, and what must hold whatever they are.

A fuzzer's bytes are read as a tape: one item a frame, with what else happens there. Two peers of one user
send; another user's stream stands beside them, and must be bit for bit what it was.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from runnel import errors
from runnel.daemon.protocol.outgoing import Outgoing
from runnel.daemon.protocol.server import ServerProtocol
from runnel.engine import Engine
from runnel.pipeline.pipeline import Pipeline
from runnel.spec import Signal, TensorSpec
from runnel.wire import messages
from runnel_plugins.resample import Resample
from tests.serve.support import Tally, rows

CODES = {cls.code for cls in errors._walk(errors.RunnelError)}
DIGEST = 16  # bytes of a snapshot's checksum
MAX_STREAMS = 8
IDLE_SECONDS = 50.0
PEERS = (b"one", b"two")
_LAST, _RUN, _SECOND, _WAIT, _SIGN = 1, 2, 4, 8, 16


class Item(NamedTuple):
    """A frame, and what comes after it."""

    body: bytes
    last: bool = True  # of its message
    run: bool = True  # the server runs a batch once the message is in
    second: bool = False  # the second peer sends it
    wait: bool = False  # time passes
    sign: bool = False  # the body's checksum follows it, so that a made-up snapshot is looked into


class Tape:
    """Items as bytes: flags (1), length (2, little-endian), body; what is cut off is as long as it is."""

    @staticmethod
    def read(data: bytes) -> Iterator[Item]:
        while len(data) >= 3:
            flags, length = data[0], int.from_bytes(data[1:3], "little")
            bits = (bool(flags & bit) for bit in (_LAST, _RUN, _SECOND, _WAIT, _SIGN))
            yield Item(data[3 : 3 + length], *bits)
            data = data[3 + length :]

    @staticmethod
    def write(items: Iterable[Item]) -> bytes:
        tape = b""
        for body, *bits in items:
            flags = sum(bit for bit, on in zip((_LAST, _RUN, _SECOND, _WAIT, _SIGN), bits, strict=True) if on)
            tape += bytes([flags]) + len(body).to_bytes(2, "little") + body
        return tape


@cache
def _pipeline() -> Pipeline:
    """A resampler, whose state is more than sums, before the tally. Stages hold no state, so one will do."""
    source = Signal((TensorSpec("x", "float32", (2,)),), 150.0)
    return Pipeline([Resample(source, rate=100.0), Tally()], None, {})


def fuzzed_engine() -> Engine:
    return Engine(_pipeline(), MAX_STREAMS)


class House:
    """A server, the witness in it, and what each peer asked and was answered, by id."""

    def __init__(self) -> None:
        self.engine = fuzzed_engine()
        self.server = ServerProtocol(self.engine, "b", 100, idle_seconds=IDLE_SECONDS)
        self.now = 0.0
        self.sent: dict[bytes, Counter[str]] = {peer: Counter() for peer in PEERS}
        self.answered: dict[bytes, Counter[str]] = {peer: Counter() for peer in PEERS}
        witness = self.engine.open("witness/mic")  # as the server names it; it did not open it
        witness.feed(rows(1, 2, 3))
        self.witness, self.before = witness, witness.snapshot()

    def send(self, peer: bytes, frames: list[bytes]) -> None:
        self.sent[peer].update(messages.salvage_ids(frames))
        self.take(self.server.receive(peer, frames, self.now, "mallory"))

    def run(self) -> None:
        self.take(self.server.run(self.now))
        self.server.done(self.now)

    def wait(self) -> None:
        """So long that whatever is idle is closed."""
        self.now += IDLE_SECONDS + 1
        self.tick()

    def tick(self) -> None:
        for _, frames in self.server.tick(self.now):
            notice, _ = messages.decode_reply(frames)
            assert (notice.op, notice.id, notice.error and notice.error.code) == (
                "close",
                "",
                "UNKNOWN_STREAM",
            )

    def take(self, outgoing: Iterable[Outgoing]) -> None:
        for peer, frames in outgoing:
            told = (
                messages.decode_replies(frames)
                if messages.bundled(frames)
                else [messages.decode_reply(frames)]
            )
            for reply, _ in told:
                assert reply.error is None or reply.error.code in CODES, reply
                self.answered[peer][reply.id] += 1

    def end(self) -> None:
        while self.server.pending:
            self.run()
        assert self.witness.snapshot() == self.before, "another user's stream was touched"
        self.wait()
        self.now += 1000.0
        self.tick()
        told = self.server.document()
        assert (told["pending"], told["pending_bytes"], told["kept_bytes"]) == (0, 0, 0), told
        assert list(self.engine.streams) == ["witness/mic"], "an idle stream was not closed"
        assert self.answered == self.sent, "not one answer to each request"


def one_input(data: bytes) -> None:
    """What the fuzzer calls. Raises AssertionError where an invariant is broken; nothing else may raise."""
    house = House()
    frames: list[bytes] = []
    for body, last, run, second, wait, sign in Tape.read(data):
        frames.append(body + hashlib.blake2b(body, digest_size=DIGEST).digest() if sign else body)
        if not last:
            continue
        house.send(PEERS[second], frames)
        frames = []
        if run:
            house.run()
        if wait:
            house.wait()
    house.end()
