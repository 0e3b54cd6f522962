"""One turn of the loop is bounded in time and bytes for any requests of a client; times are made up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runnel import errors
from runnel.client.protocol import snapshot_parts
from runnel.daemon.protocol import budget, jobs, scheduler
from runnel.daemon.protocol.intake import MAX_PEER_BYTES
from runnel.daemon.protocol.server import ServerProtocol
from runnel.engine import Engine
from runnel.pipeline.pipeline import Pipeline
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk, Stage, State
from runnel.wire.messages import MAX_TENSOR_BYTES, Request, decode_reply, encode_request
from runnel.wire.tensors import pack, unpack

A_STEP = 30e-6  # made-up seconds of a time step
A_CALL = 200e-6  # and of any other call


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Dear(Stage):
    """y[t] = x[0] + ... + x[t], `width` times; each time step takes A_STEP, each other call A_CALL."""

    name = "dear"

    def __init__(self, clock: Clock, width: int = 1, ballast: int = 0) -> None:
        self.clock, self.width, self.ballast = clock, width, ballast
        self.inputs = Signal((TensorSpec("x", "float32"),), 100.0)
        self.outputs = Signal((TensorSpec("y", "float32", (width,)),), 100.0)

    def initial(self) -> Arrays:
        self.clock.now += A_CALL
        return {"sum": np.zeros((), np.float32), "ballast": np.zeros(self.ballast, np.uint8)}

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        self.clock.now += A_STEP * len(chunk["x"])
        sums = np.cumsum(np.concatenate((state["sum"][None], chunk["x"])), dtype=np.float32)
        out = np.repeat(sums[1:, None], self.width, axis=1)
        return {**state, "sum": np.asarray(sums[-1])}, {"y": out}

    def dump(self, state: State) -> Arrays:
        self.clock.now += A_CALL
        return super().dump(state)


class Site:
    """A server, and clients by name."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.engine = Engine(Pipeline([Dear(self.clock, **options)], None, {}), max_streams=4096)
        self.server = ServerProtocol(self.engine, "boot", 100, clock=self.clock)
        self.unread: dict[bytes, int] = {}
        self.server.set_unread(lambda peer: self.unread.get(peer, 0))
        self.heard: dict[bytes, list[Any]] = {}
        self.turns: list[float] = []
        self.made: list[int] = []  # bytes of reply of each turn

    def tell(self, peer: bytes, op: str, stream: str, x: Array | None = None, **fields: Any) -> None:
        infos, buffers = pack({"x": x}) if x is not None else ([], [])
        self.send(peer, Request(v=1, op=op, sequence_id=stream, inputs=infos, **fields), buffers)  # type: ignore[arg-type]

    def send(self, peer: bytes, request: Request, buffers: Any) -> None:
        self._hear(self.server.receive(peer, encode_request(request, buffers), self.clock.now))

    def turn(self) -> None:
        began = self.clock.now
        out = self.server.run(self.clock.now)
        self.turns.append(self.clock.now - began)
        self.made.append(sum(len(frame) for _, frames in out for frame in frames))
        self._hear(out)

    def run(self) -> None:
        while self.server.pending:
            self.turn()

    def _hear(self, outgoing: Any) -> None:
        for peer, frames in outgoing:
            reply, buffers = decode_reply(frames)
            self.heard.setdefault(peer, []).append((reply, unpack(reply.outputs, buffers)))

    def codes(self, peer: bytes) -> list[str]:
        return [reply.error.code if reply.error else "ok" for reply, _ in self.heard.get(peer, [])]


def ones(count: int) -> Array:
    return np.ones(count, np.float32)


def canary_waits(site: Site, turns: int) -> float:
    """The longest wait, in made-up seconds, of a client that feeds one time step after another."""
    site.tell(b"canary", "open", "canary")
    waits = []
    for _ in range(turns):
        asked, answered = site.clock.now, len(site.heard.get(b"canary", []))
        site.tell(b"canary", "feed", "canary", ones(1))
        while len(site.heard.get(b"canary", [])) == answered:
            site.turn()
        waits.append(site.clock.now - asked)
        site.turn()
    return max(waits[20:])


BOUND = 2 * (budget.TURN_SECONDS + 2 * budget.SLICE_SECONDS)  # the current turn, and the next one


