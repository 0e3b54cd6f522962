"""The client protocol against the server protocol, over a link that loses, repeats and delays."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel import errors
from runnel.client.protocol import MAX_UNHEARD, Conversation, Line, Ticket
from runnel.daemon.protocol.server import Server
from runnel.spec import Array
from runnel.wire import messages
from runnel.wire.tensors import pack, unpack

from .support import UNLUCKY, SpyEngine, plain_engine, rows, tally_engine

EPOCH = 2**62
MANY = settings(max_examples=500 if settings().max_examples < 100 else 5_000)


class Link:
    """Two queues between a client protocol and a server, and connections that end.

    A connection is a peer of the server. A message in flight at a cut is lost, or reaches the server later as
    a message of a peer that is gone, as with a kernel's buffer.
    """

    def __init__(self, server: Server, prefix: str, beside: Link | None = None) -> None:
        self.server = server
        self.links: list[Link] = beside.links if beside else []  # all links that the server answers
        self.links.append(self)
        self.talk = Conversation(prefix, count(EPOCH + 2**40 + hash(prefix) % 2**32).__next__)
        self.connection = 0
        self.up: deque[list[bytes]] = deque()
        self.down: deque[list[bytes]] = deque()
        self.late: deque[tuple[bytes, list[bytes]]] = deque()
        self.settled: list[Ticket] = []
        self.fresh = False  # connected anew, before the client protocol knows of it
        self.prefix = prefix.encode()

    @property
    def peer(self) -> bytes:
        return self.prefix + str(self.connection).encode()

    def send(self, n: int = 1_000_000) -> None:
        for id in list(self.talk.outbox)[:n]:
            self.up.append(self.talk.outbox.pop(id))

    def arrive(self, n: int = 1_000_000) -> None:
        for _ in range(min(n, len(self.up))):
            self.take(self.server.receive(self.peer, self.up.popleft(), 0.0))

    def arrive_late(self) -> None:
        if self.late:
            peer, frames = self.late.popleft()
            self.take(self.server.receive(peer, frames, 0.0))

    def run(self) -> None:
        self.take(self.server.run(0.0))

    def take(self, outgoing: list[Any]) -> None:
        for link in self.links:
            link.down.extend(out.frames for out in outgoing if out.peer == link.peer)

    def hear(self, n: int = 1_000_000) -> None:
        """As `connection.Connection.turn`: read what came over a new connection before reporting it."""
        for _ in range(min(n, len(self.down))):
            self.settled += self.talk.received(self.down.popleft(), self.fresh)
        if self.fresh:
            self.fresh = False
            self.talk.reconnected()

    def cut(self, lost_up: int, lost_down: int) -> None:
        """Lose all but the first messages each way; some of the lost requests arrive later."""
        kept = list(self.up)[lost_up:]
        self.late.extend((self.peer, frames) for frames in kept)
        self.up.clear()
        while len(self.down) > lost_down:
            self.down.pop()
        self.connection += 1
        self.fresh = True

    def quiet(self) -> bool:
        return not (self.talk.in_flight or self.up or self.down or self.late)

    def finish(self) -> None:
        """Run until everything is answered."""
        for _ in range(100):
            self.hear()
            self.send()
            self.arrive()
            self.arrive_late()
            while self.server.pending:
                self.run()
            if self.quiet():
                return
        raise AssertionError("it does not end")


def opened(link: Link, name: str) -> Line:
    ticket = link.talk.open(name, EPOCH + hash(name) % 2**32)
    link.finish()
    ticket.answer()
    assert ticket.line is not None
    return ticket.line


def feed(link: Link, line: Line, chunk: Array) -> Ticket:
    return link.talk.post(line, "feed", *pack({"x": chunk}))


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the error that it raises."""
    try:
        return call()
    except errors.RunnelError as error:
        return error


def y(ticket: Ticket) -> Array:
    return unpack(ticket.answer().outputs, ticket.payload)["y"]


@pytest.fixture
def server() -> Server:
    return Server(tally_engine(), "boot")


@pytest.fixture
def link(server: Server) -> Link:
    return Link(server, "a")


NAMES = ("s0", "s1", "s2")
STEPS = st.one_of(
    st.tuples(st.just("feed"), st.sampled_from(range(len(NAMES))), st.integers(1, 9)),
    st.tuples(
        st.sampled_from(("flush", "reset", "snapshot")), st.sampled_from(range(len(NAMES))), st.just(0)
    ),
    st.tuples(st.sampled_from(("send", "arrive", "hear")), st.integers(1, 4), st.just(0)),
    st.tuples(st.sampled_from(("run", "late", "renew")), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("cut"), st.integers(0, 4), st.integers(0, 4)),
)


