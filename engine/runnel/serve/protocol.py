"""The daemon's half of the protocol, sans-IO: messages and the time in, replies out.

Rules of this file: no socket, no clock, no thread, no randomness; what a request may do is in
`transitions` and nowhere else; an error is answered to the request that it belongs to and touches no
other; every request is answered exactly once.

Theory: `receive` takes requests and keeps those for streams in one queue a stream, in the order of
arrival. `run` is one turn, bounded in time and bytes: peer by peer, and of a peer stream by stream, it takes
one request and does it. Feeds are gathered and stepped as one batch at the end of the turn, so a batch steps
a stream at most once, order within a stream holds for every request alike, and the batch grows with what has
arrived. What takes long is a *work* (works.py): one piece of it is done in each turn.

Whatever a stage, a codec or memory raises belongs to the request at hand. The request is answered with an
error and its stream is as it was before; where even that fails, the stream is closed with a reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct

from ..errors import (
    ConflictError,
    FencedError,
    LimitError,
    RunnelError,
    ShutdownError,
    StageError,
    StreamError,
    TooLargeError,
    UnknownStreamError,
    WireError,
    WrongWorkerError,
)
from ..passage import Passage
from ..spec import Array
from ..stage import MAX_PASSAGES, Steps, as_error
from . import wire
from .logs import Log, tell_health
from .pace import SLICE_SECONDS, Pace, Sizes, Turn
from .placement import Place
from .replies import Outgoing, Peer, Replies, bundles, description, told
from .rota import Rota
from .sequences import KEPT_REPLIES, Named, Register, digest_of
from .stats import Stats
from .tensors import pack, unpack
from .transitions import (
    BEGINS,
    CHANGES,
    FEEDS,
    LIKELY,
    SAID,
    TELLS_STATE,
    TRANSITIONS,
    VERDICTS,
    Event,
    Phase,
    Verdict,
    event_of,
)
from .works import BLOCK, MAX_REPLY_BYTES, Body, Made, Work, digest_in_blocks

if TYPE_CHECKING:
    from ..engine import Engine
    from ..stream import Stream

MAX_PENDING: Final = 16 * 1024  # requests taken and not yet run: about a second of work
MAX_PENDING_PER_PEER: Final = 1024  # one client's share: more than any useful window of requests
MAX_PENDING_BYTES: Final = 256 * 2**20  # tensors taken and not yet run
ROOM: Final = wire.MAX_BUNDLE - 1  # of these are kept free: a message is taken whole, or waits outside
ROOM_BYTES: Final = wire.MAX_MESSAGE_BYTES - 1
MAX_PEER_BYTES: Final = 2 * wire.MAX_MESSAGE_BYTES  # tensors of one client's requests, taken and not yet run
SMALL_REPLY: Final = 64 * 1024  # bytes: a reply up to this size waits for no other to be read
MAX_UNREAD_BYTES: Final = 64 * 2**20  # of one client's replies, not yet read, before more are made
MAX_SNAPSHOT_BYTES: Final = wire.MAX_MESSAGE_BYTES - 2 * wire.MAX_HEADER  # what a restore can bring back
MAX_JOBS_PER_PEER: Final = MAX_PASSAGES // 4  # one client's share of what goes on from turn to turn

log = Log("runnel.serve")

Outputs = Mapping[str, Array]
NOTHING: Final[Body] = ([], ())


class _Pending(Struct, eq=False, gc=False):
    """A request that was taken. Made for each message, as `_Step`: so of the cheapest kind there is."""

    peer: Peer
    request: wire.Request
    buffers: Sequence[bytes]
    event: Event
    nbytes: int
    arrived: float
    bundled: bool  # then so is its reply
    digest: int = 0  # of its event and payload, once it is run


class _Feed(Struct, eq=False, gc=False):
    """A feed that is stepped whole, in the batch of its turn."""

    named: Named
    stream: Stream
    pending: _Pending
    chunk: Mapping[str, Array]
    steps: int  # time steps


class _Job(Struct, eq=False, gc=False):
    """A request whose work goes on from turn to turn."""

    named: Named
    pending: _Pending
    work: Work
    need: int  # bytes of reply that it is expected to make
    passage: Passage | None = None  # whose next slice it waits for


def _still() -> float:
    return 0.0


def _none(peer: Peer) -> int:
    return 0


class Server:
    """One engine's streams, served to peers.

    `boot_id` tells this start of the worker from all others; epochs that the server chooses come after
    `first_epoch`, which should be another at each start. `idle_seconds`: a stream without a request for
    longer is closed (0: never); it may be set while the server runs. `place`: which worker this is.
    `clock`: seconds, by which a turn is bounded; one that stands still bounds it by bytes alone.
    Raises PipelineError for a pipeline whose signals the wire has no datatype for.
    """

    def __init__(
        self,
        engine: Engine,
        boot_id: str,
        first_epoch: int = 0,
        idle_seconds: float = 0.0,
        place: Place | None = None,
        clock: Callable[[], float] = _still,
    ) -> None:
        self.idle_seconds = idle_seconds
        self.stats = Stats()
        self.gauges: Callable[[], Mapping[str, float]] = dict  # of the process, by who may ask the system
        self._engine = engine
        self._boot_id = boot_id
        self._place = place or Place()
        self._description = description(engine)
        self._register = Register()
        self.unread: Callable[[Peer], int] = _none  # bytes of replies that a peer has not read, by who sends
        self.stalled = False  # the last run did nothing: all that is pending waits for peers to read
        self._clock = clock
        self._pace = Pace()
        self._sizes = Sizes(engine.pipeline.inputs, engine.pipeline.unrolled.stages)
        self._rota: Rota[Peer, Named] = Rota()  # streams whose next request, or next piece of one, may run
        self._jobs: dict[Named, _Job] = {}
        self._jobs_of: dict[Peer, int] = {}
        self._reserved: dict[Peer, int] = {}  # bytes of reply that a peer's jobs are expected to make
        self._made: dict[Peer, int] = {}  # bytes of reply made in this turn, and not yet sent
        self._per_peer: dict[Peer, int] = {}  # requests of each that wait
        self._peer_bytes: dict[Peer, int] = {}  # and the bytes of their tensors
        self._pending = 0
        self._pending_bytes = 0
        self._numbered = 0
        self._epoch = first_epoch
        self._stopping = False
        self._began = 0.0  # of the last run
        self._ran: list[Named] = []  # whose requests were in it
        engine.health.told = tell_health
        self._answered: list[float] = []  # when the requests arrived that the last run answered

    @property
    def pending(self) -> int:
        """Requests taken and not yet run."""
        return self._pending

    @property
    def full(self) -> bool:
        """Whether requests of the next message may be refused: time to run, not to receive."""
        return self._pending >= MAX_PENDING - ROOM or self._pending_bytes >= MAX_PENDING_BYTES - ROOM_BYTES

    @property
    def due(self) -> float | None:
        """When `tick` has something to do next, if nothing else happens."""
        return self._register.due(self.idle_seconds)

    def stop(self) -> None:
        """From now on every request is answered ShutdownError; what was taken is still run."""
        self._stopping = True

    def receive(self, peer: Peer, frames: Sequence[bytes], now: float, user: str = "") -> list[Outgoing]:
        """Take a message, whatever its bytes. Returns what can be answered at once: hello, refusals.

        `user`: who sent it, where that is known; streams of one name and two users are two streams.
        """
        try:
            if wire.bundled(frames):
                told = [
                    out.frames
                    for request, buffers in wire.decode_requests(frames)
                    for out in self._receive(peer, request, buffers, now, user, True)
                ]
                return bundles(peer, told)
            request, buffers = wire.decode_request(frames)
            return self._receive(peer, request, buffers, now, user, False)
        except Exception as error:
            return [self.refuse(peer, frames, as_error("engine", error))]

    def _receive(
        self,
        peer: Peer,
        request: wire.Request,
        buffers: Sequence[bytes],
        now: float,
        user: str,
        bundled: bool,
    ) -> list[Outgoing]:
        op = request.op
        self.stats.requests[op] += 1
        try:
            if op == "stats":  # also while it stops: that is when one looks
                return [self._tell(peer, request, stats=self.document())]
            if self._stopping:
                raise ShutdownError("the daemon is stopping: connect again when it is back")
            if op == "hello":
                return [self._tell(peer, request, server=self._hello())]
            self._take(peer, request, buffers, now, user, bundled)
        except Exception as error:
            return [self._refuse(peer, op, request.id, as_error("engine", error))]
        return []

    def refuse(self, peer: Peer, frames: Sequence[bytes], error: RunnelError) -> Outgoing:
        """Answer a message with an error, whatever its bytes, and take nothing of it."""
        ids = wire.salvage_ids(frames)
        self.stats.requests[""] += len(ids)
        refusals = [self._refuse(peer, "", id, error).frames for id in ids]
        return bundles(peer, refusals)[0]

    def run(self, now: float) -> list[Outgoing]:
        """Run one turn of what is pending; call again while `pending`. Returns the replies."""
        self._began = now
        self._answered.clear()
        self._ran.clear()
        turn, replies = Turn(self._clock), Replies()
        batch: list[_Feed] = []
        slices: list[_Job] = []
        passed_over: list[tuple[Peer, Named]] = []
        while self._rota and not (self._ran and turn.over):
            peer, named = self._rota.take()
            job = self._jobs.get(named)
            if job is None and not self._may_begin(peer, named):
                passed_over.append((peer, named))
                continue
            self._ran.append(named)
            if job is None:
                self._begin_request(named, turn, replies, batch, now)
            elif job.passage is None:
                self._go_on(job, None, replies, now)
            else:
                if not slices:
                    turn.expect(SLICE_SECONDS)
                slices.append(job)
        if batch:
            self._run_batch(batch, replies, now)
        if slices:
            self._run_slices(slices, replies, now)
        for peer, named in passed_over:
            self._rota.add(peer, named)
        self.stalled = not self._ran
        self._made.clear()
        return replies.outgoing()

    def done(self, now: float) -> None:
        """The replies of the last `run` are on their way: how long that took is noted."""
        observe = self.stats.latency.observe
        for arrived in self._answered:
            observe(now - arrived)
        if self.idle_seconds:  # silence is what comes after the reply, however long the batch took
            for named in self._ran:
                if named.stream is not None and named.used == self._began:  # not one that only refused
                    self._register.touch(named, named.peer, now)
        if self._answered:
            self.stats.batch_seconds.observe(now - self._began)
            self._answered.clear()

    def tick(self, now: float) -> list[Outgoing]:
        """Close the streams that are idle, and forget what is old. Returns a notice for each closed."""
        notices = []
        for named in self._register.idle(self.idle_seconds, now):
            reason = f"was closed: no request for {self.idle_seconds:g} s"
            reply = wire.Reply(
                v=wire.VERSION,
                op="close",
                sequence_id=named.name,
                epoch=named.epoch,
                applied_seq=named.applied,
                error=told(UnknownStreamError(f"stream {named.name!r} {reason}")),
            )
            notices.append(Outgoing(named.peer, wire.encode_reply(reply)))
            self._engine.notices("idle", named.key, _open(named).seq, reason)
            self._part(named, "idle", reason, now)
            log.info("stream closed", stream=named.key, reason="idle", idle_seconds=self.idle_seconds)
        self._register.expire(now)
        return notices

    def document(self) -> dict[str, Any]:
        """What is counted, and how things stand now."""
        return {
            "worker": self._place.index,
            "boot_id": self._boot_id,
            "streams": len(self._engine.streams),
            "max_streams": self._engine.max_streams,
            "pending": self._pending,
            "pending_bytes": self._pending_bytes,
            "kept_bytes": self._register.kept_bytes,
            "stopping": self._stopping,
            **self.gauges(),
            **self.stats.document(),
            **self._engine.pipeline.times(),
            **self._engine.health.document(),
        }

    # Taking a request.

    def _take(
        self,
        peer: Peer,
        request: wire.Request,
        buffers: Sequence[bytes],
        now: float,
        user: str,
        bundled: bool,
    ) -> None:
        event = event_of(request)
        if self._pending >= MAX_PENDING or self._pending_bytes >= MAX_PENDING_BYTES:
            raise LimitError(f"{self._pending} requests wait already, {self._pending_bytes} bytes: try later")
        nbytes = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        held = self._peer_bytes.get(peer, 0)
        if held and held + nbytes > MAX_PEER_BYTES:
            raise LimitError(
                f"{held} bytes of this client's requests wait already, {MAX_PEER_BYTES} may: read replies first"
            )
        waiting = self._per_peer.get(peer, 0)
        if waiting >= MAX_PENDING_PER_PEER:
            raise LimitError(
                f"{MAX_PENDING_PER_PEER} of this client's requests wait already: read replies first"
            )
        name = request.sequence_id or self._new_name()
        place = self._place
        if len(place.addresses) > 1 and not place.owns(name):
            raise WrongWorkerError(
                f"stream {name!r} belongs to another worker than {place.index} of {len(place.addresses)}: "
                "its address is in the answer to hello, workers[crc32(name) % len(workers)]"
            )
        key = f"{user}/{name}" if user else name
        named = self._register.find(key) or self._register.add(key, name)
        pending = _Pending(peer, request, buffers, event, nbytes, now, bundled)
        if named.queue is None:
            named.queue = deque((pending,))
            self._rota.add(peer, named)
        else:
            named.queue.append(pending)
        self._per_peer[peer] = waiting + 1
        if nbytes:
            self._peer_bytes[peer] = held + nbytes
        self._pending += 1
        self._pending_bytes += nbytes

    def _untake(self, pending: _Pending) -> None:
        self._pending -= 1
        self._pending_bytes -= pending.nbytes
        if pending.nbytes:
            left = self._peer_bytes[pending.peer] - pending.nbytes
            if left:
                self._peer_bytes[pending.peer] = left
            else:
                del self._peer_bytes[pending.peer]
        waiting = self._per_peer[pending.peer] - 1
        if waiting:
            self._per_peer[pending.peer] = waiting
        else:
            del self._per_peer[pending.peer]
        self._answered.append(pending.arrived)

    def _new_name(self) -> str:
        """A name for a stream that was opened without one: this worker's, and not met after a restart."""
        while True:
            self._numbered += 1
            name = f"{self._boot_id}-{self._numbered}"
            if self._place.owns(name):
                return name

    # Running what was taken.

    def _may_begin(self, peer: Peer, named: Named) -> bool:
        """Whether the stream's next request may begin now: its peer has read enough, and there is room."""
        assert named.queue is not None
        pending: _Pending = named.queue[0]
        if self._takes_long(pending) and (
            len(self._jobs) >= MAX_PASSAGES or self._jobs_of.get(peer, 0) >= MAX_JOBS_PER_PEER
        ):
            return False
        need = self._need(named, pending)
        if need <= SMALL_REPLY:
            return True
        waiting = self._made.get(peer, 0) + self._reserved.get(peer, 0) + self.unread(peer)
        return not waiting or waiting + need <= MAX_UNREAD_BYTES

    def _takes_long(self, pending: _Pending) -> bool:
        """Whether the request is done in pieces, from turn to turn."""
        if pending.nbytes > BLOCK:
            return True
        if pending.event not in FEEDS:
            return False
        steps = _steps(pending.request)
        return (
            pending.request.sequence_end  # the flush must be undone with the chunk, if it fails
            or steps > self._sizes.slice_steps
            or self._pace.estimate(steps) > SLICE_SECONDS
        )

    def _need(self, named: Named, pending: _Pending) -> int:
        """Bytes of reply that a request is expected to make; 0 where it makes next to nothing."""
        if pending.event in FEEDS:
            return min(self._sizes.made(_steps(pending.request)), MAX_REPLY_BYTES)
        if pending.event in TELLS_STATE and named.stream is not None:
            with suppress(
                Exception
            ):  # of a stage that cannot lay its state open: the request itself will fail
                return named.stream.state_bytes
        return 0

    def _begin_request(
        self, named: Named, turn: Turn, replies: Replies, batch: list[_Feed], now: float
    ) -> None:
        """Do the stream's next request; or put it into the batch; or make a job of it."""
        assert named.queue is not None
        pending: _Pending = named.queue.popleft()
        need = self._need(named, pending)
        try:
            begun = self._prepare(named, pending, now)
        except Exception as error:
            begun = as_error("engine", error)
        if isinstance(begun, _Feed):
            turn.expect(self._pace.estimate(begun.steps))
            turn.holds(max(need, self._sizes.held(begun.steps)))
            self._made[pending.peer] = self._made.get(pending.peer, 0) + need
            batch.append(begun)
        elif isinstance(begun, Generator):
            turn.holds(need)
            self._jobs[named] = job = _Job(named, pending, begun, need)
            self._jobs_of[pending.peer] = self._jobs_of.get(pending.peer, 0) + 1
            self._reserved[pending.peer] = self._reserved.get(pending.peer, 0) + need
            self._go_on(job, None, replies, now)
        else:
            turn.holds(need)
            self._made[pending.peer] = self._made.get(pending.peer, 0) + need
            self._finish(named, pending, begun, replies, now)

    def _prepare(self, named: Named, pending: _Pending, now: float) -> _Feed | Work | Body:
        """Do a short request, make a work of a long one. Raises what the tables, the epoch and the engine say."""
        if pending.nbytes > BLOCK:
            return self._work(named, pending)
        request, event = pending.request, pending.event
        pending.digest = digest_of(event, request.inputs, pending.buffers, request.steps)
        again = self._admitted(named, pending, now)
        if again is not None:
            return again
        if event in FEEDS:
            chunk = self._chunk(pending)
            if self._takes_long(pending):
                return self._feed_work(named, pending, chunk)
            stream = self._engine.open(named.key) if request.sequence_start else _open(named)
            return _Feed(named, stream, pending, chunk, _steps(request))
        return self._call(named, pending, now)

    def _admitted(self, named: Named, pending: _Pending, now: float) -> Body | None:
        """None: the request is to be done. Else the answer to one that was done before."""
        again = self._admit(named, pending.request, pending.event, pending.digest)
        if named.stream is not None:
            self._register.touch(named, pending.peer, now)
        if again is not None:
            self.stats.repeats += 1
        return again

    def _chunk(self, pending: _Pending) -> Any:
        """The feed's chunk. Raises ChunkError; TooLargeError where its reply would be too large."""
        request = pending.request
        steps = _steps(request)
        if self._sizes.made(steps) > MAX_REPLY_BYTES:
            raise TooLargeError(
                f"{steps} time steps make {self._sizes.made(steps)} bytes, and {MAX_REPLY_BYTES} at most go in a "
                f"reply: send at most {self._sizes.steps_within(MAX_REPLY_BYTES)} time steps at a time"
            )
        return Steps(steps) if request.steps else unpack(request.inputs, pending.buffers)

    def _work(self, named: Named, pending: _Pending) -> Work:
        """A request whose payload alone takes long to read."""
        request, event = pending.request, pending.event
        pending.digest = yield from digest_in_blocks(event, request.inputs, pending.buffers)
        again = self._admitted(named, pending, self._began)
        if again is not None:
            return again
        if event in FEEDS:
            return (yield from self._feed_work(named, pending, self._chunk(pending)))
        return self._call(named, pending, self._began)

    def _feed_work(self, named: Named, pending: _Pending, chunk: Any) -> Work:
        """A feed, slice by slice; with its flush, where it is the stream's last."""
        request, last = pending.request, pending.request.sequence_end
        stream = self._engine.open(named.key) if request.sequence_start else _open(named)
        passage: Passage | None = None
        try:
            passage = self._engine.begin(stream, chunk)
            made = Made(self._engine.pipeline.outputs)
            while passage.left:
                made.add((yield passage))
            if last:
                made.add(passage.flush())
            body = made.body()
            passage.land(ended=last)
        except BaseException as error:
            if passage is not None:
                passage.drop(error if isinstance(error, RunnelError) else None)
            if request.sequence_start:
                self._never_was(stream)
            raise
        self._applied(named, stream, pending, body)
        return body

    def _go_on(
        self, job: _Job, made: Mapping[str, Array] | RunnelError | None, replies: Replies, now: float
    ) -> None:
        """Do the next piece of a job, with what its last slice made."""
        outcome: Body | RunnelError
        try:
            if isinstance(made, RunnelError):
                job.passage = job.work.throw(made)
            else:
                job.passage = job.work.send(made)  # type: ignore[arg-type]  # None begins it, or follows None
        except StopIteration as end:
            outcome = end.value
        except Exception as error:
            outcome = as_error("engine", error)
        else:
            self._rota.add(job.pending.peer, job.named)
            return
        self._end_job(job)
        self._finish(job.named, job.pending, outcome, replies, now)

    def _end_job(self, job: _Job) -> None:
        del self._jobs[job.named]
        peer = job.pending.peer
        left = self._jobs_of[peer] - 1
        if left:
            self._jobs_of[peer] = left
            self._reserved[peer] -= job.need
        else:
            del self._jobs_of[peer]
            del self._reserved[peer]
        self._made[peer] = self._made.get(peer, 0) + job.need

    def _run_batch(self, batch: Sequence[_Feed], replies: Replies, now: float) -> None:
        """One step for each stream of the batch; its replies are added."""
        stats = self.stats
        stats.batches += 1
        stats.batch_sizes.observe(len(batch))
        marks = [feed.stream.mark() for feed in batch]
        began = self._clock()
        results: Sequence[Any]
        try:
            results = self._engine.feed_many([(feed.stream, feed.chunk) for feed in batch])
        except Exception as error:  # a fault of the engine's own: whatever it committed is taken back
            for feed, mark in zip(batch, marks, strict=True):
                feed.stream.back(mark)
            results = [as_error("engine", error)] * len(batch)
        self._pace.saw([feed.steps for feed in batch], self._clock() - began)
        for feed, mark, result in zip(batch, marks, results, strict=True):
            outcome: Body | RunnelError
            try:
                outcome = result if isinstance(result, RunnelError) else self._commit(feed, result, now)
            except Exception as error:
                feed.stream.back(mark)
                outcome = as_error("engine", error)
            if (
                isinstance(outcome, RunnelError)
                and feed.pending.request.sequence_start
                and not feed.stream.closed
            ):
                self._never_was(feed.stream)
            self._finish(feed.named, feed.pending, outcome, replies, now)

    def _run_slices(self, jobs: Sequence[_Job], replies: Replies, now: float) -> None:
        """The next slice of each job, stepped together."""
        self.stats.batches += 1
        self.stats.batch_sizes.observe(len(jobs))
        passages = [job.passage for job in jobs if job.passage is not None]
        share = max(1, min(self._sizes.slice_steps, self._pace.slice(2**31)) // len(jobs))
        parts = [(passage, min(passage.left, share)) for passage in passages]
        began = self._clock()
        made: Sequence[Any]
        try:
            made = self._engine.advance(parts)
        except Exception as error:
            made = [as_error("engine", error)] * len(parts)
        self._pace.saw([steps for _, steps in parts], self._clock() - began)
        for job, result in zip(jobs, made, strict=True):
            self._go_on(job, result, replies, now)

    def _commit(self, feed: _Feed, outputs: Outputs, now: float) -> Body:
        """The step is done: its seq is applied, and its reply kept."""
        body = pack(outputs)
        if sum(map(len, body[1])) > MAX_REPLY_BYTES:
            raise TooLargeError(
                f"the chunk made more than {MAX_REPLY_BYTES} bytes, the most that goes in a reply: "
                "send smaller chunks"
            )
        self._applied(feed.named, feed.stream, feed.pending, body)
        return body

    def _applied(self, named: Named, stream: Stream, pending: _Pending, body: Body) -> None:
        """A feed counts from here on: its seq, its reply, the stream that it opened or ended.

        Where even that fails, nobody could say where the stream stands: it is closed, with the reason.
        """
        request, now = pending.request, self._began
        try:
            if request.sequence_start:
                self._begin(named, pending, stream, 0, now)
            self._register.keep(named, pending.digest, *body, now)
            named.applied += 1
            self.stats.chunks += 1
        except Exception as error:
            self._lose(named, stream, error)
            raise
        if request.sequence_end:
            self._part(named, "ended", "was closed: its end was fed", now)

    def _lose(self, named: Named, stream: Stream, error: Exception) -> None:
        """A stream of which nobody knows any more where it stands."""
        if named.stream is stream:
            text = f"was closed: a commit failed within the daemon ({type(error).__name__}); open it anew"
            self._part(named, "failed", text, self._began)
        else:
            self._never_was(stream)

    def _never_was(self, stream: Stream) -> None:
        """Close a stream whose opening failed; its name, and what is remembered of it, is as before."""
        self.stats.opened += 1  # both, so that the streams open are those opened less those closed
        self.stats.closed["failed"] += 1
        self._close(stream, "failed")

    def _finish(
        self, named: Named, pending: _Pending, outcome: Body | RunnelError, replies: Replies, now: float
    ) -> None:
        """Answer a request that was taken; the stream's next one is ready."""
        self._untake(pending)
        if frames := self._answer(named, pending, outcome):
            replies.add(pending.peer, pending.bundled, frames)
        if named.queue:
            self._rota.add(named.queue[0].peer, named)
        else:
            named.queue = None
            if named.stream is None:
                self._register.settle(named)

    def _admit(self, named: Named, request: wire.Request, event: Event, digest: int) -> Body | None:
        """None: the request is to be done. Else the answer to one that was done before."""
        stated = request.epoch
        seq = request.seq
        stream = named.stream
        if (
            event is Event.FEED
            and stream is not None
            and stated == named.epoch
            and seq == named.applied + 1
            and not stream.ended
        ):
            return None  # as nearly always, and as all that follows would find
        phase = named.phase
        if event in BEGINS:
            if not stated or stated != named.epoch:  # not one that we know: the table alone decides
                self._look_up(named, phase, event)
                return None
            opens = event is Event.OPEN or event is Event.RESTORE
            if phase is Phase.ABSENT and opens:
                raise self._unknown(named)
            if phase is not Phase.ABSENT and named.begun != digest:
                raise ConflictError(f"stream {named.name!r}: epoch {stated} was begun by another request")
            if opens:
                return NOTHING
            seq = 1
        elif event is Event.RESUME:
            self._look_up(named, phase, event)
            if stated and stated == named.resumed_from:
                return NOTHING
            if stated and stated != named.epoch:
                raise FencedError(f"stream {named.name!r} {LIKELY[FencedError]}")
            return None
        elif stated and stated != named.epoch:
            if phase is Phase.ABSENT:
                raise self._unknown(named)
            raise FencedError(f"stream {named.name!r} {LIKELY[FencedError]}")
        if seq:
            verdict, kept = named.judge(seq, digest)
            if verdict is Verdict.REPEAT and kept is not None:
                return kept.infos, kept.buffers
            if phase is Phase.ABSENT:
                raise self._unknown(named)
            outcome = VERDICTS[verdict]
            if not isinstance(outcome, str):
                raise outcome(f"stream {named.name!r}: {SAID[verdict].format(seq=seq, n=named.applied)}")
        self._look_up(named, phase, event)
        return None

    def _look_up(self, named: Named, phase: Phase, event: Event) -> None:
        after = TRANSITIONS[phase][event]
        if isinstance(after, Phase):
            return
        if after is UnknownStreamError:
            raise self._unknown(named)
        raise after(f"stream {named.name!r} {LIKELY[after]}")

    def _unknown(self, named: Named) -> StreamError:
        return UnknownStreamError(f"stream {named.name!r} {named.gone or LIKELY[UnknownStreamError]}")

    def _call(self, named: Named, pending: _Pending, now: float) -> Body:
        """Everything but a feed, once admitted."""
        stream = named.stream
        mark = stream.mark() if stream is not None else None
        try:
            body = self._done(named, pending, now)
            if pending.event in CHANGES:
                self._register.keep(named, pending.digest, *body, now)
                named.applied += 1
        except Exception:
            if stream is not None and mark is not None:
                stream.back(mark)
            raise
        return body

    def _done(self, named: Named, pending: _Pending, now: float) -> Body:
        event, request = pending.event, pending.request
        if event is Event.OPEN or event is Event.RESTORE:
            if event is Event.OPEN:
                stream = self._engine.open(named.key)
            else:
                stream = self._engine.restore(b"".join(pending.buffers), named.key)
            try:
                self._begin(named, pending, stream, stream.seq, now)
            except Exception as error:
                self._lose(named, stream, error)
                raise
            return NOTHING
        stream = _open(named)
        if event is Event.FLUSH:
            return pack(self._flush(stream))
        if event is Event.SNAPSHOT:
            if stream.state_bytes > MAX_SNAPSHOT_BYTES:
                raise TooLargeError(
                    f"the stream's state has {stream.state_bytes} bytes; a snapshot of more than "
                    f"{MAX_SNAPSHOT_BYTES} could not be sent back to be restored"
                )
            blob = stream.snapshot()
            return [wire.TensorInfo("snapshot", "UINT8", [len(blob)])], [blob]
        if event is Event.RESET:
            stream.reset()
        elif event is Event.RESUME:
            named.resumed_from, named.epoch = request.epoch, self._new_epoch()
            self.stats.resumed += 1
        else:
            self._part(named, "closed", "was closed", now)
        return NOTHING

    def _begin(self, named: Named, pending: _Pending, stream: Stream, applied: int, now: float) -> None:
        """The stream has its name, in the epoch that was asked for."""
        epoch = pending.request.epoch or self._new_epoch()
        self._register.begin(named, stream, epoch, applied, pending.digest)
        self._register.touch(named, pending.peer, now)
        self.stats.opened += 1

    def _part(self, named: Named, reason: str, text: str, now: float) -> None:
        stream = self._register.part(named, text, now)
        self.stats.closed[reason] += 1
        self._close(stream, reason)

    def _close(self, stream: Stream, reason: str) -> None:
        """Close a stream of the engine. A stage that fails at this is logged: the stream is gone anyway."""
        try:
            stream.close(reason)
        except Exception as error:
            log.exception("stage failed", error, stream=stream.id, error=as_error("engine", error).message)

    def _new_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def _flush(self, stream: Stream) -> Outputs:
        """A pipeline with one output gives an array; the wire wants its name too."""
        outputs = stream.flush()
        if isinstance(outputs, np.ndarray):
            return {self._engine.pipeline.outputs.names[0]: outputs}
        named: Outputs = outputs
        return named

    # Answering.

    def _answer(self, named: Named, pending: _Pending, result: Body | RunnelError) -> list[bytes]:
        """The frames of the reply to a request that was taken; none where there is no memory for any."""
        try:
            return self._reply(named, pending, result)
        except Exception as error:  # the request itself is done, or is not: said again, it gets its answer
            with suppress(Exception):
                short = wire.ErrorInfo("LIMIT", f"the reply failed: {type(error).__name__}; ask again", True)
                op, id = pending.request.op, pending.request.id
                return wire.encode_reply(wire.Reply(v=wire.VERSION, op=op, id=id, error=short))
            return []

    def _reply(self, named: Named, pending: _Pending, result: Body | RunnelError) -> list[bytes]:
        request = pending.request
        if isinstance(result, RunnelError):
            # Where it stands is told to those alone who may speak for it.
            known = (
                named.stream is not None and request.epoch in (0, named.epoch) and pending.event not in BEGINS
            )
            reply = wire.Reply(
                v=wire.VERSION,
                op=request.op,
                id=request.id,
                sequence_id=named.name,
                epoch=named.epoch if known else 0,
                applied_seq=named.applied if known else 0,
                error=self._count(result),
            )
            if isinstance(result, StageError):
                log.exception("stage failed", result, stream=named.key, error=result.message)
            return wire.encode_reply(reply)
        infos, buffers = result
        reply = wire.Reply(
            v=wire.VERSION,
            op=request.op,
            id=request.id,
            sequence_id=named.name,
            epoch=named.epoch,
            applied_seq=named.applied,
            outputs=infos,
        )
        return wire.encode_reply(reply, buffers)

    def _tell(self, peer: Peer, request: wire.Request, **fields: Any) -> Outgoing:
        reply = wire.Reply(v=wire.VERSION, op=request.op, id=request.id, **fields)
        return Outgoing(peer, wire.encode_reply(reply))

    def _refuse(self, peer: Peer, op: str, id: str, error: RunnelError) -> Outgoing:
        """The reply to a request that was not taken."""
        if isinstance(error, WireError):
            log.warning("bad message", peer=peer, error=error.message)
        reply = wire.Reply(v=wire.VERSION, op=op, id=id, error=self._count(error))
        return Outgoing(peer, wire.encode_reply(reply))

    def _count(self, error: RunnelError) -> wire.ErrorInfo:
        self.stats.errors[error.code] += 1
        return told(error)

    def _hello(self) -> wire.Description:
        """What is served; made anew, since a limit may have changed."""
        engine, place = self._engine, self._place
        return wire.Description(
            boot_id=self._boot_id,
            worker=place.index,
            workers=[address for address in place.addresses if address],
            limits=wire.Limits(
                streams=engine.max_streams,
                pending_per_peer=MAX_PENDING_PER_PEER,
                pending_bytes=MAX_PEER_BYTES - wire.MAX_MESSAGE_BYTES,
                reply_bytes=MAX_REPLY_BYTES,
                kept_replies=KEPT_REPLIES,
                idle_seconds=self.idle_seconds,
            ),
            **self._description,
        )


def _steps(request: wire.Request) -> int:
    """Time steps of a feed, as it states them."""
    if request.steps:
        return request.steps
    shape = request.inputs[0].shape if request.inputs else ()
    return shape[0] if shape else 0


def _open(named: Named) -> Stream:
    assert named.stream is not None  # the table has no such transition from ABSENT
    return named.stream
