"""One turn of a server: run requests within a budget, and step the feeds as one batch.

Rules of this file: no socket, no thread; the clock is an argument.

Theory: a turn takes requests round-robin, by peer and then by stream, until its time or its bytes are used
up. Feeds are gathered and stepped as one batch at the end of the turn. A long request is a *job*: each turn
does a piece of it (jobs.py). The slices of all jobs are stepped together. While a stream has a job, or a
feed in the batch, its next request waits.

Replies that a client has not read hold back its next ones. An exception of a stage, a codec or memory belongs
to the current request: the request is answered with an error, and its stream is unchanged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct

from ...errors import RunnelError, TooLargeError
from ...pipeline.passage import Passage
from ...spec import Array
from ...stage import MAX_PASSAGES, Steps, as_error
from ...wire import messages
from ...wire.tensors import pack, unpack
from .admission import NOTHING, Body, admit
from .budget import SLICE_SECONDS, Sizes, StepCosts, TurnBudget
from .intake import QueuedRequest
from .jobs import BLOCK, MAX_REPLY_BYTES, Job, ReplyBuffer, check_in_blocks, digest_in_blocks, too_large
from .outgoing import Peer
from .replycache import digest_of
from .roundrobin import RoundRobin
from .stats import Stats
from .streams import Streams
from .streamtable import StreamRecord, StreamTable
from .transitions import CHANGES, FEEDS, RETURNS_STATE, Event

if TYPE_CHECKING:
    from ...engine import Engine
    from ...stream import Stream

SMALL_REPLY: Final = 64 * 1024  # bytes: a reply up to this size never waits for others to be read
MAX_UNREAD_BYTES: Final = 64 * 2**20  # of one client's unread replies, before more are made
# The most that a restore can send back.
MAX_SNAPSHOT_BYTES: Final = messages.MAX_MESSAGE_BYTES - 2 * messages.MAX_HEADER
FULL_BATCH: Final = 256  # streams: up to this, single time steps go in one batch, which makes them cheap
MAX_JOBS_PER_PEER: Final = MAX_PASSAGES // 4  # one client's share of the jobs

Outputs = Mapping[str, Array]
Answer = Callable[[StreamRecord, QueuedRequest, "Body | RunnelError"], None]
"""Called once for each request, with the body of its reply or its error."""


class _Feed(Struct, eq=False, gc=False):
    """A feed that is stepped whole, in the batch of its turn."""

    record: StreamRecord
    stream: Stream
    pending: QueuedRequest
    chunk: Outputs


class _ActiveJob(Struct, eq=False, gc=False):
    """A request that is done piece by piece, from turn to turn."""

    record: StreamRecord
    pending: QueuedRequest
    generator: Job
    need: int  # bytes of reply that it is expected to make
    passage: Passage | None = None  # set while the job waits for its next slice


class Scheduler:
    """Runs the queued requests of all streams.

    `unread` returns the known bytes of replies that a peer has not read.
    """

    def __init__(
        self,
        engine: Engine,
        streams: Streams,
        table: StreamTable,
        stats: Stats,
        clock: Callable[[], float],
        answer: Answer,
    ) -> None:
        self.unread: Callable[[Peer], int] = _none
        self.stalled = False  # the last turn did nothing: every queued request waits for its peer to read
        self.ran: list[StreamRecord] = []  # streams that had a request in the last turn
        self._engine = engine
        self._streams = streams
        self._table = table
        self._stats = stats
        self._clock = clock
        self._answer = answer
        self._now = 0.0
        self._costs = StepCosts()
        self._sizes = Sizes(engine.pipeline.inputs, engine.pipeline.unrolled.stages)
        # Streams whose next request, or next piece of a job, may run.
        self._ready: RoundRobin[Peer, StreamRecord] = RoundRobin()
        self._jobs: dict[StreamRecord, _ActiveJob] = {}
        self._jobs_of: dict[Peer, int] = {}
        self._reserved: dict[Peer, int] = {}  # bytes of reply that a peer's jobs are expected to make
        self._made: dict[Peer, int] = {}  # bytes of reply made in this turn and not yet sent

    def add(self, record: StreamRecord, pending: QueuedRequest) -> None:
        """Queue a request of a stream."""
        if pending.event in FEEDS:
            request = pending.request
            if request.steps:
                pending.steps = request.steps
            elif request.inputs and (shape := request.inputs[0].shape):
                pending.steps = shape[0]
            sizes, steps = self._sizes, pending.steps
            made, pending.held = sizes.one if steps == 1 else (sizes.made(steps), sizes.held(steps))
            pending.need = made if made < MAX_REPLY_BYTES else MAX_REPLY_BYTES
        if record.queue is None:
            record.queue = deque((pending,))
            self._ready.add(pending.peer, record)
        else:
            record.queue.append(pending)

    def turn(self, now: float) -> None:
        """Run one turn's worth of requests; answer each one that is done."""
        self._now = now
        ran: list[StreamRecord] = []
        self.ran, jobs, ready = ran, self._jobs, self._ready
        turn = TurnBudget(self._clock)
        batch: list[_Feed] = []
        slices: list[_ActiveJob] = []
        passed_over: list[tuple[Peer, StreamRecord]] = []
        while ready.count and not (ran and turn.over):
            peer, record = ready.take()
            job = jobs.get(record) if jobs else None
            if job is None:
                if not self._try_begin(peer, record, turn, batch):
                    passed_over.append((peer, record))
                    continue
            elif job.passage is None:
                self._continue(job, None)
            else:
                if not slices:
                    turn.reserve(SLICE_SECONDS)
                slices.append(job)
            ran.append(record)
        if batch:
            self._run_batch(batch)
        if slices:
            self._run_slices(slices)
        for peer, record in passed_over:
            ready.add(peer, record)
        self.stalled = not self.ran
        self._made.clear()

    # Doing a request.

    def _try_begin(self, peer: Peer, record: StreamRecord, turn: TurnBudget, batch: list[_Feed]) -> bool:
        """Do the stream's next request, add it to the batch, or make it a job.

        Return False if it must wait: until its peer reads, or until there is room for another job.
        """
        assert record.queue is not None
        pending: QueuedRequest = record.queue[0]
        long = self._takes_long(pending)
        if long and (len(self._jobs) >= MAX_PASSAGES or self._jobs_of.get(peer, 0) >= MAX_JOBS_PER_PEER):
            return False
        need = pending.need or self._state_bytes(record, pending)
        made = self._made.get(peer, 0)
        if need > SMALL_REPLY:
            waiting = made + self._reserved.get(peer, 0) + self.unread(peer)
            if waiting and waiting + need > MAX_UNREAD_BYTES:
                return False
        record.queue.popleft()
        begun: _Feed | Job | Body | RunnelError
        try:
            begun = self._prepare(record, pending, long)
        except Exception as error:
            begun = as_error("engine", error)
        if isinstance(begun, _Feed):
            steps = pending.steps
            if steps > 1 or len(batch) >= FULL_BATCH:
                turn.reserve(self._costs.estimate(steps))
            turn.bytes -= pending.held
            self._made[peer] = made + need
            batch.append(begun)
            return True
        turn.bytes -= need
        if isinstance(begun, Generator):
            self._jobs[record] = job = _ActiveJob(record, pending, begun, need)
            self._jobs_of[peer] = self._jobs_of.get(peer, 0) + 1
            self._reserved[peer] = self._reserved.get(peer, 0) + need
            self._continue(job, None)
        else:
            self._made[peer] = made + need
            self._finish(record, pending, begun)
        return True

    def _takes_long(self, pending: QueuedRequest) -> bool:
        """Whether the request is done in pieces, from turn to turn."""
        if pending.nbytes > BLOCK:
            return True
        if pending.event not in FEEDS:
            return False
        if pending.request.sequence_end:  # if the flush fails, the chunk must be undone with it
            return True
        steps = pending.steps
        return steps > 1 and (steps > self._sizes.slice_steps or self._costs.estimate(steps) > SLICE_SECONDS)

    def _state_bytes(self, record: StreamRecord, pending: QueuedRequest) -> int:
        """Bytes of reply to a request for the stream's state; 0 for any other request."""
        if pending.event in RETURNS_STATE and record.stream is not None:
            with suppress(Exception):  # the stage cannot return its state: the request itself will fail
                return record.stream.state_bytes
        return 0

    def _prepare(self, record: StreamRecord, pending: QueuedRequest, long: bool) -> _Feed | Job | Body:
        """Do a short request, or begin a long one. Raises what the tables and the engine raise."""
        if pending.nbytes > BLOCK:
            return self._job(record, pending)
        request, event = pending.request, pending.event
        pending.digest = digest_of(event, request.inputs, pending.buffers, request.steps)
        again = self._admitted(record, pending)
        if again is not None:
            return again
        if event not in FEEDS:
            return self._call(record, pending)
        chunk = self._chunk(pending)
        if long:
            return self._feed_job(record, pending, chunk)
        stream = self._streams.open(record) if request.sequence_start else _open(record)
        return _Feed(record, stream, pending, chunk)

    def _admitted(self, record: StreamRecord, pending: QueuedRequest) -> Body | None:
        """Return None if the request must be done, or the cached reply if it was done before."""
        again = admit(record, pending.request, pending.event, pending.digest)
        if record.stream is not None:
            self._table.touch(record, pending.peer, self._now)
        if again is not None:
            self._stats.repeats += 1
        return again

    def _chunk(self, pending: QueuedRequest) -> Any:
        """The feed's chunk. Raises ChunkError, or TooLargeError if its reply would be too large."""
        request, steps = pending.request, pending.steps
        if pending.need >= MAX_REPLY_BYTES and (nbytes := self._sizes.made(steps)) > MAX_REPLY_BYTES:
            raise too_large(nbytes, steps, self._sizes.steps_within(MAX_REPLY_BYTES))
        return Steps(steps) if request.steps else unpack(request.inputs, pending.buffers)

    def _call(self, record: StreamRecord, pending: QueuedRequest) -> Body:
        """Do an admitted request that is not a feed."""
        stream = record.stream
        mark = stream.savepoint() if stream is not None else None
        try:
            body = self._done(record, pending)
            if pending.event in CHANGES:
                self._table.keep(record, pending.digest, *body, self._now)
                record.applied += 1
        except Exception:
            if stream is not None and mark is not None:
                stream.rollback(mark)
            raise
        return body

    def _done(self, record: StreamRecord, pending: QueuedRequest) -> Body:
        event, request = pending.event, pending.request
        if event is Event.OPEN or event is Event.RESTORE:
            blob = b"".join(pending.buffers) if event is Event.RESTORE else None
            stream = self._streams.open(record, blob, checked=pending.nbytes > BLOCK)  # checked in `_job`
            self._streams.begin(record, pending, stream, stream.seq, self._now)
            return NOTHING
        stream = _open(record)
        if event is Event.FLUSH:
            return pack(self._flush(stream))
        if event is Event.SNAPSHOT:
            return _snapshot(stream)
        if event is Event.RESET:
            stream.reset()
        elif event is Event.RESUME:
            epoch = request.new_epoch or self._streams.new_epoch()
            record.resumed_from = 0 if request.new_epoch else request.epoch
            record.epoch = epoch
            self._stats.resumed += 1
        else:
            self._streams.close(record, "closed", "was closed", self._now)
        return NOTHING

    def _flush(self, stream: Stream) -> Outputs:
        """Flush. The wire needs a name even for a single output."""
        outputs = stream.flush()
        if isinstance(outputs, np.ndarray):
            return {self._engine.pipeline.outputs.names[0]: outputs}
        named: Outputs = outputs
        return named

    # Jobs.

    def _job(self, record: StreamRecord, pending: QueuedRequest) -> Job:
        """A request whose payload alone takes long to read."""
        request, event = pending.request, pending.event
        pending.digest = yield from digest_in_blocks(event, request.inputs, pending.buffers)
        again = self._admitted(record, pending)
        if again is not None:
            return again
        if event in FEEDS:
            return (yield from self._feed_job(record, pending, self._chunk(pending)))
        if event is Event.RESTORE:
            yield from check_in_blocks(pending.buffers)
        return self._call(record, pending)

    def _feed_job(self, record: StreamRecord, pending: QueuedRequest, chunk: Any) -> Job:
        """A feed, slice by slice, with its flush if it ends the stream."""
        request, last = pending.request, pending.request.sequence_end
        stream = self._streams.open(record) if request.sequence_start else _open(record)
        passage: Passage | None = None
        try:
            passage = self._engine.begin(stream, chunk)
            made = ReplyBuffer(self._engine.pipeline.outputs)
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
                self._streams.discard(record, stream, "failed")
            raise
        self._streams.applied(record, stream, pending, body, self._now)
        return body

    def _continue(self, job: _ActiveJob, made: Outputs | RunnelError | None) -> None:
        """Continue a job with the output of its last slice."""
        outcome: Body | RunnelError
        try:
            if isinstance(made, RunnelError):
                job.passage = job.generator.throw(made)
            else:
                job.passage = job.generator.send(made)  # type: ignore[arg-type]  # the first is None
        except StopIteration as end:
            outcome = end.value
        except Exception as error:
            outcome = as_error("engine", error)
        else:
            self._ready.add(job.pending.peer, job.record)
            return
        self._end(job)
        self._finish(job.record, job.pending, outcome)

    def _end(self, job: _ActiveJob) -> None:
        del self._jobs[job.record]
        peer = job.pending.peer
        left = self._jobs_of[peer] - 1
        if left:
            self._jobs_of[peer] = left
            self._reserved[peer] -= job.need
        else:
            del self._jobs_of[peer]
            del self._reserved[peer]
        self._made[peer] = self._made.get(peer, 0) + job.need

    def _run_slices(self, jobs: Sequence[_ActiveJob]) -> None:
        """Step the next slice of every job together."""
        self._count(len(jobs))
        passages = [job.passage for job in jobs if job.passage is not None]
        share = max(1, min(self._sizes.slice_steps, self._costs.slice(2**31)) // len(jobs))
        parts = [(passage, min(passage.left, share)) for passage in passages]
        began = self._clock()
        made: Sequence[Any]
        try:
            made = self._engine.advance(parts)
        except Exception as error:
            made = [as_error("engine", error)] * len(parts)
        self._costs.learn([steps for _, steps in parts], self._clock() - began)
        for job, result in zip(jobs, made, strict=True):
            self._continue(job, result)

    # The batch.

    def _run_batch(self, batch: Sequence[_Feed]) -> None:
        """Step each stream of the batch once."""
        self._count(len(batch))
        marks = [feed.stream.savepoint() for feed in batch]
        began = self._clock()
        results: Sequence[Any]
        try:
            results = self._engine.feed_many([(feed.stream, feed.chunk) for feed in batch])
        except Exception as error:  # a fault of the engine itself: undo what it committed
            for feed, mark in zip(batch, marks, strict=True):
                feed.stream.rollback(mark)
            results = [as_error("engine", error)] * len(batch)
        self._costs.learn([feed.pending.steps for feed in batch], self._clock() - began)
        for feed, mark, result in zip(batch, marks, results, strict=True):
            outcome: Body | RunnelError
            try:
                outcome = result if isinstance(result, RunnelError) else self._commit(feed, result)
            except Exception as error:
                feed.stream.rollback(mark)
                outcome = as_error("engine", error)
            opened = feed.pending.request.sequence_start
            if opened and isinstance(outcome, RunnelError) and not feed.stream.closed:
                self._streams.discard(feed.record, feed.stream, "failed")
            self._finish(feed.record, feed.pending, outcome)

    def _commit(self, feed: _Feed, outputs: Outputs) -> Body:
        """Commit one result of the batch: apply its seq and cache its reply."""
        body = pack(outputs)
        nbytes = sum(map(len, body[1]))
        if nbytes > MAX_REPLY_BYTES:
            raise too_large(nbytes)
        self._streams.applied(feed.record, feed.stream, feed.pending, body, self._now)
        return body

    # Small parts.

    def _count(self, streams: int) -> None:
        self._stats.batches += 1
        self._stats.batch_sizes.observe(streams)

    def _finish(self, record: StreamRecord, pending: QueuedRequest, outcome: Body | RunnelError) -> None:
        """Answer a request, and make the stream's next one ready."""
        self._answer(record, pending, outcome)
        if isinstance(outcome, RunnelError):
            # The traceback refers to this turn's frames and they to it: that cycle would keep the chunk
            # alive.
            outcome.__traceback__ = None
        if record.queue:
            self._ready.add(record.queue[0].peer, record)
            return
        record.queue = None
        if record.stream is None:
            self._table.forget_unused(record)


def _snapshot(stream: Stream) -> Body:
    if stream.state_bytes > MAX_SNAPSHOT_BYTES:
        raise TooLargeError(
            f"the stream's state has {stream.state_bytes} bytes; a snapshot of more than "
            f"{MAX_SNAPSHOT_BYTES} could not be sent back to be restored"
        )
    blob = stream.snapshot()
    return [messages.TensorInfo("snapshot", "UINT8", [len(blob)])], [blob]


def _open(record: StreamRecord) -> Stream:
    assert record.stream is not None  # the table has no such transition from ABSENT
    return record.stream


def _none(peer: Peer) -> int:
    return 0