@MANY
@given(st.lists(STEPS, max_size=60))
def test_lost_messages_do_not_change_the_outputs(steps: list[tuple[Any, ...]]) -> None:
    """Requests of several streams, pipelined; the connection cut anywhere; old messages arriving late."""
    server = Server(tally_engine(), "boot")
    link, oracle = Link(server, "a"), plain_engine()
    lines = [opened(link, name) for name in NAMES]
    local = [oracle.open(name) for name in NAMES]
    expected: list[tuple[Ticket, Callable[[], Any]]] = []
    for op, a, b in steps:
        if op == "feed":
            expected.append((feed(link, lines[a], rows(b)), lambda s=local[a], b=b: s.feed(rows(b))))
        elif op in ("flush", "reset", "snapshot"):
            expected.append((link.talk.post(lines[a], op), getattr(local[a], op)))
        elif op == "cut":
            link.cut(a, b)
        elif op == "late":
            link.arrive_late()
        elif op == "run":
            link.run()
        elif op == "renew":
            link.talk.renew(lines[a])
        else:
            getattr(link, op)(a)
    link.finish()
    failed: set[Line] = set()
    for ticket, reference in expected:
        assert ticket.done
        assert ticket.line is not None
        if ticket.line in failed and ticket.op == "snapshot":  # it has no number: it covers what was done
            assert ticket.error is None
            continue
        if ticket.line in failed:
            assert isinstance(ticket.error, errors.StreamError), "something was done behind a failure"
            continue
        want = outcome(reference)
        if isinstance(want, errors.RunnelError):
            assert type(ticket.error) is type(want)
            failed.add(ticket.line)
            continue
        assert ticket.error is None
        if isinstance(want, np.ndarray):
            np.testing.assert_array_equal(y(ticket), want)
        elif isinstance(want, bytes):
            oracle.restore(bytes(ticket.payload[0])).close()
    assert len([t for t in link.settled if t.op not in ("open", "resume")]) == len(expected), "settled twice"
    for line, stream in zip(lines, local, strict=True):
        assert not line.unanswered
        if line not in failed:
            assert line.applied == line.sent
            assert server._engine.streams[line.name].seq == stream.seq
    assert not link.talk._flying
    assert not link.talk.outbox


@MANY
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3)), max_size=25))
def test_two_clients_race_for_one_stream(moves: list[tuple[bool, int, int]]) -> None:
    """Each chunk is applied once, or answered FENCED and not applied."""
    engine = tally_engine()
    server = Server(engine, "boot")
    one = Link(server, "a")
    two = Link(server, "b", beside=one)
    line = {one: opened(one, "s")}
    applied: list[tuple[Ticket, int]] = []
    for k, (second, what, n) in enumerate(moves):
        link = two if second else one
        if what == 0 or link not in line:
            ticket = link.talk.resume("s")
            one.finish(), two.finish()
            ticket.answer()
            assert ticket.line is not None
            line[link] = ticket.line
        elif what == 1:
            link.cut(n, n)
        elif line[link].lost is None:
            applied.append((feed(link, line[link], rows(2.0**k)), k))
            link.send(n)
            link.arrive(n)
    for _ in range(3):
        one.finish(), two.finish()
    total = 0.0
    for ticket, k in applied:
        assert ticket.done
        if ticket.error is None:
            total += 2.0**k
        else:
            assert isinstance(ticket.error, errors.FencedError | errors.GapError)
    state = engine.streams["s"].state["tally.sum"]
    lost = state[0] - total  # applied, but another client took the stream over before the reply arrived
    fenced = sum(2.0**k for ticket, k in applied if ticket.error is not None)
    assert 0 <= lost <= fenced
    assert int(lost) & int(total) == 0, "applied twice"


def test_chunks_behind_a_failed_one_fail_and_the_stream_continues(link: Link) -> None:
    line = opened(link, "a")
    tickets = [feed(link, line, rows(v)) for v in (1, UNLUCKY, 3, 4)]
    link.finish()
    assert [type(t.error) for t in tickets] == [
        type(None),
        errors.StageError,
        errors.GapError,
        errors.GapError,
    ]
    assert (line.applied, line.sent) == (1, 1)
    again = feed(link, line, rows(5))
    flush = link.talk.post(line, "flush")
    link.finish()
    assert again.seq == 2
    assert [y(again)[:, 0].tolist(), y(flush)[:, 0].tolist()] == [[1], [6]]


