"""What the server remembers of a stream, and for how long: cached replies, its end, its last use."""

from __future__ import annotations

import pytest

from runnel.daemon.protocol import streamtable
from runnel.daemon.protocol.outgoing import Outgoing
from runnel.daemon.protocol.replycache import CACHED_REPLIES, CACHED_SECONDS
from runnel.daemon.protocol.server import ServerProtocol
from runnel.wire import messages
from runnel.wire.messages import Reply, Request
from runnel.wire.placement import Placement, worker_of

from .support import POISON, UNLUCKY, Peer, code, plain_engine, rows, tally_engine


def opened(**options: object) -> tuple[ServerProtocol, Peer]:
    server = ServerProtocol(tally_engine(), "boot", **options)  # type: ignore[arg-type]
    peer = Peer(server)
    peer.ask("open", "a", epoch=7)
    return server, peer


def test_a_repeat_is_answered_from_the_cache_and_not_done_again() -> None:
    server, peer = opened()
    first, y = peer.ask("feed", "a", rows(1, 2, 3), epoch=7, seq=1)
    peer.ask("feed", "a", rows(4), epoch=7, seq=2)
    again, same = peer.ask("feed", "a", rows(1, 2, 3), epoch=7, seq=1)
    assert (code(again), same.tolist()) == ("ok", y.tolist())
    assert again.id != first.id
    assert (first.applied_seq, again.applied_seq) == (1, 2)
    assert (server.stats.chunks, server.stats.repeats) == (2, 1)


@pytest.mark.parametrize("other", [rows(1, 2), rows(1, 2, 4), rows(1, 2, 3).astype("float64")])
def test_another_payload_under_an_applied_seq_is_a_conflict(other: object) -> None:
    server, peer = opened()
    peer.ask("feed", "a", rows(1, 2, 3), seq=1)
    assert code(peer.ask("feed", "a", other, seq=1)[0]) == "CONFLICT"  # type: ignore[arg-type]
    assert code(peer.ask("flush", "a", seq=1)[0]) == "CONFLICT"
    assert server.stats.chunks == 1


def test_the_same_bytes_in_another_shape_are_another_payload() -> None:
    _, peer = opened()
    peer.ask("feed", "a", rows(1, 2), seq=1)
    assert code(peer.ask("feed", "a", rows(1, 2).reshape(1, 4), seq=1)[0]) == "CONFLICT"


def test_cached_replies_of_a_stream_are_bounded() -> None:
    server, peer = opened()
    for seq in range(1, CACHED_REPLIES + 2):
        peer.ask("feed", "a", rows(seq), seq=seq)
    assert code(peer.ask("feed", "a", rows(1), seq=1)[0]) == "ALREADY_APPLIED"
    assert code(peer.ask("feed", "a", rows(2), seq=2)[0]) == "ok"
    told = peer.ask("hello")[0].server
    assert told is not None
    assert told.limits.kept_replies == CACHED_REPLIES
    assert server.stats.chunks == CACHED_REPLIES + 1


def test_cached_replies_are_bounded_in_bytes_and_the_oldest_are_evicted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streamtable, "MAX_CACHED_BYTES", 4 * (streamtable.CACHED_OVERHEAD + 8))
    server, peer = opened()
    peer.ask("open", "b")
    peer.ask("feed", "b", rows(0, 1), seq=1)  # each reply has 8 bytes
    for seq in (1, 2, 3):
        peer.ask("feed", "a", rows(0, 1)[: 1 + (seq == 1)], seq=seq)
    assert code(peer.ask("feed", "b", rows(0, 1), seq=1)[0]) == "ok"
    peer.ask("feed", "a", rows(9), seq=4)
    assert code(peer.ask("feed", "b", rows(0, 1), seq=1)[0]) == "ALREADY_APPLIED"
    assert code(peer.ask("feed", "a", rows(0, 1), seq=1)[0]) == "ok"
    assert server.document()["kept_bytes"] <= streamtable.MAX_CACHED_BYTES


