"""Users against each other: a user within its share never notices the others."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.daemon.protocol import intake, streamtable
from runnel.daemon.protocol.server import ServerProtocol
from runnel.daemon.protocol.shares import FairFifo, Quota
from runnel.wire import messages
from runnel.wire.messages import Request
from runnel.wire.tensors import pack

from .support import POISON, UNLUCKY, rows, tally_engine

USERS = ("bob", "eve", "mal")
PART = 4  # of each user, of every resource
EVENTS = 250


class Site:
    """A server and its users. Every bound is small, so that each is met."""

    def __init__(self, users: int) -> None:
        self.server = ServerProtocol(tally_engine(4 * 3 * PART), "boot", idle_seconds=100.0)
        self.server.expect_users(users)
        self.now = 0.0
        self.heard: dict[str, list[Any]] = {user: [] for user in USERS}

    def tell(self, user: str, request: dict[str, Any], x: Any) -> None:
        infos, buffers = pack({"x": x}) if x is not None else ([], [])
        frames = messages.encode_request(Request(v=1, inputs=infos, **request), buffers)
        self._hear(self.server.receive(user.encode(), frames, self.now, user))

    def run(self) -> None:
        self._hear(self.server.run(self.now))
        self.server.done(self.now)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self._hear(self.server.tick(self.now))

    def _hear(self, outgoing: list[Any]) -> None:
        for out in outgoing:
            self.heard[out.peer.decode()].append([bytes(frame) for frame in out.frames])


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamtable, "CACHED_REPLIES", 2)
    monkeypatch.setattr(streamtable, "MAX_CLOSED", 3 * PART)
    monkeypatch.setattr(streamtable, "MAX_CACHED_BYTES", 3 * 2 * PART * (streamtable.CACHED_OVERHEAD + 32))
    monkeypatch.setattr(intake, "MAX_PENDING", 4 * 3 * PART + 1)
    monkeypatch.setattr(intake, "SPARE_REQUESTS", 1)
    monkeypatch.setattr(intake, "MAX_PENDING_BYTES", 4 * 3 * PART * 16 + 1)
    monkeypatch.setattr(intake, "SPARE_BYTES", 1)


def modest(rng: random.Random, seqs: dict[str, int]) -> tuple[dict[str, Any], Any]:
    """A request of a user with at most `PART` names. Most are new, some are repeats."""
    name = f"s{rng.randrange(PART)}"
    seq = max(1, seqs.get(name, 0) + rng.choice((1, 1, 1, 0, -1)))
    op = rng.choice(("open", "feed", "feed", "feed", "feed", "close", "flush", "reset"))
    request = {"op": op, "id": f"{rng.random()}", "sequence_id": name, "epoch": 5}
    if op == "open":
        return request, None
    seqs[name] = seq if op != "close" else 0
    request["seq"] = seq
    if op != "feed":
        return request, None
    if seq == 1 and rng.random() < 0.5:
        request["sequence_start"] = True
    request["sequence_end"] = rng.random() < 0.2
    return request, rows(*rng.choice(((1.0,), (2.0, 3.0), (UNLUCKY,), (POISON,))))


def greedy(rng: random.Random) -> tuple[dict[str, Any], Any]:
    """A request of a user who takes everything available."""
    name = f"s{rng.randrange(200)}"
    op = rng.choice(("open", "open", "clip", "clip", "feed", "feed"))
    request = {"op": "feed", "id": "x", "sequence_id": name}
    if op == "open":
        return request | {"op": "open"}, None
    ends = op == "clip"
    request |= {"sequence_start": rng.random() < 0.5 or ends, "sequence_end": ends}
    return request, rows(*range(rng.choice((1, 2, 40))))


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("seed", range(60))
def test_a_user_within_its_share_is_answered_as_if_alone(seed: int) -> None:
    rng = random.Random(seed)
    together, alone = Site(len(USERS)), Site(1)
    seqs: dict[str, int] = {}
    waiting = refused = 0
    for _ in range(EVENTS):
        turn = rng.random()
        if turn < 0.25 and waiting < PART:
            request, x = modest(rng, seqs)
            for site in (together, alone):
                site.tell("bob", request, x)
            waiting += 1
        elif turn < 0.85:
            user = rng.choice(USERS[1:])
            before = len(together.heard[user])
            together.tell(user, *greedy(rng))
            refused += len(together.heard[user]) - before
        elif turn < 0.99:
            while together.server.pending:
                together.run()
            while alone.server.pending:
                alone.run()
            waiting = 0
            assert together.heard["bob"] == alone.heard["bob"]
        else:
            seconds = rng.choice((1.0, 30.0))
            for site in (together, alone):
                site.tick(seconds)
    streams = together.server._streams._quota
    assert streams.taken == len(together.server._engine.streams) <= streams.limit
    assert refused, "the others met no bound: nothing was shown"


@pytest.mark.usefixtures("_small")
def test_a_single_user_has_everything() -> None:
    site = Site(1)
    for at in range(4 * 3 * PART):
        site.tell("eve", {"op": "open", "sequence_id": f"s{at}"}, None)
    assert site.heard["eve"] == []
    site.run()
    assert len(site.server._engine.streams) == 4 * 3 * PART


@given(st.data())
def test_items_are_evicted_from_the_user_who_holds_the_most(data: st.DataObject) -> None:
    """Compared with a plain list, whose heaviest user is searched for."""
    kept: FairFifo[tuple[int, str, int]] = FairFifo()
    plain: deque[tuple[int, str, int]] = deque()
    for at in range(data.draw(st.integers(1, 60))):
        if plain and data.draw(st.booleans()):
            weights = {user: sum(w for _, u, w in plain if u == user) for _, user, _ in plain}
            item = kept.excess()
            assert weights[item[1]] == max(weights.values())
            assert item == next(held for held in plain if held[1] == item[1])
            if data.draw(st.booleans()):
                item = plain[data.draw(st.integers(0, len(plain) - 1))]
            plain.remove(item)
            kept.remove(item[1], item, item[2])
        else:
            item = at, data.draw(st.sampled_from("abcde")), data.draw(st.integers(1, 5))
            plain.append(item)
            kept.add(item[1], item, item[2])
        assert (kept.oldest(), len(kept)) == (plain[0] if plain else None, len(plain))
        assert kept.weight == sum(weight for *_, weight in plain)


@given(places=st.integers(1, 40), wished=st.integers(0, 12), users=st.integers(2, 6), draw=st.data())
def test_each_user_can_take_its_part_at_any_time(
    places: int, wished: int, users: int, draw: st.DataObject
) -> None:
    shares = Quota(places, wished)
    shares.users = users
    held = dict.fromkeys("abcdef"[:users], 0)
    for _ in range(draw.draw(st.integers(0, 80))):
        user = draw.draw(st.sampled_from(sorted(held)))
        more = draw.draw(st.integers(1, 3))
        if draw.draw(st.booleans()):
            if shares.has_room(user, more):
                shares.take(user, more)
                held[user] += more
        elif held[user] >= more:
            shares.give(user, more)
            held[user] -= more
        assert shares.taken == sum(held.values()) <= places
        assert all(shares.held(user) == n for user, n in held.items())
        if users * shares.part <= places:
            for user, n in held.items():
                assert n >= shares.part or shares.has_room(user, shares.part - n), "its part is taken"
        if users * shares.part <= places and not sum(held.values()):
            assert shares.has_room("a", places - (users - 1) * shares.part), (
                "more than the others' parts is free"
            )


def test_more_users_than_places_leave_a_quarter_to_those_who_have_none() -> None:
    shares = Quota(40)
    shares.users = 1000
    while shares.has_room("eve"):
        shares.take("eve")
    assert shares.held("eve") == 30
    assert shares.has_room("bob")
    shares.take("bob")
    assert not shares.has_room("bob")


def test_unexpected_users_are_counted_when_they_come() -> None:
    shares = Quota(40)
    for _ in range(10):
        shares.take("eve")
    assert shares.has_room("eve", 30)
    assert shares.has_room("bob", 5)
    shares.take("bob", 5)
    assert (shares.users, shares.part) == (2, 5)
    assert not shares.has_room("eve", 26)
    assert shares.has_room("eve", 25)
    assert not shares.has_room("mal", 26)
    shares.users = 1  # the list names one user; both hold places
    assert shares.users == 2
