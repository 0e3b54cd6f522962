"""Notices about the streams of a daemon: each end once, with its reason."""

from __future__ import annotations

from runnel import Notice
from runnel.daemon.protocol.server import ServerProtocol
from runnel.notices import Notices

from .support import POISON, UNLUCKY, Peer, code, rows, tally_engine


def heard_by(engine) -> list[tuple[str, str, int, str]]:
    heard: list[Notice] = []
    engine.notices = Notices([("test", heard.append)])
    return heard


def told(heard: list[Notice]) -> list[tuple[str, str, int, str]]:
    return [(n.event, n.stream, n.seq, n.reason) for n in heard]


def test_each_way_that_a_stream_ends_has_its_reason() -> None:
    engine = tally_engine()
    heard = heard_by(engine)
    server = ServerProtocol(engine, "boot", idle_seconds=10.0)
    peer = Peer(server)
    peer.ask("open", "closed")
    peer.ask("feed", "closed", rows(1))
    peer.ask("close", "closed")
    peer.ask("feed", "ended", rows(1), sequence_start=True, sequence_end=True)
    peer.ask("feed", "never", rows(UNLUCKY), sequence_start=True)
    peer.ask("open", "idle")
    peer.ask("reset", "idle")
    assert [out.peer for out in server.tick(100.0)] == [b"peer"]
    peer.ask("open", "last")
    engine.close()
    assert [n for n in told(heard) if n[0] != "failed"] == [
        ("opened", "closed", 0, "new"),
        ("closed", "closed", 1, "closed"),
        ("opened", "ended", 0, "new"),
        ("closed", "ended", 1, "ended"),
        ("opened", "never", 0, "new"),
        ("closed", "never", 0, "failed"),
        ("opened", "idle", 0, "new"),
        ("reset", "idle", 0, ""),
        ("idle", "idle", 0, "was closed: no request for 10 s"),
        ("closed", "idle", 0, "idle"),
        ("opened", "last", 0, "new"),
        ("evicted", "last", 0, "the engine is closed"),
        ("closed", "last", 0, "evicted"),
    ]
    (failed,) = (n for n in heard if n.event == "failed")
    assert (failed.stream, failed.seq) == ("never", 0)
    assert "stage '0: tally'" in failed.reason


def test_an_undone_chunk_opens_and_closes_nothing() -> None:
    """The last chunk's step succeeds and its flush fails: the stream is unchanged."""
    engine = tally_engine()
    heard = heard_by(engine)
    peer = Peer(ServerProtocol(engine, "boot"))
    peer.ask("open", "a")
    peer.ask("feed", "a", rows(1))
    stream = engine.streams["a"]
    assert code(peer.ask("feed", "a", rows(POISON), sequence_end=True)[0]) == "STAGE_FAILED"
    assert engine.streams["a"] is stream
    assert [n[0] for n in told(heard)] == ["opened", "failed"]
    reply, _ = peer.ask("feed", "a", rows(2))
    assert (code(reply), reply.applied_seq) == ("ok", 2)


def test_a_repeat_is_no_event() -> None:
    engine = tally_engine()
    heard = heard_by(engine)
    peer = Peer(ServerProtocol(engine, "boot"))
    for _ in range(3):
        peer.ask("feed", "a", rows(1), sequence_start=True, epoch=7, seq=1)
    assert told(heard) == [("opened", "a", 0, "new")]