def test_a_reply_larger_than_the_cache_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamtable, "MAX_CACHED_BYTES", streamtable.CACHED_OVERHEAD + 100)
    server, peer = opened()
    peer.ask("feed", "a", rows(*range(100)), seq=1)
    assert server.document()["kept_bytes"] == 0
    assert code(peer.ask("feed", "a", rows(*range(100)), seq=1)[0]) == "ALREADY_APPLIED"
    assert code(peer.ask("feed", "a", rows(1), seq=2)[0]) == "ok"
    assert code(peer.ask("feed", "a", rows(1), seq=2)[0]) == "ok"
    assert server.stats.chunks == 2


def test_cached_replies_expire() -> None:
    server, peer = opened()
    peer.ask("feed", "a", rows(1), seq=1)
    assert server.due == CACHED_SECONDS
    server.tick(CACHED_SECONDS - 1)
    assert code(peer.ask("feed", "a", rows(1), seq=1)[0]) == "ok"
    server.tick(CACHED_SECONDS)
    assert code(peer.ask("feed", "a", rows(1), seq=1)[0]) == "ALREADY_APPLIED"
    assert server.due is None


# Opening a stream.


def begin(peer: Peer, how: str, epoch: int = 5) -> Reply:
    """Open stream a in one of the ways, each with its own payload."""
    if how == "open":
        return peer.ask("open", "a", epoch=epoch)[0]
    if how.startswith("restore"):
        with plain_engine() as engine:
            stream = engine.open("x")
            stream.feed(rows(len(how)))
            return peer.restore("a", stream.snapshot(), epoch=epoch)
    end = how == "feed, end"
    return peer.ask("feed", "a", rows(len(how)), epoch=epoch, seq=1, sequence_start=True, sequence_end=end)[0]


BEGINNINGS = ("open", "restore", "restore another", "feed", "feed another")


@pytest.mark.parametrize("first", BEGINNINGS)
@pytest.mark.parametrize("second", [*BEGINNINGS, "feed, end"])
def test_an_opening_in_the_streams_epoch_is_a_repeat_or_a_conflict(first: str, second: str) -> None:
    engine = tally_engine()
    server = ServerProtocol(engine, "boot", first_epoch=50)
    peer = Peer(server)
    began = begin(peer, first)
    assert code(began) == "ok"
    before = engine.streams["a"].snapshot()
    again = begin(peer, second)
    assert code(again) == ("ok" if first == second else "CONFLICT")
    if first == second:
        assert (again.epoch, again.applied_seq) == (5, began.applied_seq)
    assert engine.streams["a"].snapshot() == before
    peer.ask("feed", "a", rows(1), epoch=5)
    assert code(begin(peer, second)) == code(again)  # also later
    epoch = peer.ask("resume", "a", epoch=5)[0].epoch
    assert code(begin(peer, second)) == "STREAM_EXISTS"
    assert code(begin(peer, second, epoch)) == code(again)  # unanswered requests are repeated in it


# Closing a stream.


def test_the_last_request_of_a_closed_stream_can_be_repeated() -> None:
    server, peer = opened()
    _, y = peer.ask("feed", "a", rows(1, 2), epoch=7, seq=1, sequence_end=True)
    again, same = peer.ask("feed", "a", rows(1, 2), epoch=7, seq=1, sequence_end=True)
    assert (code(again), same.tolist()) == ("ok", y.tolist())
    assert code(peer.ask("open", "a", epoch=7)[0]) == "UNKNOWN_STREAM"  # a late copy of the open
    assert code(peer.ask("close", "a", epoch=7, seq=2)[0]) == "UNKNOWN_STREAM"
    server.tick(CACHED_SECONDS)
    assert code(peer.ask("feed", "a", rows(1, 2), epoch=7, seq=1, sequence_end=True)[0]) == "UNKNOWN_STREAM"


