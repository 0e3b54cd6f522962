"""The sans-IO server against a plain model: messages lost, repeated, late, and two clients racing.

The server may batch queued messages in any way. The answer to each message, and its recipient, must be what
the model gives for one message after the other in the order of arrival.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from runnel.daemon.logs import Log
from runnel.daemon.protocol import server as protocol
from runnel.daemon.protocol import streams, streamtable
from runnel.daemon.protocol.server import ServerProtocol
from runnel.wire import messages
from runnel.wire.tensors import pack, unpack

from .plain import UNLUCKY, Answer, Message, Plain, sums_of
from .support import POISON, rows, tally_engine

KEEP = 3  # replies of a stream: few, so that some are forgotten within a run
IDLE = 100.0
NAMES = ("a", "b", "c")
ROOM = 2  # streams at once: fewer than names, so that some are refused
CLIENTS = (b"one", b"two")


@pytest.fixture(autouse=True, scope="module")
def _keep_few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamtable, "CACHED_REPLIES", KEEP)
        logging.getLogger("runnel.unheard").setLevel(logging.CRITICAL)
        for module in (protocol, streams):
            patch.setattr(module, "log", Log("runnel.unheard"))  # tracebacks cost more than everything else
        yield


class World:
    """Server and model side by side, a network in between, and what each client knows."""

    def __init__(self) -> None:
        self.now = 0.0
        self.engine = tally_engine(max_streams=ROOM)
        self.server = ServerProtocol(self.engine, "boot", first_epoch=1000, idle_seconds=IDLE)
        self.model = Plain(KEEP, streamtable.CACHED_SECONDS, IDLE)
        self.network: list[tuple[bytes, Message]] = []
        self.waiting: dict[str, tuple[bytes, Message]] = {}  # delivered, not yet answered, in order
        self.epochs = {(c, n): 0 for c in CLIENTS for n in NAMES}  # the last epoch that each client learned
        self.applied = {(c, n): 0 for c in CLIENTS for n in NAMES}
        self.blobs: list[bytes] = []
        self.resumed: dict[tuple[str, int], Message] = {}  # by whom, in which epoch
        self._ids = count(1)
        self._epochs = count(10**6)

    def compose(
        self,
        client: bytes,
        name: str,
        op: str,
        ahead: int,
        values: tuple[float, ...],
        honest: int,
        flags: int,
    ) -> None:
        """A message as this client would write it, with the epoch and seq that it knows, or without them."""
        begins = op in ("open", "restore")
        start, end = (bool(flags & 1), bool(flags & 2)) if op == "feed" else (False, False)
        epoch = 0 if honest == 0 else self.epochs[client, name]
        if (begins or start) and honest:
            # The client's own choice, from few, so that openings are repeated; or the stream's.
            epoch = honest if honest < 3 else epoch or honest
        if op == "restore" and not self.blobs:
            return
        seq = 0
        if op in ("feed", "flush", "reset", "close") and honest:
            seq = 1 if start else max(self.applied[client, name] + 1 + ahead, 0)
        blob = b""
        if op == "restore":  # one of the last two, so that some are restored twice
            blob = self.blobs[-2:][ahead % 2 - 1] if values != (UNLUCKY,) else b"no snapshot"
        new = next(self._epochs) if op == "resume" and ahead >= 0 else 0
        self.network.append(
            (client, Message(op, name, epoch, seq, values if op == "feed" else (), start, end, blob, new))
        )

    def deliver(self, at: int, keep: bool) -> None:
        """Deliver one of the messages in flight; `keep`: a copy of it will arrive later."""
        if not self.network:
            return
        at %= len(self.network)
        client, message = self.network[at] if keep else self.network.pop(at)
        id = str(next(self._ids))
        assert self.server.receive(client, frames(message, id), self.now) == []
        self.waiting[id] = client, message

    def lose(self, at: int) -> None:
        if self.network:
            self.network.pop(at % len(self.network))

    def run(self, heard: bool) -> None:
        """Answer everything that has arrived, and compare with the model. `heard`: the replies arrive."""
        said: dict[str, tuple[bytes, messages.Reply, tuple[float, ...]]] = {}
        taken: dict[str, bytes] = {}
        while self.server.pending:
            for peer, reply_frames in self.server.run(self.now):
                reply, buffers = messages.decode_reply(reply_frames)
                assert reply.id not in said, "answered twice"
                outputs = unpack(reply.outputs, buffers)
                if "snapshot" in outputs:
                    taken[reply.id] = bytes(outputs["snapshot"])
                y = outputs.get("y", np.zeros((0, 2)))
                said[reply.id] = peer, reply, tuple(y[:, 0].tolist())
            self.server.done(self.now)
        assert said.keys() == self.waiting.keys(), "a request was not answered"
        for id, (client, message) in self.waiting.items():  # in the order of arrival
            peer, reply, y = said[id]
            code = reply.error.code if reply.error else "ok"
            expected = self.model.tell(message, self.now, reply.epoch, code == "LIMIT")
            if id in taken:
                assert sums_of(taken[id]) == self.model.lives[message.name].sums
                self.blobs.append(taken[id])
            assert peer == client, "someone else's reply"
            assert Answer(code, y) == (*expected[:2], None), (message, expected)
            if message.new_epoch and code == "ok":  # no two resuming clients hold the same epoch
                assert self.resumed.setdefault((message.name, reply.epoch), message) is message
            if reply.epoch:
                assert expected.applied is not None, "told to one who may not know"
            if heard and reply.epoch:
                self.epochs[client, message.name] = reply.epoch
                self.applied[client, message.name] = reply.applied_seq
        self.waiting.clear()
        self.compare()

    def compare(self) -> None:
        """Compare streams, states, seqs and epochs with the model."""
        lives = {name: life for name, life in self.model.lives.items() if life.open}
        assert set(self.engine.streams) == set(lives)
        for name, life in lives.items():
            stream = self.engine.streams[name]
            assert (stream.seq, stream.ended) == (life.sums.chunks, life.sums.ended)
            assert stream.state["tally.sum"][0] == np.float32(life.sums.total)
            record = self.server._table.find(name)
            assert record is not None
            assert (record.epoch, record.applied) == (life.epoch, life.applied)

    def pass_time(self, seconds: float) -> None:
        self.run(heard=True)
        self.now += seconds
        told = {messages.decode_reply(out.frames)[0].sequence_id for out in self.server.tick(self.now)}
        assert told == self.model.tick(self.now)
        self.compare()


def frames(message: Message, id: str) -> list[bytes]:
    infos, buffers = pack({"x": rows(*message.values)}) if message.op == "feed" else ([], [])
    if message.op == "restore":
        infos, buffers = [messages.TensorInfo("snapshot", "UINT8", [len(message.blob)])], [message.blob]
    header = messages.Request(
        v=1, op=message.op, id=id, sequence_id=message.name, sequence_start=message.start,  # type: ignore[arg-type]
        sequence_end=message.end, epoch=message.epoch, new_epoch=message.new_epoch, seq=message.seq,
        inputs=infos,
    )  # fmt: skip
    return messages.encode_request(header, buffers)


OPS = ("open", "open", *["feed"] * 10, "flush", "reset", "reset", "close", "resume", "snapshot", "restore")
FLAGS = (0, 0, 0, 0, 0, 0, 0, 1, 2, 3)  # of a feed: 1 starts, 2 ends its stream
AHEAD = (0, 0, 0, 0, -1, -2, -5, 1)  # relative to the seq that the client expects
CHUNKS = ((1.0,), (2.0, 3.0), (5.0, 7.0, 11.0), (2.0, 3.0), (UNLUCKY,), (POISON,))
TIMES = (1.0, 10.0, 59.0, 61.0, 101.0)


class Promises(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.world = World()

    @rule(
        client=st.sampled_from(CLIENTS), name=st.sampled_from(NAMES), op=st.sampled_from(OPS),
        ahead=st.sampled_from(AHEAD), values=st.sampled_from(CHUNKS),
        honest=st.sampled_from((0, 1, 2, 3)), flags=st.sampled_from(FLAGS),
    )  # fmt: skip
    def compose(self, **fields: object) -> None:
        self.world.compose(**fields)  # type: ignore[arg-type]

    @rule(at=st.integers(0, 20), keep=st.booleans())
    def deliver(self, at: int, keep: bool) -> None:
        self.world.deliver(at, keep)

    @rule(at=st.integers(0, 20))
    def lose(self, at: int) -> None:
        self.world.lose(at)

    @rule(heard=st.booleans())
    def run(self, heard: bool) -> None:
        self.world.run(heard)

    @rule(seconds=st.sampled_from(TIMES))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.run(heard=True)


TestPromises = Promises.TestCase
TestPromises.settings = settings(
    max_examples=10_000 if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else 150,
    stateful_step_count=100,
    deadline=None,
)


@pytest.mark.parametrize("part", range(4))
def test_ten_thousand_runs(part: int) -> None:
    """The same world driven by a seeded generator, which is cheaper than Hypothesis: at most 100 events."""
    for seed in range(part * 2500, part * 2500 + 2500):
        rng = random.Random(seed)
        world = World()
        try:
            for _ in range(rng.randint(20, 100)):
                turn = rng.random()
                if turn < 0.45:
                    world.compose(
                        rng.choice(CLIENTS), rng.choice(NAMES), rng.choice(OPS),
                        rng.choice(AHEAD), rng.choice(CHUNKS),
                        rng.choice((0, 1, 2, 3)), rng.choice(FLAGS),
                    )  # fmt: skip
                elif turn < 0.75:
                    world.deliver(rng.randrange(20), rng.random() < 0.3)
                elif turn < 0.8:
                    world.lose(rng.randrange(20))
                elif turn < 0.97:
                    world.run(rng.random() < 0.8)
                else:
                    world.pass_time(rng.choice(TIMES))
            world.run(heard=True)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
