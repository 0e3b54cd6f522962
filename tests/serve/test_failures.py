"""An exception at any call out of the server belongs to the current request.

A fault is injected into one call after another: each method of a stage, each codec, each part of the
bookkeeping, the engine, memory itself. The server continues, every request is answered at most once, the
outputs of another stream are unchanged, and the faulty stream is unchanged or is closed with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from runnel.daemon.protocol import jobs, scheduler
from runnel.daemon.protocol import server as protocol
from runnel.daemon.protocol.server import ServerProtocol
from runnel.daemon.protocol.streamtable import StreamTable
from runnel.engine import Engine
from runnel.pipeline.pipeline import Pipeline
from runnel.spec import Array
from runnel.stage import Arrays, Chunk, State
from runnel.wire.messages import Request, TensorInfo, decode_reply, encode_request
from runnel.wire.tensors import pack, unpack

from .support import Tally, rows


class Fault(Exception):  # noqa: N818 - what others raise has any name
    """An exception of a stage, a codec or the bookkeeping."""


class Trap:
    """Raises at the n-th of the calls that pass it, and only there."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at, self.error = at, error
        self.calls = 0
        self.armed = False
        self.sprung = False

    def pass_by(self) -> None:
        if not self.armed:
            return
        self.calls += 1
        if self.calls == self.at:
            self.sprung = True
            raise self.error("a fault")

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def trapped(*args: Any, **options: Any) -> Any:
            self.pass_by()
            return function(*args, **options)

        return trapped


class Trapped(Tally):
    """A tally, each of whose methods passes the trap."""

    def __init__(self, trap: Trap, method: str) -> None:
        super().__init__()
        self.trap, self.method = trap, method

    def _pass(self, method: str) -> None:
        if method == self.method:
            self.trap.pass_by()

    def initial(self) -> Arrays:
        self._pass("initial")
        return super().initial()

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        self._pass("step")
        return super().step(state, chunk)

    def flush(self, state: State) -> tuple[State, Chunk]:
        self._pass("flush")
        return super().flush(state)

    def load(self, state: State, arrays: Arrays) -> State:
        self._pass("load")
        return super().load(state, arrays)

    def dump(self, state: State) -> Arrays:
        self._pass("dump")
        return super().dump(state)

    def fork(self, state: State) -> State:
        self._pass("fork")
        return super().fork(state)

    def land(self, state: State, forked: State) -> State:
        self._pass("land")
        return super().land(state, forked)

    def drop(self, forked: State) -> None:
        self._pass("drop")
        super().drop(forked)

    def open(self) -> State:
        self._pass("open")
        return super().open()

    def close(self, state: State) -> None:
        self._pass("close")
        super().close(state)


STAGE = ("initial", "step", "flush", "load", "dump", "fork", "land", "drop", "open", "close")
MODULE = (
    (scheduler, "pack"), (scheduler, "unpack"), (scheduler, "digest_of"), (protocol, "event_of"),
    (protocol, "error_info"),
    (jobs, "pack"), (scheduler, "digest_in_blocks"), (scheduler, "admit"),
)  # fmt: skip
WIRE = ("encode_reply", "decode_request")
ENGINE = ("open", "restore", "feed_many", "begin", "advance")
TABLE = ("begin", "keep", "touch", "find", "add")
PLACES = [
    *(f"stage.{name}" for name in STAGE),
    *(f"module.{i}" for i in range(len(MODULE))),
    *(f"wire.{name}" for name in WIRE),
    *(f"engine.{name}" for name in ENGINE),
    *(f"table.{name}" for name in TABLE),
    "notices",
]


