"""The sans-IO server: every pair of the table, the promises within a stream, and the bounds."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.daemon.protocol import intake
from runnel.daemon.protocol.replycache import CACHED_SECONDS
from runnel.daemon.protocol.server import ServerProtocol
from runnel.daemon.protocol.transitions import TRANSITIONS, Event, Phase
from runnel.errors import PipelineError
from runnel.pipeline.pipeline import Pipeline
from runnel.spec import Signal, TensorSpec
from runnel.wire import messages

from .support import POISON, UNLUCKY, Peer, SpyEngine, Tally, code, rows, tally_engine

FLAGS = {
    Event.FEED: {},
    Event.FEED_FIRST: {"sequence_start": True},
    Event.FEED_LAST: {"sequence_end": True},
    Event.FEED_ONLY: {"sequence_start": True, "sequence_end": True},
}


def served(max_streams: int = 1024) -> tuple[SpyEngine, ServerProtocol, Peer]:
    engine = tally_engine(max_streams)
    server = ServerProtocol(engine, "boot")
    return engine, server, Peer(server)


def bring(peer: Peer, phase: Phase) -> None:
    """A stream 'a' in this phase, with one chunk applied if it is open."""
    if phase is not Phase.ABSENT:
        peer.ask("open", "a")
        peer.ask("feed", "a", rows(1))
    if phase is Phase.ENDED:
        peer.ask("flush", "a")


def phase_of(engine: SpyEngine) -> Phase:
    stream = engine.streams.get("a")
    return Phase.ABSENT if stream is None else Phase.ENDED if stream.ended else Phase.LIVE


def test_the_table_is_total() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert all(set(row) == set(Event) for row in TRANSITIONS.values())


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("phase", Phase)
def test_every_pair_of_the_table(phase: Phase, event: Event) -> None:
    engine, _, peer = served()
    bring(peer, phase)
    before = engine.streams["a"].snapshot() if "a" in engine.streams else None
    op = "feed" if event in FLAGS else event.value
    if event is Event.RESTORE:
        elsewhere = tally_engine().open("b")
        elsewhere.feed(rows(7))
        reply = peer.restore("a", elsewhere.snapshot())
    else:
        reply, _ = peer.ask(op, "a", rows(2) if op == "feed" else None, **FLAGS.get(event, {}))
    expected = TRANSITIONS[phase][event]
    if isinstance(expected, Phase):
        assert code(reply) == "ok"
        assert phase_of(engine) is expected
    else:
        assert code(reply) == expected.code
        assert "'a'" in reply.error.message  # type: ignore[union-attr]
        assert phase_of(engine) is phase
        assert (engine.streams["a"].snapshot() if "a" in engine.streams else None) == before


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(
    ("event", "value"),
    [(e, UNLUCKY) for e in FLAGS] + [(Event.FEED_LAST, POISON), (Event.FEED_ONLY, POISON)],
)
def test_a_feed_that_fails_changes_nothing(phase: Phase, event: Event, value: float) -> None:
    engine, server, peer = served()
    bring(peer, phase)
    before = engine.streams["a"].snapshot() if "a" in engine.streams else None
    reply, y = peer.ask("feed", "a", rows(2, value), **FLAGS[event])
    assert code(reply) != "ok"
    if isinstance(TRANSITIONS[phase][event], Phase):
        assert code(reply) == "STAGE_FAILED"
    assert len(y) == 0
    assert phase_of(engine) is phase
    assert reply.applied_seq in (0, {Phase.ABSENT: 0, Phase.LIVE: 1, Phase.ENDED: 2}[phase])
    assert (engine.streams["a"].snapshot() if before else None) == before
    assert server.pending == 0


def test_outputs_and_seq_over_a_life() -> None:
    _, _, peer = served()
    reply, _ = peer.ask("open", "a")
    assert (reply.sequence_id, reply.epoch, reply.applied_seq) == ("a", 1, 0)
    reply, y = peer.ask("feed", "a", rows(1, 2, 3), seq=1)
    assert (y[:, 0].tolist(), reply.applied_seq) == ([1, 3], 1)
    reply, y = peer.ask("feed", "a", rows(4), seq=2)
    assert (y[:, 0].tolist(), reply.applied_seq) == ([6], 2)
    reply, y = peer.ask("flush", "a")
    assert (y[:, 0].tolist(), reply.applied_seq) == ([10], 3)
    reply, _ = peer.ask("reset", "a", seq=4)
    assert reply.applied_seq == 4
    reply, y = peer.ask("feed", "a", rows(5, 6), seq=5, sequence_end=True)
    assert (y[:, 0].tolist(), reply.applied_seq) == ([5, 11], 5)
    assert code(peer.ask("feed", "a", rows(1))[0]) == "UNKNOWN_STREAM"


def test_one_message_can_be_a_whole_stream() -> None:
    engine, _, peer = served()
    reply, y = peer.ask("feed", "", rows(1, 2), sequence_start=True, sequence_end=True)
    assert y[:, 0].tolist() == [1, 3]
    assert reply.sequence_id == "boot-1"
    assert not engine.streams


def test_names_made_by_the_daemon_differ_from_start_to_start() -> None:
    names = set()
    for boot in ("boot1", "boot2"):
        peer = Peer(ServerProtocol(tally_engine(), boot))
        names |= {peer.ask("open")[0].sequence_id, peer.ask("open")[0].sequence_id}
    assert len(names) == 4


def test_a_batch_holds_each_stream_once_and_all_that_arrived() -> None:
    engine, server, peer = served()
    for name in "abc":
        peer.ask("open", name)
    for value in (1, 2, 3):
        for name in "abc"[:value]:
            peer.send("feed", name, rows(value))
    assert engine.batches == []
    while server.pending:
        peer.take(server.run(0.0))
    assert engine.batches == [3, 2, 1]
    assert len(peer.replies) == 3 + 6


def test_order_within_a_stream_holds_for_every_operation() -> None:
    _, server, peer = served()
    ids = [
        peer.send("open", "a"),
        peer.send("feed", "a", rows(1)),
        peer.send("feed", "a", rows(2)),
        peer.send("flush", "a"),
        peer.send("feed", "a", rows(3)),  # ended
        peer.send("reset", "a"),
        peer.send("feed", "a", rows(4)),
        peer.send("close", "a"),
        peer.send("feed", "a", rows(5)),  # not open
        peer.send("open", "a"),
        peer.send("feed", "a", rows(6), sequence_end=True),
    ]
    while server.pending:
        peer.take(server.run(0.0))
    got = [(code(peer.replies[i][0]), peer.replies[i][1].get("y", rows())[:, 0].tolist()) for i in ids]
    assert got == [
        ("ok", []), ("ok", []), ("ok", [1]), ("ok", [3]), ("STREAM_ENDED", []), ("ok", []), ("ok", []),
        ("ok", []), ("UNKNOWN_STREAM", []), ("ok", []), ("ok", [6]),
    ]  # fmt: skip


def test_an_error_touches_no_other_request_of_its_batch() -> None:
    engine, server, peer = served()
    ids = {name: peer.send("open", name) for name in "abcd"}
    ids = {
        "a": peer.send("feed", "a", rows(1, 2)),
        "b": peer.send("feed", "b", rows(UNLUCKY)),
        "c": peer.send("feed", "c", np.zeros((3, 7), "float32")),
        "d": peer.send("feed", "d", rows(5, 6)),
    }
    peer.take(server.run(0.0))
    assert engine.batches == [4]
    assert [code(peer.replies[ids[n]][0]) for n in "abcd"] == ["ok", "STAGE_FAILED", "BAD_CHUNK", "ok"]
    assert peer.replies[ids["d"]][1]["y"][:, 0].tolist() == [5]
    assert [engine.streams[n].seq for n in "abcd"] == [1, 0, 0, 1]


def test_an_engine_that_breaks_is_answered_and_survived() -> None:
    engine, _, peer = served()
    bring(peer, Phase.LIVE)
    engine.broken = True
    reply, _ = peer.ask("feed", "a", rows(2))
    assert code(reply) == "LIMIT"
    assert "out of memory" in reply.error.message  # type: ignore[union-attr]
    assert code(peer.ask("feed", "b", rows(2), sequence_start=True)[0]) == "LIMIT"
    assert list(engine.streams) == ["a"]
    engine.broken = False
    assert code(peer.ask("feed", "a", rows(2))[0]) == "ok"


def test_hello_describes_the_pipeline() -> None:
    _, _, peer = served(max_streams=7)
    reply, _ = peer.ask("hello")
    server = reply.server
    assert server is not None
    assert server.inputs == [messages.TensorMetadata("x", "FP32", [-1, 2])]
    assert server.outputs == [messages.TensorMetadata("y", "FP32", [-1, 2])]
    assert (server.input_rate, server.latency, server.boot_id, server.limits.streams) == (100.0, 1, "boot", 7)


def test_a_pipeline_without_wire_datatypes_is_refused_at_the_start() -> None:
    stage = Tally()
    stage.outputs = Signal((TensorSpec("y", "complex64"),))
    with pytest.raises(PipelineError, match="'y' is complex64"):
        ServerProtocol(SpyEngine(Pipeline([stage], None, {})), "boot")


def test_two_peers_get_their_own_replies() -> None:
    _, server, one = served()
    two = Peer(server, b"two")
    first, second = one.send("open", "a"), two.send("open", "b")
    by_peer = {one.name: one, two.name: two}
    for out in server.run(0.0):
        by_peer[out.peer].take([out])
    assert list(one.replies) == [first]
    assert list(two.replies) == [second]


# Bounds.


def test_streams_are_bounded_by_the_engine() -> None:
    engine, _, peer = served(max_streams=2)
    assert [code(peer.ask("open")[0]) for _ in range(3)] == ["ok", "ok", "LIMIT"]
    reply, _ = peer.ask("feed", "late", rows(1), sequence_start=True)
    assert code(reply) == "LIMIT"
    assert reply.error is not None
    assert reply.error.retry
    assert len(engine.streams) == 2


def test_a_peer_is_bounded_without_refusals_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_PENDING_PER_PEER", 4)
    _, server, greedy = served()
    modest = Peer(server, b"modest")
    ids = [greedy.send("open", f"g{i}") for i in range(6)]
    assert [code(greedy.replies[i][0]) if i in greedy.replies else "taken" for i in ids] == (
        ["taken"] * 4 + ["LIMIT"] * 2
    )
    modest.send("open", "m")
    assert not modest.replies
    for out in server.run(0.0):
        (greedy if out.peer == b"peer" else modest).take([out])
    assert code(greedy.ask("open", "again")[0]) == "ok"


@pytest.mark.parametrize(("bound", "value"), [("MAX_PENDING", 3), ("MAX_PENDING_BYTES", 24)])
def test_all_queued_requests_are_bounded(monkeypatch: pytest.MonkeyPatch, bound: str, value: int) -> None:
    monkeypatch.setattr(intake, bound, value)
    monkeypatch.setattr(intake, "SPARE_REQUESTS", 0)
    monkeypatch.setattr(intake, "SPARE_BYTES", 0)
    _, server, peer = served()
    peer.ask("open", "a")
    taken = [peer.send("feed", "a", rows(1)) for _ in range(3)]  # 8 bytes each
    assert server.full
    refused = peer.send("feed", "a", rows(1))
    assert code(peer.replies[refused][0]) == "LIMIT"
    while server.pending:
        peer.take(server.run(0.0))
    assert [code(peer.replies[i][0]) for i in taken] == ["ok"] * 3
    assert not server.full


def test_a_bundle_is_taken_whole_or_waits_outside() -> None:
    """A client within its limits is never refused because others filled the server."""
    _, server, peer = served()
    peer.ask("open", "a")
    for i in range(intake.MAX_PENDING // intake.MAX_PENDING_PER_PEER):
        crowd = Peer(server, b"crowd%d" % i)
        while not server.full and server._intake.of(crowd.name)[0] < intake.MAX_PENDING_PER_PEER:
            crowd.send("snapshot", "a")
    assert server.full
    assert intake.MAX_PENDING - server.pending == messages.MAX_BUNDLE - 1


def test_the_largest_bundle_fits_if_the_server_is_just_not_full() -> None:
    _, server, peer = served()
    peer.ask("open", "a")
    for i in range(intake.MAX_PENDING // intake.MAX_PENDING_PER_PEER):
        crowd = Peer(server, b"crowd%d" % i)
        for _ in range(intake.MAX_PENDING_PER_PEER):
            if server.pending < intake.MAX_PENDING - messages.MAX_BUNDLE:
                crowd.send("snapshot", "a")
    assert server.pending == intake.MAX_PENDING - messages.MAX_BUNDLE
    assert not server.full
    numbers = map(str, range(messages.MAX_BUNDLE))
    asked = [messages.Request(v=1, op="snapshot", id=number, sequence_id="a") for number in numbers]
    bundle = messages.bundle([messages.encode_request(request) for request in asked])
    assert server.receive(b"late", bundle, 0.0) == []  # nothing is refused
    assert server.pending == intake.MAX_PENDING


def test_names_that_were_never_opened_are_forgotten() -> None:
    _, server, peer = served()
    for i in range(50):
        assert code(peer.ask("feed", f"ghost{i}", rows(1))[0]) == "UNKNOWN_STREAM"
        peer.ask("feed", f"short{i}", rows(1), sequence_start=True, sequence_end=True)
    server.tick(CACHED_SECONDS)
    assert len(server._table) == 0
    assert not server._intake._of
    assert (server._table.cached_bytes, server.due) == (0, None)


def test_a_stopping_server_runs_what_it_took_and_refuses_the_rest() -> None:
    _, server, peer = served()
    peer.ask("open", "a")
    taken = peer.send("feed", "a", rows(1))
    server.stop()
    for op in ("hello", "open", "feed"):
        assert code(peer.replies[peer.send(op, "b")][0]) == "SHUTDOWN"
    while server.pending:
        peer.take(server.run(0.0))
    assert code(peer.replies[taken][0]) == "ok"


def test_latency_counts_from_arrival_until_the_reply_is_sent() -> None:
    server = ServerProtocol(tally_engine(), "boot")
    for k in range(2):
        header = messages.Request(v=1, op="open", sequence_id=f"a{k}")
        server.receive(b"p", messages.encode_request(header), 10.0 + k)
    server.run(12.0)
    server.done(12.5)
    server.done(99.0)
    assert server.stats.latency.sum == 2.5 + 1.5
    assert server.stats.batch_seconds.sum == 0.5


def test_stats_hold_counters_and_gauges() -> None:
    _, server, peer = served(max_streams=3)
    bring(peer, Phase.LIVE)
    peer.ask("feed", "a", rows(1), seq=9)
    peer.ask("feed", "b", rows(1, 2), sequence_start=True, sequence_end=True)
    server.stop()
    waiting, _ = peer.ask("stats")
    told = waiting.stats
    assert told is not None
    assert (told["streams"], told["max_streams"], told["stopping"]) == (1, 3, True)
    assert (told["chunks"], told["opened"], told["batches"]) == (2, 2, 2)
    assert told["closed"] == {"ended": 1}
    assert told["errors"] == {"GAP": 1}
    assert told["requests"] == {"open": 1, "feed": 3, "stats": 1}


# Invalid messages.


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "feed"},
        {"op": "flush"},
        {"op": "reset"},
        {"op": "close"},
        {"op": "open", "sequence_id": "a", "sequence_start": True},
        {"op": "flush", "sequence_id": "a", "sequence_end": True},
        {"op": "open", "sequence_id": "a", "seq": 1},
        {"op": "snapshot", "sequence_id": "a", "seq": 1},
        {"op": "resume"},
        {"op": "snapshot"},
        {"op": "feed", "sequence_id": "a", "sequence_start": True, "seq": 2},
        {"op": "restore", "sequence_id": "a"},
    ],
)
def test_fields_that_do_not_fit_together(fields: dict[str, object]) -> None:
    server = ServerProtocol(tally_engine(), "boot")
    [out] = server.receive(b"p", [msgspec.msgpack.encode({"v": 1, "id": "7", **fields})], 0.0)
    reply, _ = messages.decode_reply(out.frames)
    assert (code(reply), reply.id, reply.op) == ("BAD_MESSAGE", "7", fields["op"])


def test_a_bad_stream_name_is_refused() -> None:
    engine, _, peer = served()
    reply, _ = peer.ask("open", "a\nb")
    assert code(reply) == "STREAM"
    assert not engine.streams


@given(st.lists(st.binary(max_size=200), max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_frames_get_one_reply(frames: list[bytes]) -> None:
    _, server, peer = served()
    replies = server.receive(b"p", frames, 0.0) or server.run(0.0)
    assert len(replies) == 1
    reply, _ = messages.decode_reply(replies[0].frames)
    assert reply.error is not None
    assert code(peer.ask("open", "a")[0]) == "ok"


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_interleaved_streams_equal_streams_alone(seed: int) -> None:
    """Order, isolation and exactly one reply each, for any arrivals between two runs."""
    rng = random.Random(seed)
    _, server, peer = served()
    names = [f"s{i}" for i in range(rng.randint(1, 5))]
    values: dict[str, list[int]] = {name: [] for name in names}
    ids: dict[str, list[str]] = {name: [peer.send("open", name)] for name in names}
    for _ in range(rng.randint(1, 40)):
        name = rng.choice(names)
        chunk = [rng.randint(-9, 9) for _ in range(rng.randint(1, 4))]
        values[name] += chunk
        ids[name].append(peer.send("feed", name, rows(*chunk), seq=len(ids[name])))
        if rng.random() < 0.3:
            peer.take(server.run(0.0))
    for name in names:
        ids[name].append(peer.send("flush", name))
    while server.pending:
        peer.take(server.run(0.0))
    for name in names:
        parts = [peer.replies[i][1].get("y", rows()) for i in ids[name]]
        assert np.concatenate(parts)[:, 0].tolist() == np.cumsum(values[name]).tolist()
    assert len(peer.replies) == sum(map(len, ids.values()))