@pytest.mark.parametrize("failing", ["feed", "end", "restore", "limit"])
def test_a_request_that_fails_to_open_a_stream_forgets_nothing_of_the_earlier_one(failing: str) -> None:
    engine = tally_engine(max_streams=1)
    server = ServerProtocol(engine, "boot")
    peer = Peer(server)
    peer.ask("open", "a", epoch=7)
    peer.ask("feed", "a", rows(1), epoch=7, seq=1)
    _, y = peer.ask("feed", "a", rows(2), epoch=7, seq=2, sequence_end=True)
    if failing == "feed":
        failed = peer.ask("feed", "a", rows(UNLUCKY), epoch=8, sequence_start=True)[0]
    elif failing == "end":
        failed = peer.ask("feed", "a", rows(POISON), sequence_start=True, sequence_end=True)[0]
    elif failing == "restore":
        failed = peer.restore("a", b"no snapshot", epoch=8)
    else:
        peer.ask("open", "b", epoch=1)
        failed = peer.ask("feed", "a", rows(1), epoch=8, seq=1, sequence_start=True)[0]
        peer.ask("close", "b", epoch=1)
    assert code(failed) in {"STAGE_FAILED", "BAD_SNAPSHOT", "LIMIT"}
    again, same = peer.ask("feed", "a", rows(2), epoch=7, seq=2, sequence_end=True)
    assert (code(again), same.tolist()) == ("ok", y.tolist())
    assert code(peer.ask("open", "a", epoch=7)[0]) == "UNKNOWN_STREAM"
    assert not engine.streams
    assert server.stats.opened == server.stats.closed.total()


def test_a_stream_is_closed_even_if_a_stage_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tally_engine()
    server = ServerProtocol(engine, "boot", idle_seconds=10.0)
    peer = Peer(server)

    def fail(states: object) -> None:
        raise ValueError("cannot let go")

    monkeypatch.setattr(engine.pipeline, "close", fail)
    for name in "abc":
        peer.ask("open", name, epoch=7)
    assert code(peer.ask("close", "a", epoch=7, seq=1)[0]) == "ok"
    assert code(peer.ask("close", "a", epoch=7, seq=1)[0]) == "ok"  # the cached reply
    assert code(peer.ask("feed", "b", rows(1), epoch=7, seq=1, sequence_end=True)[0]) == "ok"
    assert [notice(out)[1].sequence_id for out in server.tick(10.0)] == ["c"]
    assert (not engine.streams, server.stats.closed) == (True, {"closed": 1, "ended": 1, "idle": 1})


def test_a_late_chunk_never_reaches_the_next_stream_of_its_name() -> None:
    engine = tally_engine()
    server = ServerProtocol(engine, "boot", first_epoch=50)
    peer = Peer(server)
    old = peer.ask("open", "a")[0].epoch
    peer.ask("close", "a", epoch=old, seq=1)
    new = peer.ask("open", "a")[0].epoch
    assert new != old
    assert code(peer.ask("feed", "a", rows(1), epoch=old, seq=1)[0]) == "FENCED"
    assert engine.streams["a"].seq == 0


def test_the_memory_of_closed_streams_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamtable, "MAX_CLOSED", 3)
    server, peer = opened()
    for k in range(10):
        peer.ask("feed", f"s{k}", rows(1), epoch=9, sequence_start=True, sequence_end=True)
    assert len(server._table) == 1 + 3
    again = [
        code(peer.ask("feed", f"s{k}", rows(1), epoch=9, sequence_start=True, sequence_end=True)[0])
        for k in (9, 8, 7)
    ]
    assert (again, server.stats.repeats) == (["ok"] * 3, 3)


# Idle streams.


def notice(out: Outgoing) -> tuple[bytes, Reply]:
    return out.peer, messages.decode_reply(out.frames)[0]


def ask_at(server: ServerProtocol, peer: bytes, now: float, **fields: object) -> Reply:
    header = Request(v=1, **fields)  # type: ignore[arg-type]
    server.receive(peer, messages.encode_request(header), now)
    [out] = server.run(now)
    return messages.decode_reply(out.frames)[0]