class World:
    """Two streams, one of them the witness, and a server with a trap in it."""

    def __init__(self, place: str, at: int, error: type[BaseException], patch: pytest.MonkeyPatch) -> None:
        self.trap = Trap(at, error)
        kind, _, name = place.partition(".")
        self.engine = Engine(Pipeline([Trapped(self.trap, name if kind == "stage" else "")], None, {}))
        self.now = 0.0
        self.server = ServerProtocol(self.engine, "boot", 100, clock=self.tick)
        self.answers: dict[str, Any] = {}
        self.sent = 0
        if kind == "module":
            module, attribute = MODULE[int(name)]
            patch.setattr(module, attribute, self.trap.around(getattr(module, attribute)))
        elif kind == "wire":
            patch.setattr(protocol.messages, name, self.trap.around(getattr(protocol.messages, name)))
        elif kind == "engine":
            patch.setattr(self.engine, name, self.trap.around(getattr(self.engine, name)))
        elif kind == "table":
            patch.setattr(StreamTable, name, self.trap.around(getattr(StreamTable, name)))
        elif kind == "notices":
            # The engine calls listeners, and logs what they raise.
            self.engine.notices._listeners = (("mine", self.trap.around(lambda notice: None)),)

    def tick(self) -> float:
        """A clock that runs, so that long chunks are cut."""
        self.now += 0.0005
        return self.now

    def ask(self, op: str, stream: str, x: Array | None = None, **fields: Any) -> str:
        self.sent += 1
        id = str(self.sent)
        infos, buffers = pack({"x": x}) if x is not None else ([], [])
        if "blob" in fields:
            blob = fields.pop("blob")
            infos, buffers = [TensorInfo("snapshot", "UINT8", [len(blob)])], [blob]
        frames = encode_request(
            Request(v=1, op=op, id=id, sequence_id=stream, inputs=infos, **fields), buffers
        )  # type: ignore[arg-type]
        self.hear(self.server.receive(b"peer", frames, self.now))
        return id

    def hear(self, outgoing: Any) -> None:
        for out in outgoing:
            reply, buffers = decode_reply(out.frames)
            if not reply.id:
                continue
            assert reply.id not in self.answers, "answered twice"
            self.answers[reply.id] = reply, unpack(reply.outputs, buffers).get("y")

    def run(self) -> None:
        for _ in range(2000):
            if not self.server.pending:
                return
            self.hear(self.server.run(self.now))
            self.server.done(self.now)
        raise AssertionError("the server does not come to an end")


def script(world: World) -> Iterator[tuple[str, str]]:
    """Every request that a client may make on the faulty stream: (id, what it was)."""
    blob = None
    for op, x, fields in (
        ("feed", rows(2), {}),
        ("feed", rows(*range(3000)), {}),  # cut into slices
        ("snapshot", None, {}),
        ("flush", None, {}),
        ("reset", None, {}),
        ("resume", None, {}),
        ("feed", rows(3), {"sequence_end": True}),
        ("feed", rows(4), {"sequence_start": True}),
        ("close", None, {}),
        ("feed", rows(5), {"sequence_start": True, "sequence_end": True}),
        ("restore", None, {"blob": blob}),
    ):
        if op == "restore":
            source = Engine(Pipeline([Tally()], None, {})).open("x")
            source.feed(rows(7))
            fields = {"blob": source.snapshot()}
        yield world.ask(op, "fault" if op != "restore" else "restored", x, **fields), op


def state_of(world: World) -> tuple[int, bool, dict[str, Any]] | None:
    """The seq and state of the faulty stream; None if it is closed."""
    stream = world.engine.streams.get("fault")
    if stream is None:
        return None
    return stream.seq, stream.ended, {name: array.tolist() for name, array in stream.state.items()}


@pytest.mark.parametrize("error", [Fault, MemoryError])
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_anywhere_fails_only_its_own_request(
    place: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    sprung = 0
    for at in range(1, 400):
        with monkeypatch.context() as patch:
            patch.setattr(scheduler, "BLOCK", 4096)
            patch.setattr(jobs, "BLOCK", 4096)
            world = World(place, at, error, patch)
            world.ask("open", "fault")
            world.ask("open", "witness")
            world.run()
            oracle = Engine(Pipeline([Tally()], None, {})).open("oracle")
            asked = script(world)
            while True:
                before = state_of(world)
                world.trap.armed = True
                id, op = next(asked, ("", ""))
                if not id:
                    break
                world.run()
                if id not in world.answers:  # the fault hit the reply to an error: then nothing was answered
                    assert world.trap.sprung
                world.server.tick(world.now)
                world.trap.armed = False
                seen = world.ask("feed", "witness", rows(1.5))
                world.run()
                reply, y = world.answers[seen]
                assert reply.error is None, (place, at, op, reply.error)
                assert np.array_equal(y, oracle.feed(rows(1.5))), (place, at, op)
                reply = world.answers[id][0] if id in world.answers else None
                if (
                    reply is not None
                    and reply.error is not None
                    and "the reply failed" not in reply.error.message
                ):
                    assert state_of(world) in (before, None), (place, at, op, "as before, or closed")
            known = {record.key for record in world.server._table._open}
            assert set(world.engine.streams) == known, "the engine and the server know the same streams"
            assert world.server.pending == 0
            assert not world.server._scheduler._jobs
        if not world.trap.sprung:
            break
        sprung += 1
    else:
        raise AssertionError("the script is longer than was thought")
    assert sprung or place == "stage.drop", f"nothing called {place}"