def test_a_new_connection_repeats_only_unanswered_requests(link: Link) -> None:
    line, idle = opened(link, "a"), opened(link, "idle")
    feed(link, line, rows(1))
    link.finish()
    old = line.epoch
    unanswered = [feed(link, line, rows(v)) for v in (2, 3)]
    link.cut(0, 0)
    link.hear()
    said = [messages.decode_request(frames)[0] for frames in link.talk.outbox.values()]
    assert [(r.op, r.sequence_id, r.epoch) for r in said] == [("resume", "a", old)]
    link.finish()
    assert line.epoch != old
    assert [y(t)[:, 0].tolist() for t in unanswered] == [[1], [3]]
    assert feed(link, idle, rows(1)).line is idle
    link.finish()


def test_a_daemon_without_the_stream_fails_all_of_it(link: Link) -> None:
    line = opened(link, "a")
    tickets = [feed(link, line, rows(v)) for v in (1, 2)]
    link.cut(0, 0)
    link.late.clear()
    link.server = Server(tally_engine(), "another boot")
    tickets.append(feed(link, line, rows(3)))
    link.finish()
    assert [type(t.error) for t in tickets] == [errors.UnknownStreamError] * 3
    with pytest.raises(errors.UnknownStreamError, match="'a' is not open"):
        feed(link, line, rows(4))


def test_with_two_holders_of_one_epoch_the_first_to_resume_has_the_stream() -> None:
    server = Server(tally_engine(), "boot")
    first = Link(server, "x")
    second = Link(server, "y", beside=first)
    line = opened(first, "a")
    twin = Line("a", line.epoch)  # as of a copied process, or of two processes that read one saved epoch
    tickets = feed(first, line, rows(1)), feed(second, twin, rows(1))
    for link in (first, second):
        link.send()
        link.cut(0, 0)
        link.late.clear()
    first.finish()
    second.finish()
    assert tickets[0].answer().applied_seq == 1
    assert isinstance(tickets[1].error, errors.FencedError)
    again = feed(first, line, rows(2))
    first.finish()
    assert (again.answer().applied_seq, line.lost, type(twin.lost)) == (2, None, errors.FencedError)


def test_a_daemon_that_cannot_resume_now_may_be_asked_later(link: Link) -> None:
    """The chunks fail with an error that says so; fed again, they are applied once."""
    line = opened(link, "a")
    server = link.server
    first = feed(link, line, rows(1))
    link.send(), link.arrive(), link.run()  # applied, and the reply is lost
    link.cut(0, 0)
    link.server = Server(tally_engine(), "stopping")
    link.server.stop()
    link.finish()
    assert isinstance(first.error, errors.ShutdownError)
    link.server = server
    again, more = feed(link, line, rows(1)), feed(link, line, rows(2))
    link.finish()
    assert [y(again)[:, 0].tolist(), y(more)[:, 0].tolist()] == [[], [1]]


def test_a_notice_ends_the_stream_with_the_daemons_reason(link: Link) -> None:
    line, other = opened(link, "a"), opened(link, "b")
    link.server.idle_seconds = 5.0
    link.take(link.server.tick(100.0))
    assert len(link.down) == 2
    link.hear()
    for gone in (line, other):
        with pytest.raises(errors.UnknownStreamError, match="no request for 5 s"):
            feed(link, gone, rows(1))


def test_a_notice_about_an_earlier_epoch_is_ignored(link: Link) -> None:
    line = opened(link, "a")
    told = messages.ErrorInfo("UNKNOWN_STREAM", "gone")
    notice = messages.Reply(v=1, op="close", sequence_id="a", epoch=9, error=told)
    link.talk.received(messages.encode_reply(notice))
    assert line.lost is None


def test_giving_up_ends_later_requests_too_and_reuses_their_seqs(link: Link) -> None:
    line = opened(link, "a")
    tickets = [feed(link, line, rows(v)) for v in (1, 2, 3)]
    link.send(), link.arrive()
    while link.server.pending:
        link.run()
    gone = errors.TimeoutError("late")
    assert link.talk.give_up(tickets[1], gone) == tickets[1:]
    assert link.talk.give_up(tickets[1], gone) == ()
    link.hear()
    assert [t.error for t in tickets] == [None, gone, gone]
    assert line.sent == line.applied == 1
    again = [feed(link, line, rows(v)) for v in (2, 3)]
    link.finish()
    assert [y(t)[:, 0].tolist() for t in again] == [[1], [3]]
    assert [t.seq for t in again] == [2, 3]


