"""Replies waiting for slow peers: every bound holds, and replies stay in order."""

from __future__ import annotations

import logging
from collections import defaultdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runnel.daemon.protocol import outbox as module
from runnel.daemon.protocol.outbox import (
    FIRST_RETRY,
    LAST_RETRY,
    MAX_BACKLOG,
    SLOW_SECONDS,
    Outbox,
    SendResult,
)
from runnel.daemon.protocol.stats import Stats


class Peers:
    """The receiving side: how many replies each peer still takes; None for one that is gone."""

    def __init__(self) -> None:
        self.room: dict[bytes, int | None] = defaultdict(int)
        self.got: dict[bytes, list[bytes]] = defaultdict(list)
        self.tries = 0
        self.stats = Stats()
        self.outbox = Outbox(self.send, self.stats)

    def send(self, peer: bytes, frames: object, nbytes: int) -> SendResult:
        self.tries += 1
        room = self.room[peer]
        if room is None:
            return SendResult.GONE
        if not room:
            return SendResult.FULL
        self.room[peer] = room - 1
        assert isinstance(frames, list)
        assert nbytes == sum(map(len, frames))
        self.got[peer].append(frames[0])
        return SendResult.SENT

    def post(self, peer: bytes, *texts: bytes, now: float = 0.0) -> None:
        for text in texts:
            self.outbox.post(peer, [text], now)


def test_waiting_replies_follow_in_order_once_the_peer_reads() -> None:
    peers = Peers()
    peers.room[b"p"] = 1
    peers.post(b"p", b"1", b"2", b"3")
    assert peers.got[b"p"] == [b"1"]
    assert peers.outbox.waiting == 2
    assert "2 replies wait" in peers.outbox.refuses(b"p")
    assert peers.outbox.refuses(b"other") == ""
    assert peers.outbox.due == FIRST_RETRY
    peers.room[b"p"] = 10
    peers.post(b"p", b"4")  # not before the waiting ones, though there is room
    peers.outbox.retry(FIRST_RETRY)
    assert peers.got[b"p"] == [b"1", b"2", b"3", b"4"]
    assert peers.outbox.refuses(b"p") == ""
    assert peers.outbox.due is None
    assert (peers.stats.dropped_replies, peers.stats.dropped_peers) == (0, 0)


def test_a_peer_that_reads_nothing_is_dropped_and_served_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    peers = Peers()
    peers.post(b"p", b"1", b"2")
    now = 0.0
    while (due := peers.outbox.due) is not None:
        assert FIRST_RETRY <= due - now <= LAST_RETRY
        now = due
        peers.outbox.retry(now)
    assert SLOW_SECONDS <= now <= SLOW_SECONDS + LAST_RETRY
    assert peers.tries < 40, "it costs the others next to nothing"
    assert (peers.stats.dropped_replies, peers.stats.dropped_peers) == (2, 1)
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    # Nothing is sent after a gap, though there is room.
    peers.room[b"p"] = 1
    peers.post(b"p", b"3")
    assert not peers.got[b"p"]
    assert peers.stats.dropped_replies == 3
    # Its next request is refused, with the reason; after that it is served as usual.
    assert "dropped" in peers.outbox.refuses(b"p")
    peers.outbox.refuse(b"p", [b"refused"], now)
    assert peers.got[b"p"] == [b"refused"]
    assert peers.outbox.refuses(b"p") == ""
    peers.room[b"p"] = 1
    peers.post(b"p", b"4")
    assert peers.got[b"p"] == [b"refused", b"4"]


def test_a_slow_peer_is_not_dropped() -> None:
    peers = Peers()
    peers.post(b"p", *[b"%d" % i for i in range(100)])
    for turn in range(99):
        peers.room[b"p"] = 1
        peers.outbox.retry((turn + 1) * SLOW_SECONDS * 0.9)
    assert len(peers.got[b"p"]) == 99
    assert peers.stats.dropped_peers == 0