@pytest.mark.parametrize("streams", [1, 8, 60])
def test_long_chunks_delay_no_other_client(streams: int) -> None:
    site = Site()
    for i in range(streams):
        site.tell(b"greedy", "feed", f"s{i}", ones(60_000 // streams), sequence_start=True)
    assert canary_waits(site, 100) <= BOUND
    site.run()
    assert site.codes(b"greedy") == ["ok"] * streams
    for _, outputs in site.heard[b"greedy"]:
        assert outputs["y"][:, 0].tolist() == list(range(1, 60_000 // streams + 1))


@pytest.mark.parametrize("op", ["reset", "snapshot", "open"])
def test_expensive_calls_delay_no_other_client(op: str) -> None:
    site = Site()
    site.tell(b"greedy", "open", "s")
    for i in range(1000):
        site.tell(b"greedy", op, "s" if op != "open" else f"o{i}")
    assert canary_waits(site, 60) <= BOUND
    site.run()
    assert max(site.turns) <= budget.TURN_SECONDS + 3 * A_CALL
    assert site.codes(b"greedy") == ["ok"] * 1001


def test_an_error_in_the_middle_of_a_long_chunk_changes_nothing() -> None:
    site = Site()
    site.tell(b"p", "open", "s")
    site.tell(b"p", "feed", "s", ones(5000))
    site.run()
    before = site.engine.streams["s"].snapshot()
    bad = ones(50_000)
    site.engine.pipeline.stages[0].step, step = _failing_at(30_000, site.engine.pipeline.stages[0]), None
    site.tell(b"p", "feed", "s", bad)
    site.run()
    del step
    assert site.codes(b"p")[-1] == "STAGE_FAILED"
    assert site.engine.streams["s"].snapshot() == before
    del site.engine.pipeline.stages[0].step  # type: ignore[misc]
    site.tell(b"p", "feed", "s", ones(1))
    site.run()
    assert site.heard[b"p"][-1][1]["y"].tolist() == [[5001.0]]


def _failing_at(total: int, stage: Stage) -> Any:
    inner, done = stage.step, 0

    def step(state: State, chunk: Chunk) -> tuple[State, Chunk]:
        nonlocal done
        done += len(chunk["x"])
        if done > total:
            raise ValueError("enough")
        return inner(state, chunk)

    return step


def test_a_too_large_reply_is_refused_before_it_is_made() -> None:
    site = Site(width=1024)
    site.tell(b"p", "open", "s")
    site.run()
    most = jobs.MAX_REPLY_BYTES // 4096
    clock = site.clock.now
    site.tell(b"p", "feed", "s", ones(most + 1))
    site.run()
    error = site.heard[b"p"][-1][0].error
    assert (error.code, site.clock.now) == ("TOO_LARGE", clock)
    assert f"send at most {most} time steps" in error.message
    site.tell(b"p", "feed", "s", ones(most))
    site.run()
    assert site.codes(b"p")[-1] == "ok"


def test_unread_replies_hold_back_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MAX_UNREAD_BYTES", 2**20)
    site = Site(width=1024)
    site.unread[b"deaf"] = 2**20
    for name in ("a", "b"):
        site.tell(b"deaf", "open", name)
        site.tell(b"deaf", "feed", name, ones(100))  # 400 KiB of output
        site.tell(b"deaf", "snapshot", name)  # a few bytes: not held back, but in its turn
    for _ in range(5):
        site.turn()
    assert site.codes(b"deaf") == ["ok", "ok"]
    assert site.server.stalled
    site.tell(b"reads", "feed", "c", ones(100), sequence_start=True)
    site.turn()
    assert site.codes(b"reads") == ["ok"]
    site.unread.clear()
    site.run()
    assert site.codes(b"deaf") == ["ok"] * 6
    # With an empty queue one reply of any size passes.
    monkeypatch.setattr(scheduler, "MAX_UNREAD_BYTES", 1)
    site.tell(b"deaf", "feed", "a", ones(1000))
    site.run()
    assert site.codes(b"deaf")[-1] == "ok"


def test_a_turn_makes_few_bytes_of_reply() -> None:
    site = Site(ballast=2**20)
    site.tell(b"p", "open", "s")
    for _ in range(120):
        site.tell(b"p", "snapshot", "s")
    site.run()
    assert site.codes(b"p") == ["ok"] * 121
    assert max(site.made) <= budget.TURN_BYTES + 2**21


def test_one_clients_queued_bytes_are_bounded() -> None:
    site = Site()
    for i in range(10):
        site.tell(b"greedy", "feed", f"s{i}", ones(MAX_TENSOR_BYTES // 4), sequence_start=True)
    assert site.codes(b"greedy") == ["LIMIT"] * (10 - MAX_PEER_BYTES // MAX_TENSOR_BYTES)
    site.tell(b"modest", "open", "m")
    site.turn()
    assert site.codes(b"modest") == ["ok"]


def test_a_snapshot_that_is_given_can_be_restored() -> None:
    site = Site(ballast=MAX_TENSOR_BYTES + 5)
    site.tell(b"p", "feed", "s", ones(3), sequence_start=True)
    site.tell(b"p", "snapshot", "s")
    site.run()
    blob = site.heard[b"p"][-1][1]["snapshot"].tobytes()
    assert len(blob) > MAX_TENSOR_BYTES
    infos, parts = snapshot_parts(blob)
    site.send(b"p", Request(v=1, op="restore", sequence_id="r", inputs=infos), parts)
    site.tell(b"p", "feed", "r", ones(1))
    site.run()
    assert site.heard[b"p"][-1][1]["y"].tolist() == [[4.0]]


def test_a_snapshot_too_large_to_restore_is_refused() -> None:
    site = Site(ballast=scheduler.MAX_SNAPSHOT_BYTES + 1)
    site.tell(b"p", "open", "s")
    site.tell(b"p", "snapshot", "s")
    site.run()
    assert site.codes(b"p") == ["ok", errors.TooLargeError.code]
