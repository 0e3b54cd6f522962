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
from runnel.client.protocol import MAX_ABANDONED, ClientProtocol, ClientStream, PendingRequest
from runnel.daemon.protocol.server import ServerProtocol
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

    def __init__(self, server: ServerProtocol, prefix: str, beside: Link | None = None) -> None:
        self.server = server
        self.links: list[Link] = beside.links if beside else []  # all links that the server answers
        self.links.append(self)
        self.protocol = ClientProtocol(prefix, count(EPOCH + 2**40 + hash(prefix) % 2**32).__next__)
        self.connection = 0
        self.up: deque[list[bytes]] = deque()
        self.down: deque[list[bytes]] = deque()
        self.late: deque[tuple[bytes, list[bytes]]] = deque()
        self.settled: list[PendingRequest] = []
        self.fresh = False  # connected anew, before the client protocol knows of it
        self.prefix = prefix.encode()

    @property
    def peer(self) -> bytes:
        return self.prefix + str(self.connection).encode()

    def send(self, n: int = 1_000_000) -> None:
        for id in list(self.protocol.outbox)[:n]:
            self.up.append(self.protocol.outbox.pop(id))

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
            self.settled += self.protocol.received(self.down.popleft(), self.fresh)
        if self.fresh:
            self.fresh = False
            self.protocol.reconnected()

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
        return not (self.protocol.in_flight or self.up or self.down or self.late)

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


def opened(link: Link, name: str) -> ClientStream:
    pending = link.protocol.open(name, EPOCH + hash(name) % 2**32)
    link.finish()
    pending.answer()
    assert pending.stream is not None
    return pending.stream