def test_a_dropped_peer_that_cannot_take_a_refusal_stays_dropped() -> None:
    peers = Peers()
    peers.post(b"p", b"1")
    peers.outbox.retry(SLOW_SECONDS)
    peers.outbox.refuse(b"p", [b"refused"], SLOW_SECONDS)
    assert "dropped" in peers.outbox.refuses(b"p")
    assert peers.outbox.waiting == 0
    assert peers.stats.dropped_replies == 2


def test_disconnected_client_loses_its_queued_replies() -> None:
    peers = Peers()
    peers.room[b"p"] = None
    peers.post(b"p", b"1")
    peers.post(b"q", b"1", b"2")
    peers.room[b"q"] = None
    peers.outbox.retry(1.0)
    assert peers.stats.dropped_replies == 3
    assert peers.stats.dropped_peers == 0
    assert peers.outbox.waiting == 0
    assert peers.outbox.refuses(b"q") == ""


def test_a_peers_count_is_bounded() -> None:
    peers = Peers()
    peers.post(b"p", *[b""] * MAX_BACKLOG)
    assert peers.stats.dropped_peers == 0
    peers.post(b"p", b"")
    assert peers.stats.dropped_peers == 1
    assert peers.stats.dropped_replies == MAX_BACKLOG + 1
    assert peers.outbox.waiting == 0


def test_a_peers_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BACKLOG_BYTES", 100)
    peers = Peers()
    peers.post(b"p", bytes(50), bytes(50))
    assert peers.stats.dropped_peers == 0
    peers.post(b"p", b"x")
    assert peers.stats.dropped_peers == 1


@pytest.mark.parametrize(("bound", "most", "size"), [("MAX_BACKLOGS", 9, 1), ("MAX_BACKLOGS_BYTES", 90, 10)])
def test_the_peer_with_most_unread_is_dropped_first(
    bound: str, most: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, bound, most)
    peers = Peers()
    peers.post(b"small", bytes(size))
    peers.post(b"large", *[bytes(size)] * 6)
    peers.post(b"next", *[bytes(size)] * 2)
    assert peers.stats.dropped_peers == 0
    peers.post(b"small", bytes(size))
    assert peers.stats.dropped_peers == 1
    assert "dropped" in peers.outbox.refuses(b"large")
    assert "2 replies" in peers.outbox.refuses(b"small")


def test_remembered_dropped_peers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DROPPED", 2)
    peers = Peers()
    for name in (b"1", b"2", b"3"):
        peers.post(name, b"")
        peers.outbox.retry(SLOW_SECONDS)
    assert [bool(peers.outbox.refuses(name)) for name in (b"1", b"2", b"3")] == [False, True, True]


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["post", "refuse", "read", "leave", "wait"]),
        st.sampled_from([b"a", b"b", b"c"]),
        st.integers(1, 40),
    ),
    max_size=60,
)


@example([("post", b"a", 21), ("leave", b"a", 1), ("refuse", b"a", 1)])
@given(ACTIONS)
def test_bounds_hold_and_replies_are_in_order_or_counted(
    actions: list[tuple[str, bytes, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("MAX_BACKLOG", 20), ("MAX_BACKLOG_BYTES", 60), ("MAX_BACKLOGS", 40), ("MAX_BACKLOGS_BYTES", 100),
        ):  # fmt: skip
            patch.setattr(module, name, value)
        peers, now, posted = Peers(), 0.0, 0
        for what, peer, n in actions:
            if what == "wait":
                now += n / 4
                peers.outbox.retry(now)
            elif what == "read":
                peers.room[peer] = (peers.room[peer] or 0) + n
            elif what == "leave":
                peers.room[peer] = None
            else:
                send = peers.outbox.post if what == "post" else peers.outbox.refuse
                for _ in range(n):
                    posted += 1
                    send(peer, [b"%04d" % posted], now)
            assert peers.outbox.waiting <= 40
            assert (peers.outbox.due is None) == (peers.outbox.waiting == 0)
        got = [text for texts in peers.got.values() for text in texts]
        assert all(texts == sorted(texts) for texts in peers.got.values())
        assert len(got) + peers.outbox.waiting + peers.stats.dropped_replies == posted