def test_an_idle_stream_is_closed_and_its_last_peer_notified() -> None:
    engine = tally_engine()
    server = ServerProtocol(engine, "boot", idle_seconds=100.0)
    for name in "ab":
        ask_at(server, b"one", 0.0, op="open", sequence_id=name)
    ask_at(server, b"two", 50.0, op="reset", sequence_id="a")
    assert server.tick(99.0) == []
    [(peer, reply)] = [notice(out) for out in server.tick(100.0)]
    assert (peer, reply.op, reply.id, reply.sequence_id) == (b"one", "close", "", "b")
    assert (code(reply), list(engine.streams)) == ("UNKNOWN_STREAM", ["a"])
    assert server.tick(149.0) == []
    assert server.due == 150.0
    [(peer, reply)] = [notice(out) for out in server.tick(150.0)]
    assert (peer, reply.sequence_id, reply.applied_seq) == (b"two", "a", 1)
    late = ask_at(server, b"two", 151.0, op="flush", sequence_id="a")
    assert code(late) == "UNKNOWN_STREAM"
    assert "no request for 100 s" in late.error.message  # type: ignore[union-attr]
    assert server.stats.closed == {"idle": 2}


def test_a_stream_with_a_queued_request_is_not_idle() -> None:
    engine = tally_engine()
    server = ServerProtocol(engine, "boot", idle_seconds=10.0)
    ask_at(server, b"one", 0.0, op="open", sequence_id="a")
    server.receive(b"one", messages.encode_request(Request(v=1, op="flush", sequence_id="a")), 9.0)
    assert server.tick(11.0) == []
    [out] = server.run(11.0)
    assert code(notice(out)[1]) == "ok"


def test_a_fenced_request_does_not_keep_a_stream_awake() -> None:
    server = ServerProtocol(tally_engine(), "boot", idle_seconds=10.0)
    ask_at(server, b"one", 0.0, op="open", sequence_id="a", epoch=5)
    assert code(ask_at(server, b"two", 9.0, op="reset", sequence_id="a", epoch=6)) == "FENCED"
    [(peer, _)] = [notice(out) for out in server.tick(10.0)]
    assert peer == b"one"


def test_no_stream_is_idle_without_a_limit() -> None:
    server, _ = opened()
    assert server.tick(1e9) == []
    assert server.due is None


# Resuming.


def test_resume_fences_the_holder_and_returns_the_seq() -> None:
    server, one = opened()
    two = Peer(server, b"two")
    one.ask("feed", "a", rows(1), epoch=7, seq=1)
    reply, _ = two.ask("resume", "a")
    assert (code(reply), reply.applied_seq) == ("ok", 1)
    assert reply.epoch not in (0, 7)
    fenced, _ = one.ask("feed", "a", rows(2), epoch=7, seq=2)
    assert (code(fenced), fenced.epoch, fenced.applied_seq) == ("FENCED", 0, 0)
    assert code(one.ask("resume", "a", epoch=7)[0]) == "FENCED"
    assert code(two.ask("feed", "a", rows(2), epoch=reply.epoch, seq=2)[0]) == "ok"


def test_a_resume_whose_reply_was_lost_can_be_repeated() -> None:
    server, peer = opened()
    first = peer.ask("resume", "a", epoch=7)[0]
    again = peer.ask("resume", "a", epoch=7)[0]
    assert (code(again), again.epoch) == ("ok", first.epoch)
    assert server.stats.resumed == 1


@pytest.mark.parametrize("stated", [7, 0])
def test_a_resume_that_names_its_epoch_is_a_repeat_of_itself_alone(stated: int) -> None:
    server, one = opened()
    first = one.ask("resume", "a", epoch=stated, new_epoch=70)[0]
    assert (code(first), first.epoch) == ("ok", 70)
    again = one.ask("resume", "a", epoch=stated, new_epoch=70)[0]
    assert (code(again), again.epoch, server.stats.resumed) == ("ok", 70, 1)
    assert code(one.ask("feed", "a", rows(1), epoch=70, seq=1)[0]) == "ok"