def feed(link: Link, stream: ClientStream, chunk: Array) -> PendingRequest:
    return link.protocol.post(stream, "feed", *pack({"x": chunk}))


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the error that it raises."""
    try:
        return call()
    except errors.RunnelError as error:
        return error


def y(pending: PendingRequest) -> Array:
    return unpack(pending.answer().outputs, pending.payload)["y"]


@pytest.fixture
def server() -> ServerProtocol:
    return ServerProtocol(tally_engine(), "boot")


@pytest.fixture
def link(server: ServerProtocol) -> Link:
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
    server = ServerProtocol(tally_engine(), "boot")
    link, oracle = Link(server, "a"), plain_engine()
    streams = [opened(link, name) for name in NAMES]
    local = [oracle.open(name) for name in NAMES]
    expected: list[tuple[PendingRequest, Callable[[], Any]]] = []
    for op, a, b in steps:
        if op == "feed":
            expected.append((feed(link, streams[a], rows(b)), lambda s=local[a], b=b: s.feed(rows(b))))
        elif op in ("flush", "reset", "snapshot"):
            expected.append((link.protocol.post(streams[a], op), getattr(local[a], op)))
        elif op == "cut":
            link.cut(a, b)
        elif op == "late":
            link.arrive_late()
        elif op == "run":
            link.run()
        elif op == "renew":
            link.protocol.renew(streams[a])
        else:
            getattr(link, op)(a)
    link.finish()
    failed: set[ClientStream] = set()
    for pending, reference in expected:
        assert pending.done
        assert pending.stream is not None
        if pending.stream in failed and pending.op == "snapshot":  # it has no number: it covers what was done
            assert pending.error is None
            continue
        if pending.stream in failed:
            assert isinstance(pending.error, errors.StreamError), "something was done behind a failure"
            continue
        want = outcome(reference)
        if isinstance(want, errors.RunnelError):
            assert type(pending.error) is type(want)
            failed.add(pending.stream)
            continue
        assert pending.error is None
        if isinstance(want, np.ndarray):
            np.testing.assert_array_equal(y(pending), want)
        elif isinstance(want, bytes):
            oracle.restore(bytes(pending.payload[0])).close()
    assert len([t for t in link.settled if t.op not in ("open", "resume")]) == len(expected), "settled twice"
    for stream, reference in zip(streams, local, strict=True):
        assert not stream.unanswered
        if stream not in failed:
            assert stream.applied == stream.sent
            assert server._engine.streams[stream.name].seq == reference.seq
    assert not link.protocol._by_id
    assert not link.protocol.outbox


@MANY
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3)), max_size=25))
def test_two_clients_race_for_one_stream(moves: list[tuple[bool, int, int]]) -> None:
    """Each chunk is applied once, or answered FENCED and not applied."""
    engine = tally_engine()
    server = ServerProtocol(engine, "boot")
    one = Link(server, "a")
    two = Link(server, "b", beside=one)
    stream = {one: opened(one, "s")}
    applied: list[tuple[PendingRequest, int]] = []
    for k, (second, what, n) in enumerate(moves):
        link = two if second else one
        if what == 0 or link not in stream:
            pending = link.protocol.resume("s")
            one.finish(), two.finish()
            pending.answer()
            assert pending.stream is not None
            stream[link] = pending.stream
        elif what == 1:
            link.cut(n, n)
        elif stream[link].lost is None:
            applied.append((feed(link, stream[link], rows(2.0**k)), k))
            link.send(n)
            link.arrive(n)
    for _ in range(3):
        one.finish(), two.finish()
    total = 0.0
    for pending, k in applied:
        assert pending.done
        if pending.error is None:
            total += 2.0**k
        else:
            assert isinstance(pending.error, errors.FencedError | errors.GapError)
    state = engine.streams["s"].state["tally.sum"]
    lost = state[0] - total  # applied, but another client took the stream over before the reply arrived
    fenced = sum(2.0**k for pending, k in applied if pending.error is not None)
    assert 0 <= lost <= fenced
    assert int(lost) & int(total) == 0, "applied twice"


def test_chunks_behind_a_failed_one_fail_and_the_stream_continues(link: Link) -> None:
    stream = opened(link, "a")
    pendings = [feed(link, stream, rows(v)) for v in (1, UNLUCKY, 3, 4)]
    link.finish()
    assert [type(t.error) for t in pendings] == [
        type(None),
        errors.StageError,
        errors.GapError,
        errors.GapError,
    ]
    assert (stream.applied, stream.sent) == (1, 1)
    again = feed(link, stream, rows(5))
    flush = link.protocol.post(stream, "flush")
    link.finish()
    assert again.seq == 2
    assert [y(again)[:, 0].tolist(), y(flush)[:, 0].tolist()] == [[1], [6]]


def test_a_new_connection_repeats_only_unanswered_requests(link: Link) -> None:
    stream, idle = opened(link, "a"), opened(link, "idle")
    feed(link, stream, rows(1))
    link.finish()
    old = stream.epoch
    unanswered = [feed(link, stream, rows(v)) for v in (2, 3)]
    link.cut(0, 0)
    link.hear()
    said = [messages.decode_request(frames)[0] for frames in link.protocol.outbox.values()]
    assert [(r.op, r.sequence_id, r.epoch) for r in said] == [("resume", "a", old)]
    link.finish()
    assert stream.epoch != old
    assert [y(t)[:, 0].tolist() for t in unanswered] == [[1], [3]]
    assert feed(link, idle, rows(1)).stream is idle
    link.finish()


def test_a_daemon_without_the_stream_fails_all_of_it(link: Link) -> None:
    stream = opened(link, "a")
    pendings = [feed(link, stream, rows(v)) for v in (1, 2)]
    link.cut(0, 0)
    link.late.clear()
    link.server = ServerProtocol(tally_engine(), "another boot")
    pendings.append(feed(link, stream, rows(3)))
    link.finish()
    assert [type(t.error) for t in pendings] == [errors.UnknownStreamError] * 3
    with pytest.raises(errors.UnknownStreamError, match="'a' is not open"):
        feed(link, stream, rows(4))


def test_with_two_holders_of_one_epoch_the_first_to_resume_has_the_stream() -> None:
    server = ServerProtocol(tally_engine(), "boot")
    first = Link(server, "x")
    second = Link(server, "y", beside=first)
    stream = opened(first, "a")
    # As of a copied process, or of two processes that read one saved epoch.
    twin = ClientStream("a", stream.epoch)
    pendings = feed(first, stream, rows(1)), feed(second, twin, rows(1))
    for link in (first, second):
        link.send()
        link.cut(0, 0)
        link.late.clear()
    first.finish()
    second.finish()
    assert pendings[0].answer().applied_seq == 1
    assert isinstance(pendings[1].error, errors.FencedError)
    again = feed(first, stream, rows(2))
    first.finish()
    assert (again.answer().applied_seq, stream.lost, type(twin.lost)) == (2, None, errors.FencedError)


def test_a_daemon_that_cannot_resume_now_may_be_asked_later(link: Link) -> None:
    """The chunks fail with an error that says so; fed again, they are applied once."""
    stream = opened(link, "a")
    server = link.server
    first = feed(link, stream, rows(1))
    link.send(), link.arrive(), link.run()  # applied, and the reply is lost
    link.cut(0, 0)
    link.server = ServerProtocol(tally_engine(), "stopping")
    link.server.stop()
    link.finish()
    assert isinstance(first.error, errors.ShutdownError)
    link.server = server
    again, more = feed(link, stream, rows(1)), feed(link, stream, rows(2))
    link.finish()
    assert [y(again)[:, 0].tolist(), y(more)[:, 0].tolist()] == [[], [1]]


def test_a_notice_ends_the_stream_with_the_daemons_reason(link: Link) -> None:
    stream, other = opened(link, "a"), opened(link, "b")
    link.server.idle_seconds = 5.0
    link.take(link.server.tick(100.0))
    assert len(link.down) == 2
    link.hear()
    for gone in (stream, other):
        with pytest.raises(errors.UnknownStreamError, match="no request for 5 s"):
            feed(link, gone, rows(1))


def test_a_notice_about_an_earlier_epoch_is_ignored(link: Link) -> None:
    stream = opened(link, "a")
    told = messages.ErrorInfo("UNKNOWN_STREAM", "gone")
    notice = messages.Reply(v=1, op="close", sequence_id="a", epoch=9, error=told)
    link.protocol.received(messages.encode_reply(notice))
    assert stream.lost is None


def test_giving_up_ends_later_requests_too_and_reuses_their_seqs(link: Link) -> None:
    stream = opened(link, "a")
    pendings = [feed(link, stream, rows(v)) for v in (1, 2, 3)]
    link.send(), link.arrive()
    while link.server.pending:
        link.run()
    gone = errors.TimeoutError("late")
    assert link.protocol.give_up(pendings[1], gone) == pendings[1:]
    assert link.protocol.give_up(pendings[1], gone) == ()
    link.hear()
    assert [t.error for t in pendings] == [None, gone, gone]
    assert stream.sent == stream.applied == 1
    again = [feed(link, stream, rows(v)) for v in (2, 3)]
    link.finish()
    assert [y(t)[:, 0].tolist() for t in again] == [[1], [3]]
    assert [t.seq for t in again] == [2, 3]


def test_an_abandoned_chunk_is_applied_once_despite_a_snapshot_between(link: Link) -> None:
    stream = opened(link, "a")
    lost = feed(link, stream, rows(1))
    link.send(), link.arrive(), link.run()
    link.protocol.give_up(lost, errors.TimeoutError("late"))
    shot = link.protocol.post(stream, "snapshot")
    link.finish()
    assert shot.answer().applied_seq == 1
    again = feed(link, stream, rows(1))
    behind = feed(link, stream, rows(2))
    link.finish()
    assert [again.seq, behind.seq] == [1, 2]
    assert link.server._engine.streams["a"].seq == 2


def test_giving_up_requests_behind_a_failed_chunk_leaves_no_gap(link: Link) -> None:
    stream = opened(link, "a")
    failed = feed(link, stream, rows(UNLUCKY))
    link.send(), link.arrive()
    while link.server.pending:
        link.run()
    behind = [feed(link, stream, rows(v)) for v in (2, 3)]
    link.hear()
    assert isinstance(failed.error, errors.StageError)
    link.protocol.give_up(behind[0], errors.TimeoutError("late"))
    again = feed(link, stream, rows(4))
    link.finish()
    assert [again.seq, y(again)[:, 0].tolist()] == [1, []]


def test_a_repeated_open_after_giving_up_is_the_same_request(link: Link) -> None:
    first = link.protocol.open("a", EPOCH + 1)
    link.send(), link.arrive()  # the daemon will do it at some time
    link.protocol.give_up(first, errors.TimeoutError("late"))
    second = link.protocol.open("a", EPOCH + 2)
    link.finish()
    assert second.answer().epoch == EPOCH + 1
    third = link.protocol.open("a", EPOCH + 3)
    link.finish()
    with pytest.raises(errors.StreamExistsError):
        third.answer()


def test_remembered_abandoned_openings_are_bounded(link: Link) -> None:
    for k in range(MAX_ABANDONED + 10):
        link.protocol.give_up(link.protocol.open(f"s{k}", EPOCH + k), errors.TimeoutError("late"))
    assert len(link.protocol._abandoned) == MAX_ABANDONED
    assert not link.protocol.in_flight
    assert not link.protocol.outbox


def test_an_unreadable_reply_fails_its_request(link: Link) -> None:
    stream = opened(link, "a")
    pending = feed(link, stream, rows(1))
    header = messages._encode({"v": 1, "id": pending.id, "op": 7})
    assert link.protocol.received([header]) == [pending]
    assert isinstance(pending.error, errors.WireError)
    for nonsense in ([], [b""], [b"\xc1"], [header], [messages._encode({"v": 9, "id": "?"})]):
        assert not link.protocol.received(nonsense)


def test_an_invalid_request_changes_nothing(link: Link) -> None:
    stream = opened(link, "a")
    with pytest.raises(errors.TooLargeError):
        feed(link, stream, np.zeros((2**22, 2), "float32"))
    assert (stream.sent, link.protocol.in_flight, len(link.protocol.outbox)) == (0, 0, 0)


def test_a_stream_goes_on_from_a_snapshot(link: Link) -> None:
    stream = opened(link, "a")
    feed(link, stream, rows(1))
    shot = link.protocol.post(stream, "snapshot")
    link.finish()
    blob = bytes(shot.payload[0])
    restored = link.protocol.restore("b", blob, EPOCH)
    link.cut(0, 0)
    link.finish()
    assert restored.answer().applied_seq == 1
    assert restored.stream is not None
    more = feed(link, restored.stream, rows(2))
    link.finish()
    assert (more.seq, y(more)[:, 0].tolist()) == (2, [1])


def test_the_engine_saw_each_chunk_once(link: Link) -> None:
    engine = link.server._engine
    assert isinstance(engine, SpyEngine)
    stream = opened(link, "a")
    for _ in range(5):
        feed(link, stream, rows(1))
        link.send(), link.arrive(), link.run()
        link.cut(0, 0)  # no reply ever arrives
        link.hear()
        link.send(), link.arrive(), link.run()
        link.cut(0, 0)
    link.finish()
    assert stream.applied == sum(engine.batches) == 5
