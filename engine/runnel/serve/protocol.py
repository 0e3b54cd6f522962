"""The daemon's half of the protocol, sans-IO: messages and the time in, replies out.

Rules of this file: no socket, no clock, no thread, no randomness; what a request may do is in `transitions`,
read by `admission`, and nowhere else; an error is answered to the request that it belongs to and touches no
other; every request is answered exactly once.

Theory: `receive` takes requests and keeps those for streams in one queue a stream, in the order of
arrival. `run` takes from each queue what can be done now: calls on the stream up to and including its
first feed. The feeds of all queues are one batch, so a batch steps a stream at most once, order within
a stream holds for every request alike, and the batch grows with what has arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct

from ..errors import (
    LimitError,
    RunnelError,
    ShutdownError,
    StageError,
    UnknownStreamError,
    WireError,
    WrongWorkerError,
)
from ..spec import Array
from ..stage import as_error
from . import wire
from .admission import NOTHING, Body, admit
from .logs import Log, tell_health
from .placement import Place
from .replies import Outgoing, Peer, Replies, bundles, description, told
from .sequences import KEPT_REPLIES, Named, Register, digest_of
from .shares import Places
from .stats import Stats
from .tensors import pack, steps_asked, unpack
from .transitions import BEGINS, CHANGES, Event, event_of

if TYPE_CHECKING:
    from ..engine import Engine
    from ..stream import Stream

MAX_PENDING: Final = 16 * 1024  # requests taken and not yet run: about a second of work
MAX_PENDING_PER_PEER: Final = 1024  # one client's share: more than any useful window of requests
MAX_PENDING_BYTES: Final = 256 * 2**20  # tensors taken and not yet run
ROOM: Final = wire.MAX_BUNDLE - 1  # of these are kept free: a message is taken whole, or waits outside
ROOM_BYTES: Final = wire.MAX_MESSAGE_BYTES - 1

log = Log("runnel.serve")

Outputs = Mapping[str, Array]


class _Pending(Struct, eq=False, gc=False):
    """A request that was taken. Made for each message, as `_Step`: so of the cheapest kind there is."""

    peer: Peer
    user: str
    request: wire.Request
    buffers: Sequence[bytes]
    event: Event
    nbytes: int
    arrived: float
    bundled: bool  # then so is its reply
    digest: int = 0  # of its event and payload, once it is run


class _Step(Struct, eq=False, gc=False):
    """A feed in a batch."""

    named: Named
    stream: Stream
    pending: _Pending
    digest: int
    chunk: Mapping[str, Array]
    before: bytes | None  # the stream as it was, where the feed is its last


class Server:
    """One engine's streams, served to peers.

    `boot_id` tells this start of the worker from all others; epochs that the server chooses come after
    `first_epoch`, which should be another at each start. `idle_seconds`: a stream without a request for
    longer is closed (0: never); it may be set while the server runs. `place`: which worker this is.
    `user_streams`: streams that each user can count on, whatever others do; 0: a share, as `Places` has it.
    Raises PipelineError for a pipeline whose signals the wire has no datatype for.
    """

    def __init__(
        self,
        engine: Engine,
        boot_id: str,
        first_epoch: int = 0,
        idle_seconds: float = 0.0,
        place: Place | None = None,
        user_streams: int = 0,
    ) -> None:
        self.idle_seconds = idle_seconds
        self.stats = Stats()
        self.gauges: Callable[[], Mapping[str, float]] = dict  # of the process, by who may ask the system
        self._engine = engine
        self._boot_id = boot_id
        self._place = place or Place()
        self._description = description(engine)
        self._register = Register()
        self._ready: dict[Named, None] = {}  # those whose queue is not empty, oldest first
        self._per_peer: dict[Peer, int] = {}
        self._pending = 0
        self._pending_bytes = 0
        self._streams = Places(engine.max_streams, user_streams)
        self._waiting = Places(MAX_PENDING - ROOM)  # what the server takes until it is `full`
        self._waiting_bytes = Places(MAX_PENDING_BYTES - ROOM_BYTES)
        self._numbered = 0
        self._epoch = first_epoch
        self._stopping = False
        self._began = 0.0  # of the last run
        self._ran: list[Named] = []  # whose requests were in it
        engine.health.told = tell_health
        self._answered: list[float] = []  # when the requests arrived that the last run answered

    def expect(self, users: int) -> None:
        """So many users may come; each can count on a share of streams and of requests that wait."""
        for places in (self._streams, self._waiting, self._waiting_bytes):
            places.users = users

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
        except RunnelError as error:
            return [self.refuse(peer, frames, error)]
        return self._receive(peer, request, buffers, now, user, False)

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
        except RunnelError as error:
            return [self._refuse(peer, op, request.id, error)]
        return []

    def refuse(self, peer: Peer, frames: Sequence[bytes], error: RunnelError) -> Outgoing:
        """Answer a message with an error, whatever its bytes, and take nothing of it."""
        ids = wire.salvage_ids(frames)
        self.stats.requests[""] += len(ids)
        refusals = [self._refuse(peer, "", id, error).frames for id in ids]
        return bundles(peer, refusals)[0]

    def run(self, now: float) -> list[Outgoing]:
        """Run one batch of what is pending; call again while `pending`. Returns the replies."""
        self._began = now
        self._answered.clear()
        replies = Replies()
        batch: list[_Step] = []
        touched = self._ran = list(self._ready)
        for named in touched:
            queue = named.queue
            while queue:
                pending = queue.popleft()
                self._untake(pending)
                try:
                    step = self._prepare(named, pending, now)
                except Exception as error:
                    replies.add(
                        pending.peer, pending.bundled, self._answer(named, pending, as_error("engine", error))
                    )
                    continue
                if step.__class__ is _Step:
                    batch.append(step)
                    break
                replies.add(pending.peer, pending.bundled, self._answer(named, pending, step))  # type: ignore[arg-type]
            if not queue:
                named.queue = None
                del self._ready[named]
        if batch:
            self._feed(batch, replies, now)
        for named in touched:
            if named.stream is None:
                self._register.settle(named)
        return replies.outgoing()

    def done(self, now: float) -> None:
        """The replies of the last `run` are on their way: how long that took is noted."""
        observe = self.stats.latency.observe
        for arrived in self._answered:
            observe(now - arrived)
        if self.idle_seconds:  # silence is what comes after the reply, however long the batch took
            for named in self._ran:
                if named.stream is not None and self._register.used_at(
                    named, self._began
                ):  # not one that only refused
                    self._register.touch(named, named.peer, now)
        if self._answered:
            self.stats.batch_seconds.observe(now - self._began)
            self._answered.clear()

    def postpone(self, seconds: float) -> None:
        """The daemon did not run for so long: put off when streams are idle, and when replies are old."""
        self._register.postpone(seconds)

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
        if self._waiting.users > 1 and not (
            self._waiting.room(user) and self._waiting_bytes.room(user, nbytes)
        ):
            raise LimitError(
                f"{self._waiting.held(user)} requests of this user wait already, "
                f"{self._waiting_bytes.held(user)} bytes, and the room left is kept free for other users: "
                "read replies first"
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
        named = self._register.find(key) or self._register.add(key, name, user)
        pending = _Pending(peer, user, request, buffers, event, nbytes, now, bundled)
        if named.queue is None:
            named.queue = deque((pending,))
            self._ready[named] = None
        else:
            named.queue.append(pending)
        self._per_peer[peer] = waiting + 1
        self._waiting.take(user)
        self._waiting_bytes.take(user, nbytes)
        self._pending += 1
        self._pending_bytes += nbytes

    def _untake(self, pending: _Pending) -> None:
        self._pending -= 1
        self._pending_bytes -= pending.nbytes
        self._waiting.give(pending.user)
        self._waiting_bytes.give(pending.user, pending.nbytes)
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

    def _prepare(self, named: Named, pending: _Pending, now: float) -> _Step | Body:
        """Do a request, or make a step of it. Raises what the tables, the epoch and the engine say."""
        request, event = pending.request, pending.event
        steps = request.steps
        digest = pending.digest = digest_of(event, request.inputs, pending.buffers, steps)
        again = admit(named, request, event, digest)
        if named.stream is not None:
            self._register.touch(named, pending.peer, now)
        if again is not None:
            self.stats.repeats += 1
            return again
        if event in BEGINS:
            self._check_streams(named.user)
        if request.op == "feed":
            outputs = self._engine.pipeline.outputs
            chunk = steps_asked(steps, outputs) if steps else unpack(request.inputs, pending.buffers)
            # A stream that this feed opens gets its name once the feed has succeeded.
            first = request.sequence_start
            stream = self._opened(named, self._engine.open(named.key)) if first else _open(named)
            before = stream.snapshot() if event is Event.FEED_LAST else None
            return _Step(named, stream, pending, digest, chunk, before)
        body = self._call(named, pending, now)
        if event in CHANGES:
            named.applied += 1
            self._register.keep(named, digest, *body, now)
        return body

    def _check_streams(self, user: str) -> None:
        """Raise LimitError if the places that are left for streams are other users'."""
        streams = self._streams
        if streams.users > 1 and not streams.room(user) and streams.taken < streams.places:
            raise LimitError(
                f"{streams.held(user)} streams are this user's, and the {streams.places - streams.taken} "
                "places left are kept free for other users: close some. Each user can count on "
                f"{streams.part} of {streams.places}: user_streams and max_streams of the daemon"
            )

    def _call(self, named: Named, pending: _Pending, now: float) -> Body:
        """Everything but a feed, once admitted."""
        event, request = pending.event, pending.request
        if event is Event.OPEN:
            stream = self._opened(named, self._engine.open(named.key))
            self._begin(named, pending, stream, 0, now)
            return NOTHING
        if event is Event.RESTORE:
            stream = self._opened(named, self._engine.restore(bytes(pending.buffers[0]), named.key))
            self._begin(named, pending, stream, stream.seq, now)
            return NOTHING
        stream = _open(named)
        if event is Event.FLUSH:
            return pack(self._flush(stream))
        if event is Event.SNAPSHOT:
            blob = stream.snapshot()
            return [wire.TensorInfo("snapshot", "UINT8", [len(blob)])], [blob]
        if event is Event.RESET:
            stream.reset()
        elif event is Event.RESUME:
            named.resumed_from = 0 if request.new_epoch else request.epoch
            named.epoch = request.new_epoch or self._new_epoch()
            self.stats.resumed += 1
        else:
            self._part(named, "closed", "was closed", now)
        return NOTHING

    def _begin(self, named: Named, pending: _Pending, stream: Stream, applied: int, now: float) -> None:
        """The stream has its name, in the epoch that was asked for."""
        epoch = pending.request.epoch or self._new_epoch()
        self._register.begin(named, stream, epoch, applied, pending.digest)
        self._register.touch(named, pending.peer, now)

    def _part(self, named: Named, reason: str, text: str, now: float) -> None:
        self._close(named, self._register.part(named, text, now), reason)

    def _opened(self, named: Named, stream: Stream) -> Stream:
        """Count a stream that the engine has opened."""
        self._streams.take(named.user)
        self.stats.opened += 1
        return stream

    def _close(self, named: Named, stream: Stream, reason: str) -> None:
        """Close a stream of the engine. A stage that fails at this is logged: the stream is gone anyway."""
        self._streams.give(named.user)
        self.stats.closed[reason] += 1
        try:
            stream.close(reason)
        except Exception as error:
            log.exception("stage failed", error, stream=stream.id, error=as_error("engine", error).message)

    def _new_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def _feed(self, batch: Sequence[_Step], replies: Replies, now: float) -> None:
        """One step for each stream of the batch; its replies are added."""
        stats = self.stats
        stats.batches += 1
        stats.batch_sizes.observe(len(batch))
        results: Sequence[Any]
        try:
            results = self._engine.feed_many([(step.stream, step.chunk) for step in batch])
        except Exception as error:  # a fault of the engine's own: it committed nothing
            results = [as_error("engine", error)] * len(batch)
        for step, result in zip(batch, results, strict=True):
            named, pending = step.named, step.pending
            body: Body | RunnelError
            if isinstance(result, RunnelError):
                if pending.request.sequence_start:
                    self._undo_begin(step)
                body = result
            elif pending.request.sequence_end:
                body = self._end(step, result, now)
            else:
                body = self._commit(step, result, now)
            replies.add(pending.peer, pending.bundled, self._answer(named, pending, body))

    def _commit(self, step: _Step, outputs: Outputs, now: float) -> Body:
        """The step is done: its seq is applied, and its reply kept."""
        named = step.named
        body = pack(outputs)
        if step.pending.request.sequence_start:
            self._begin(named, step.pending, step.stream, 0, now)
        self.stats.chunks += 1
        named.applied += 1
        self._register.keep(named, step.digest, *body, now)
        return body

    def _end(self, step: _Step, outputs: Outputs, now: float) -> Body | RunnelError:
        """What the last chunk's step leaves to do: flush, and close."""
        try:
            rest = self._flush(step.stream)
            joined = {name: np.concatenate((array, rest[name])) for name, array in outputs.items()}
        except Exception as error:  # then the chunk was not applied either: its outputs go nowhere
            self._roll_back(step)
            return as_error("engine", error)
        body = self._commit(step, joined, now)
        self._part(step.named, "ended", "was closed: its end was fed", now)
        return body

    def _undo_begin(self, step: _Step) -> None:
        """Close the stream that a failed feed opened. Of its name is remembered what was before."""
        self._close(step.named, step.stream, "failed")

    def _roll_back(self, step: _Step) -> None:
        """The feed that was to end the stream failed: the stream is as it was before."""
        if step.pending.request.sequence_start:
            self._undo_begin(step)
            return
        assert step.before is not None
        step.stream.rewind(step.before)

    def _flush(self, stream: Stream) -> Outputs:
        """A pipeline with one output gives an array; the wire wants its name too."""
        outputs = stream.flush()
        if isinstance(outputs, np.ndarray):
            return {self._engine.pipeline.outputs.names[0]: outputs}
        named: Outputs = outputs
        return named

    # Answering.

    def _answer(self, named: Named, pending: _Pending, result: Body | RunnelError) -> list[bytes]:
        """The frames of the reply to a request that was taken."""
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
                user_streams=self._streams.part,
                user_pending=self._waiting.part,
                user_pending_bytes=self._waiting_bytes.part,
                pending_per_peer=MAX_PENDING_PER_PEER,
                kept_replies=KEPT_REPLIES,
                idle_seconds=self.idle_seconds,
            ),
            **self._description,
        )


def _open(named: Named) -> Stream:
    assert named.stream is not None  # the table has no such transition from ABSENT
    return named.stream
