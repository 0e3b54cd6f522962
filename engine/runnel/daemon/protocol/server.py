"""The server protocol, sans-IO: messages and the time in, replies out.

Rules of this file: no socket, no clock, no thread, no randomness. The tables in `transitions`, read by
`admission`, alone decide what a request may do. An error is the answer to its own request and affects no
other. Every request is answered exactly once.

Theory: `receive` takes requests and queues them by stream, in the order of arrival. `run` is one turn of the
scheduler, bounded in time and in bytes. Requests of one stream are run in order. Any exception belongs
to the current request, which is answered with an error; the server itself continues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from ...errors import RunnelError, ShutdownError, StageError, UnknownStreamError, WireError, WrongWorkerError
from ...stage import as_error
from ...wire import messages
from ...wire.placement import Placement
from ..logs import Log, log_health
from .admission import Body
from .intake import MAX_PEER_BYTES, MAX_PENDING_PER_PEER, Intake, QueuedRequest
from .jobs import MAX_REPLY_BYTES
from .outgoing import Outgoing, Peer, Replies, bundles, description, error_info
from .replycache import CACHED_REPLIES
from .scheduler import Scheduler
from .stats import Stats
from .streams import Streams
from .streamtable import StreamRecord, StreamTable
from .transitions import OPENS, event_of

if TYPE_CHECKING:
    from ...engine import Engine

log = Log("runnel.serve")


def _stopped_clock() -> float:
    return 0.0


class ServerProtocol:
    """Serves one engine's streams to peers.

    `boot_id` is different at each start of the worker. Epochs that the server chooses are greater than
    `first_epoch`, which should also be different at each start. `idle_seconds`: a stream without a request
    for longer is closed (0: never); it may be set while the server runs. `placement`: which worker this is.
    `user_streams`: streams that each user can always count on; 0: a share, see `Quota`. `clock`: seconds,
    for the time bound of a turn; with a clock that stands still, only bytes bound a turn. Raises
    PipelineError if the wire has no datatype for a signal of the pipeline.
    """

    def __init__(
        self,
        engine: Engine,
        boot_id: str,
        first_epoch: int = 0,
        idle_seconds: float = 0.0,
        placement: Placement | None = None,
        user_streams: int = 0,
        clock: Callable[[], float] = _stopped_clock,
    ) -> None:
        self.idle_seconds = idle_seconds
        self.stats = Stats()
        self.gauges: Callable[[], Mapping[str, float]] = dict  # figures of the process; the daemon sets this
        self._engine = engine
        self._boot_id = boot_id
        self._placement = placement or Placement()
        self._description = description(engine)
        self._table = StreamTable()
        self._streams = Streams(engine, self._table, self.stats, first_epoch, user_streams)
        self._intake = Intake()
        self._scheduler = Scheduler(engine, self._streams, self._table, self.stats, clock, self._answer)
        self._replies = Replies()  # those of the current turn
        self._encoded: dict[str, msgspec.Raw] = {}  # encoded answers, shared by the questions of one message
        self._numbered = 0
        self._stopping = False
        self._began = 0.0  # the last run
        engine.health.on_event = log_health
        self._answered: list[float] = []  # arrival times of the requests that the last run answered

    def expect_users(self, users: int) -> None:
        """Set how many users may come; each can count on a share of streams and of queued requests."""
        self._streams.expect_users(users)
        self._intake.expect_users(users)

    def set_unread(self, unread: Callable[[Peer], int]) -> None:
        """Set `unread`, which returns the bytes of replies that a peer has not read."""
        self._scheduler.unread = unread

    @property
    def pending(self) -> int:
        """Number of queued requests."""
        return self._intake.count

    @property
    def stalled(self) -> bool:
        """Whether the last run did nothing, because every queued request waits for its peer to read."""
        return self._scheduler.stalled

    @property
    def full(self) -> bool:
        """Whether requests of the next message may be refused: then run before receiving more."""
        return self._intake.full

    @property
    def due(self) -> float | None:
        """When `tick` next has something to do, if nothing else happens."""
        return self._table.due(self.idle_seconds)

    def stop(self) -> None:
        """Answer every new request with ShutdownError from now on. Queued requests are still run."""
        self._stopping = True

    def receive(self, peer: Peer, frames: Sequence[bytes], now: float, user: str = "") -> list[Outgoing]:
        """Take any message, valid or not. Return the immediate replies: hello, stats, refusals.

        `user`: who sent it, if known. Two users' streams of the same name are different streams.
        """
        self._encoded.clear()
        try:
            if messages.bundled(frames):
                error_info = [
                    out.frames
                    for request, buffers in messages.decode_requests(frames)
                    for out in self._receive(peer, request, buffers, now, user, True)
                ]
                return bundles(peer, error_info)
            request, buffers = messages.decode_request(frames)
            return self._receive(peer, request, buffers, now, user, False)
        except Exception as error:
            return [self.refuse(peer, frames, as_error("engine", error))]

    def _receive(
        self,
        peer: Peer,
        request: messages.Request,
        buffers: Sequence[bytes],
        now: float,
        user: str,
        bundled: bool,
    ) -> list[Outgoing]:
        op = request.op
        self.stats.requests[op] += 1
        try:
            if op == "stats":  # also while stopping: that is when an operator looks
                return [self._reply_now(peer, request, stats=self._once("stats", self.document))]
            if self._stopping:
                raise ShutdownError("the daemon is stopping: connect again when it is back")
            if op == "hello":
                return [self._reply_now(peer, request, server=self._once("hello", self._hello))]
            self._take(peer, request, buffers, now, user, bundled)
        except Exception as error:
            return [self._refuse(peer, op, request.id, as_error("engine", error))]
        return []

    def refuse(self, peer: Peer, frames: Sequence[bytes], error: RunnelError) -> Outgoing:
        """Refuse a whole message, valid or not, with an error."""
        ids = messages.salvage_ids(frames)
        self.stats.requests[""] += len(ids)
        refusals = [self._refuse(peer, "", id, error).frames for id in ids]
        return bundles(peer, refusals)[0]

    def run(self, now: float) -> list[Outgoing]:
        """Run one turn of the queued requests, and return the replies. Call again while `pending`."""
        self._began = now
        self._answered.clear()
        self._replies = Replies()
        self._scheduler.turn(now)
        return self._replies.outgoing()

    def done(self, now: float) -> None:
        """Record how long the last `run` took, once its replies are sent."""
        observe = self.stats.latency.observe
        for arrived in self._answered:
            observe(now - arrived)
        if self.idle_seconds:  # a stream is idle from its reply on, however long the batch took
            for record in self._scheduler.ran:
                if record.stream is not None and self._table.used_at(
                    record, self._began
                ):  # not one that only refused
                    self._table.touch(record, record.peer, now)
        if self._answered:
            self.stats.batch_seconds.observe(now - self._began)
            self._answered.clear()

    def postpone(self, seconds: float) -> None:
        """Extend all deadlines after a pause of the process: idle streams, old replies."""
        self._table.postpone(seconds)

    def tick(self, now: float) -> list[Outgoing]:
        """Close idle streams and forget what is old. Return a notice for each closed stream."""
        notices = []
        for record in self._table.idle(self.idle_seconds, now):
            reason = f"was closed: no request for {self.idle_seconds:g} s"
            seq = record.stream.seq if record.stream is not None else 0
            reply = messages.Reply(
                v=messages.VERSION,
                op="close",
                sequence_id=record.name,
                epoch=record.epoch,
                applied_seq=record.applied,
                error=error_info(UnknownStreamError(f"stream {record.name!r} {reason}")),
            )
            notices.append(Outgoing(record.peer, messages.encode_reply(reply)))
            self._engine.notices("idle", record.key, seq, reason)
            self._streams.close(record, "idle", reason, now)
            log.info("stream closed", stream=record.key, reason="idle", idle_seconds=self.idle_seconds)
        self._table.expire(now)
        return notices

    def document(self) -> dict[str, Any]:
        """Counters and gauges, as the answer to stats."""
        return {
            "worker": self._placement.index,
            "boot_id": self._boot_id,
            "streams": len(self._engine.streams),
            "max_streams": self._engine.max_streams,
            "pending": self._intake.count,
            "pending_bytes": self._intake.nbytes,
            "kept_bytes": self._table.cached_bytes,
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
        request: messages.Request,
        buffers: Sequence[bytes],
        now: float,
        user: str,
        bundled: bool,
    ) -> None:
        event = event_of(request)
        nbytes = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        name = request.sequence_id or self._new_name()
        placement = self._placement
        if len(placement.addresses) > 1 and not placement.owns(name):
            raise WrongWorkerError(
                f"stream {name!r} belongs to another worker than {placement.index} of "
                f"{len(placement.addresses)}: "
                "its address is in the answer to hello, workers[crc32(name) % len(workers)]"
            )
        self._intake.take(peer, user, nbytes)
        try:
            key = f"{user}/{name}" if user else name
            record = self._table.find(key) or self._table.add(key, name, user)
            self._scheduler.add(
                record, QueuedRequest(peer, user, request, buffers, event, nbytes, now, bundled)
            )
        except Exception:
            self._intake.give(peer, user, nbytes)
            raise

    def _new_name(self) -> str:
        """Make a name for a stream: one of this worker, and never reused after a restart."""
        while True:
            self._numbered += 1
            name = f"{self._boot_id}-{self._numbered}"
            if self._placement.owns(name):
                return name

    # Answering.

    def _answer(self, record: StreamRecord, pending: QueuedRequest, result: Body | RunnelError) -> None:
        """Answer a request that the scheduler has finished."""
        self._intake.give(pending.peer, pending.user, pending.nbytes)
        self._answered.append(pending.arrived)
        try:
            frames = self._reply(record, pending, result)
        except Exception as error:  # a repeat of the request gets the reply
            frames = self._short_of(pending.request, error)
        if frames:
            self._replies.add(pending.peer, pending.bundled, frames)

    def _short_of(self, request: messages.Request, error: Exception) -> list[bytes]:
        """A short error reply in place of one that failed; no frames if memory is exhausted."""
        with suppress(Exception):
            short = messages.ErrorInfo("LIMIT", f"the reply failed: {type(error).__name__}; ask again", True)
            return messages.encode_reply(
                messages.Reply(v=messages.VERSION, op=request.op, id=request.id, error=short)
            )
        return []

    def _reply(self, record: StreamRecord, pending: QueuedRequest, result: Body | RunnelError) -> list[bytes]:
        """Encode the reply to a request that was taken."""
        request = pending.request
        if isinstance(result, RunnelError):
            # Only the stream's owner may learn its epoch and seq.
            known = (
                record.stream is not None
                and request.epoch in (0, record.epoch)
                and pending.event not in OPENS
            )
            reply = messages.Reply(
                v=messages.VERSION,
                op=request.op,
                id=request.id,
                sequence_id=record.name,
                epoch=record.epoch if known else 0,
                applied_seq=record.applied if known else 0,
                error=self._count(result),
            )
            if isinstance(result, StageError):
                log.exception("stage failed", result, stream=record.key, error=result.message)
            return messages.encode_reply(reply)
        infos, buffers = result
        reply = messages.Reply(
            v=messages.VERSION,
            op=request.op,
            id=request.id,
            sequence_id=record.name,
            epoch=record.epoch,
            applied_seq=record.applied,
            outputs=infos,
        )
        return messages.encode_reply(reply, buffers)

    def _once(self, what: str, make: Callable[[], Any]) -> msgspec.Raw:
        """Encode an answer once for all questions of a message."""
        encoded = self._encoded.get(what)
        if encoded is None:
            encoded = self._encoded[what] = msgspec.Raw(msgspec.msgpack.encode(make()))
        return encoded

    def _reply_now(self, peer: Peer, request: messages.Request, **fields: Any) -> Outgoing:
        reply = messages.Reply(v=messages.VERSION, op=request.op, id=request.id, **fields)
        return Outgoing(peer, messages.encode_reply(reply))

    def _refuse(self, peer: Peer, op: str, id: str, error: RunnelError) -> Outgoing:
        """Make the error reply to a request that was not taken."""
        if isinstance(error, WireError):
            log.warning("bad message", peer=peer, error=error.message)
        reply = messages.Reply(v=messages.VERSION, op=op, id=id, error=self._count(error))
        return Outgoing(peer, messages.encode_reply(reply))

    def _count(self, error: RunnelError) -> messages.ErrorInfo:
        self.stats.errors[error.code] += 1
        return error_info(error)

    def _hello(self) -> messages.Description:
        """The answer to hello; made anew each time, since a limit may have changed."""
        engine, placement = self._engine, self._placement
        user_pending, user_bytes = self._intake.user_share
        return messages.Description(
            boot_id=self._boot_id,
            worker=placement.index,
            workers=[address for address in placement.addresses if address],
            limits=messages.Limits(
                streams=engine.max_streams,
                user_streams=self._streams.user_share,
                user_pending=user_pending,
                user_pending_bytes=user_bytes,
                pending_per_peer=MAX_PENDING_PER_PEER,
                pending_bytes=MAX_PEER_BYTES - messages.MAX_MESSAGE_BYTES,
                reply_bytes=MAX_REPLY_BYTES,
                kept_replies=CACHED_REPLIES,
                idle_seconds=self.idle_seconds,
            ),
            **self._description,
        )