@pytest.mark.parametrize("mine", [70, 0])
@pytest.mark.parametrize("theirs", [71, 0])
def test_with_two_holders_of_one_epoch_the_first_to_resume_has_the_stream(mine: int, theirs: int) -> None:
    server, one = opened()
    two = Peer(server, b"two")
    first = one.ask("resume", "a", epoch=7, new_epoch=mine)[0]
    second = two.ask("resume", "a", epoch=7, new_epoch=theirs)[0]
    if mine or theirs:  # otherwise neither states an epoch, and the second passes for the first again
        assert (code(second), second.epoch) == ("FENCED", 0)
    assert code(one.ask("feed", "a", rows(1), epoch=first.epoch, seq=1)[0]) == "ok"
    late = one.ask("resume", "a", epoch=7, new_epoch=mine)[0]  # a copy of the first changes nothing
    assert (code(late), late.epoch) == ("ok", first.epoch)
    # A takeover from the holder states no epoch; then the first one is fenced.
    taken = two.ask("resume", "a", new_epoch=72)[0]
    assert taken.epoch == 72
    assert code(one.ask("feed", "a", rows(2), epoch=first.epoch, seq=2)[0]) == "FENCED"
    assert code(one.ask("resume", "a", epoch=first.epoch, new_epoch=73)[0]) == "FENCED"
    assert code(two.ask("feed", "a", rows(2), epoch=72, seq=2)[0]) == "ok"


def test_a_new_epoch_belongs_to_resume_and_is_new() -> None:
    _, peer = opened()
    for op, fields in (("feed", {"x": rows(1)}), ("open", {}), ("reset", {})):
        assert code(peer.ask(op, "a", epoch=7, new_epoch=8, **fields)[0]) == "BAD_MESSAGE"  # type: ignore[arg-type]
    assert code(peer.ask("resume", "a", epoch=7, new_epoch=7)[0]) == "BAD_MESSAGE"
    assert code(peer.ask("reset", "a", epoch=7, seq=1)[0]) == "ok"


def test_unanswered_requests_are_answered_in_the_new_epoch() -> None:
    server, peer = opened()
    _, y = peer.ask("feed", "a", rows(1, 2), epoch=7, seq=1)
    epoch = peer.ask("resume", "a", epoch=7)[0].epoch
    again, same = peer.ask("feed", "a", rows(1, 2), epoch=epoch, seq=1)
    assert (code(again), same.tolist()) == ("ok", y.tolist())
    assert server.stats.chunks == 1


# Users and workers.


def test_one_name_and_two_users_are_two_streams() -> None:
    engine = tally_engine()
    server = ServerProtocol(engine, "boot")

    def ask(user: str, **fields: object) -> Reply:
        header = Request(v=1, **fields)  # type: ignore[arg-type]
        server.receive(b"p", messages.encode_request(header), 0.0, user)
        [out] = server.run(0.0)
        return messages.decode_reply(out.frames)[0]

    assert [code(ask(u, op="open", sequence_id="mic")) for u in ("ann", "bob", "")] == ["ok"] * 3
    assert ask("ann", op="reset", sequence_id="mic").sequence_id == "mic"
    assert code(ask("ann", op="close", sequence_id="mic")) == "ok"
    assert code(ask("eve", op="close", sequence_id="mic")) == "UNKNOWN_STREAM"
    assert sorted(engine.streams) == ["bob/mic", "mic"]


def test_a_stream_belongs_to_one_worker_and_others_refuse_it() -> None:
    addresses = [f"ipc:///w.{i}" for i in range(3)]
    workers = [
        Peer(ServerProtocol(tally_engine(), f"boot{i}", placement=Placement(i, addresses))) for i in range(3)
    ]
    for name in ("mic-1", "mic-2", "mic-3", "größe"):
        said = [code(worker.ask("open", name)[0]) for worker in workers]
        assert said.count("ok") == 1
        assert said.index("ok") == worker_of(name, 3)
        assert said.count("WRONG_WORKER") == 2
    for i, worker in enumerate(workers):
        made = worker.ask("open")[0].sequence_id
        assert worker_of(made, 3) == i
        told = worker.ask("hello")[0].server
        assert told is not None
        assert (told.worker, told.workers) == (i, addresses)


def test_placement_is_the_crc_32_of_the_page() -> None:
    # From the CRC catalogue: the check value of CRC-32/ISO-HDLC is cbf43926 for "123456789".
    assert [worker_of("123456789", n) for n in (1, 2, 7, 1000)] == [
        0,
        *(0xCBF43926 % n for n in (2, 7, 1000)),
    ]