def test_an_abandoned_chunk_is_applied_once_despite_a_snapshot_between(link: Link) -> None:
    line = opened(link, "a")
    lost = feed(link, line, rows(1))
    link.send(), link.arrive(), link.run()
    link.talk.give_up(lost, errors.TimeoutError("late"))
    shot = link.talk.post(line, "snapshot")
    link.finish()
    assert shot.answer().applied_seq == 1
    again = feed(link, line, rows(1))
    behind = feed(link, line, rows(2))
    link.finish()
    assert [again.seq, behind.seq] == [1, 2]
    assert link.server._engine.streams["a"].seq == 2


def test_giving_up_requests_behind_a_failed_chunk_leaves_no_gap(link: Link) -> None:
    line = opened(link, "a")
    failed = feed(link, line, rows(UNLUCKY))
    link.send(), link.arrive()
    while link.server.pending:
        link.run()
    behind = [feed(link, line, rows(v)) for v in (2, 3)]
    link.hear()
    assert isinstance(failed.error, errors.StageError)
    link.talk.give_up(behind[0], errors.TimeoutError("late"))
    again = feed(link, line, rows(4))
    link.finish()
    assert [again.seq, y(again)[:, 0].tolist()] == [1, []]


def test_a_repeated_open_after_giving_up_is_the_same_request(link: Link) -> None:
    first = link.talk.open("a", EPOCH + 1)
    link.send(), link.arrive()  # the daemon will do it at some time
    link.talk.give_up(first, errors.TimeoutError("late"))
    second = link.talk.open("a", EPOCH + 2)
    link.finish()
    assert second.answer().epoch == EPOCH + 1
    third = link.talk.open("a", EPOCH + 3)
    link.finish()
    with pytest.raises(errors.StreamExistsError):
        third.answer()


def test_remembered_abandoned_openings_are_bounded(link: Link) -> None:
    for k in range(MAX_UNHEARD + 10):
        link.talk.give_up(link.talk.open(f"s{k}", EPOCH + k), errors.TimeoutError("late"))
    assert len(link.talk._unheard) == MAX_UNHEARD
    assert not link.talk.in_flight
    assert not link.talk.outbox


def test_an_unreadable_reply_fails_its_request(link: Link) -> None:
    line = opened(link, "a")
    ticket = feed(link, line, rows(1))
    header = messages._encode({"v": 1, "id": ticket.id, "op": 7})
    assert link.talk.received([header]) == [ticket]
    assert isinstance(ticket.error, errors.WireError)
    for nonsense in ([], [b""], [b"\xc1"], [header], [messages._encode({"v": 9, "id": "?"})]):
        assert not link.talk.received(nonsense)


def test_an_invalid_request_changes_nothing(link: Link) -> None:
    line = opened(link, "a")
    with pytest.raises(errors.TooLargeError):
        feed(link, line, np.zeros((2**22, 2), "float32"))
    assert (line.sent, link.talk.in_flight, len(link.talk.outbox)) == (0, 0, 0)


def test_a_stream_goes_on_from_a_snapshot(link: Link) -> None:
    line = opened(link, "a")
    feed(link, line, rows(1))
    shot = link.talk.post(line, "snapshot")
    link.finish()
    blob = bytes(shot.payload[0])
    restored = link.talk.restore("b", blob, EPOCH)
    link.cut(0, 0)
    link.finish()
    assert restored.answer().applied_seq == 1
    assert restored.line is not None
    more = feed(link, restored.line, rows(2))
    link.finish()
    assert (more.seq, y(more)[:, 0].tolist()) == (2, [1])


def test_the_engine_saw_each_chunk_once(link: Link) -> None:
    engine = link.server._engine
    assert isinstance(engine, SpyEngine)
    line = opened(link, "a")
    for _ in range(5):
        feed(link, line, rows(1))
        link.send(), link.arrive(), link.run()
        link.cut(0, 0)  # no reply ever arrives
        link.hear()
        link.send(), link.arrive(), link.run()
        link.cut(0, 0)
    link.finish()
    assert line.applied == sum(engine.batches) == 5
