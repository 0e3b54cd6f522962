"""The daemon's half of the protocol, sans-IO: messages and the time in, replies out.

Rules of this file: no socket, no clock, no thread, no randomness; what a request may do is in `transitions`,
read by `admission`, and nowhere else; an error is answered to the request that it belongs to and touches no
other; every request is answered exactly once.

Theory: `receive` takes requests and keeps those for streams in one queue a stream, in the order of
arrival. `run` is one turn of the runner (runner.py), bounded in time and in bytes; order within a stream
holds for every request alike. Whatever is raised belongs to the request at hand, which is answered with an
error; the server itself goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from ...errors import RunnelError, ShutdownError, StageError, UnknownStreamError, WireError, WrongWorkerError
from ...stage import as_error
from ...wire import messages
from ...wire.placement import Place
from ..logs import Log, tell_health
from .admission import Body
from .intake import MAX_PEER_BYTES, MAX_PENDING_PER_PEER, Intake, Pending
from .lives import Lives
from .replies import Outgoing, Peer, Replies, bundles, description, told
from .sequences import KEPT_REPLIES, Named, Register
from .stats import Stats
from .transitions import BEGINS, event_of
from .turn import Runner
from .works import MAX_REPLY_BYTES

if TYPE_CHECKING:
    from ...engine import Engine

log = Log("runnel.serve")


def _still() -> float:
    return 0.0


class Server:
    """One engine's streams, served to peers.

    `boot_id` tells this start of the worker from all others; epochs that the server chooses come after
    `first_epoch`, which should be another at each start. `idle_seconds`: a stream without a request for
    longer is closed (0: never); it may be set while the server runs. `place`: which worker this is.
    `user_streams`: streams that each user can count on, whatever others do; 0: a share, as `Places` has it.
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
        user_streams: int = 0,
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
        self._lives = Lives(engine, self._register, self.stats, first_epoch, user_streams)
        self._intake = Intake()
        self._runner = Runner(engine, self._lives, self._register, self.stats, clock, self._answer)
        self._replies = Replies()  # of the turn
        self._encoded: dict[str, msgspec.Raw] = {}  # answers to the questions of the message at hand
        self._numbered = 0
        self._stopping = False
        self._began = 0.0  # of the last run
        engine.health.on_event = tell_health
        self._answered: list[float] = []  # when the requests arrived that the last run answered

    def expect(self, users: int) -> None:
        """So many users may come; each can count on a share of streams and of requests that wait."""
        self._lives.expect(users)
        self._intake.expect(users)

    def heed(self, unread: Callable[[Peer], int]) -> None:
        """`unread`: bytes of replies that a peer has not read. It is made no more than it can take."""
        self._runner.unread = unread

    @property
    def pending(self) -> int:
        """Requests taken and not yet run."""
        return self._intake.count

    @property
    def stalled(self) -> bool:
        """Whether the last run did nothing: all that is pending waits for peers to read their replies."""
        return self._runner.stalled

    @property
    def full(self) -> bool:
        """Whether requests of the next message may be refused: time to run, not to receive."""
        return self._intake.full

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
        self._encoded.clear()
        try:
            if messages.bundled(frames):
                told = [
                    out.frames
                    for request, buffers in messages.decode_requests(frames)
                    for out in self._receive(peer, request, buffers, now, user, True)
                ]
                return bundles(peer, told)
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
            if op == "stats":  # also while it stops: that is when one looks
                return [self._tell(peer, request, stats=self._once("stats", self.document))]
            if self._stopping:
                raise ShutdownError("the daemon is stopping: connect again when it is back")
            if op == "hello":
                return [self._tell(peer, request, server=self._once("hello", self._hello))]
            self._take(peer, request, buffers, now, user, bundled)
        except Exception as error:
            return [self._refuse(peer, op, request.id, as_error("engine", error))]
        return []

    def refuse(self, peer: Peer, frames: Sequence[bytes], error: RunnelError) -> Outgoing:
        """Answer a message with an error, whatever its bytes, and take nothing of it."""
        ids = messages.salvage_ids(frames)
        self.stats.requests[""] += len(ids)
        refusals = [self._refuse(peer, "", id, error).frames for id in ids]
        return bundles(peer, refusals)[0]

    def run(self, now: float) -> list[Outgoing]:
        """Run one turn of what is pending; call again while `pending`. Returns the replies."""
        self._began = now
        self._answered.clear()
        self._replies = Replies()
        self._runner.turn(now)
        return self._replies.outgoing()

    def done(self, now: float) -> None:
        """The replies of the last `run` are on their way: how long that took is noted."""
        observe = self.stats.latency.observe
        for arrived in self._answered:
            observe(now - arrived)
        if self.idle_seconds:  # silence is what comes after the reply, however long the batch took
            for named in self._runner.ran:
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
            seq = named.stream.seq if named.stream is not None else 0
            reply = messages.Reply(
                v=messages.VERSION,
                op="close",
                sequence_id=named.name,
                epoch=named.epoch,
                applied_seq=named.applied,
                error=told(UnknownStreamError(f"stream {named.name!r} {reason}")),
            )
            notices.append(Outgoing(named.peer, messages.encode_reply(reply)))
            self._engine.notices("idle", named.key, seq, reason)
            self._lives.part(named, "idle", reason, now)
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
            "pending": self._intake.count,
            "pending_bytes": self._intake.nbytes,
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
        request: messages.Request,
        buffers: Sequence[bytes],
        now: float,
        user: str,
        bundled: bool,
    ) -> None:
        event = event_of(request)
        nbytes = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        name = request.sequence_id or self._new_name()
        place = self._place
        if len(place.addresses) > 1 and not place.owns(name):
            raise WrongWorkerError(
                f"stream {name!r} belongs to another worker than {place.index} of {len(place.addresses)}: "
                "its address is in the answer to hello, workers[crc32(name) % len(workers)]"
            )
        self._intake.take(peer, user, nbytes)
        try:
            key = f"{user}/{name}" if user else name
            named = self._register.find(key) or self._register.add(key, name, user)
            self._runner.add(named, Pending(peer, user, request, buffers, event, nbytes, now, bundled))
        except Exception:
            self._intake.give(peer, user, nbytes)
            raise

    def _new_name(self) -> str:
        """A name for a stream that was opened without one: this worker's, and not met after a restart."""
        while True:
            self._numbered += 1
            name = f"{self._boot_id}-{self._numbered}"
            if self._place.owns(name):
                return name

    # Answering.

    def _answer(self, named: Named, pending: Pending, result: Body | RunnelError) -> None:
        """The runner is done with a request."""
        self._intake.give(pending.peer, pending.user, pending.nbytes)
        self._answered.append(pending.arrived)
        try:
            frames = self._reply(named, pending, result)
        except Exception as error:  # the request itself is done, or is not: said again, it gets its answer
            frames = self._short_of(pending.request, error)
        if frames:
            self._replies.add(pending.peer, pending.bundled, frames)

    def _short_of(self, request: messages.Request, error: Exception) -> list[bytes]:
        """The frames of the reply in place of one that failed; none where there is no memory for any."""
        with suppress(Exception):
            short = messages.ErrorInfo("LIMIT", f"the reply failed: {type(error).__name__}; ask again", True)
            return messages.encode_reply(
                messages.Reply(v=messages.VERSION, op=request.op, id=request.id, error=short)
            )
        return []

    def _reply(self, named: Named, pending: Pending, result: Body | RunnelError) -> list[bytes]:
        """The frames of the reply to a request that was taken."""
        request = pending.request
        if isinstance(result, RunnelError):
            # Where it stands is told to those alone who may speak for it.
            known = (
                named.stream is not None and request.epoch in (0, named.epoch) and pending.event not in BEGINS
            )
            reply = messages.Reply(
                v=messages.VERSION,
                op=request.op,
                id=request.id,
                sequence_id=named.name,
                epoch=named.epoch if known else 0,
                applied_seq=named.applied if known else 0,
                error=self._count(result),
            )
            if isinstance(result, StageError):
                log.exception("stage failed", result, stream=named.key, error=result.message)
            return messages.encode_reply(reply)
        infos, buffers = result
        reply = messages.Reply(
            v=messages.VERSION,
            op=request.op,
            id=request.id,
            sequence_id=named.name,
            epoch=named.epoch,
            applied_seq=named.applied,
            outputs=infos,
        )
        return messages.encode_reply(reply, buffers)

    def _once(self, what: str, make: Callable[[], Any]) -> msgspec.Raw:
        """An answer in its encoded form, made once for all questions of a message."""
        encoded = self._encoded.get(what)
        if encoded is None:
            encoded = self._encoded[what] = msgspec.Raw(msgspec.msgpack.encode(make()))
        return encoded

    def _tell(self, peer: Peer, request: messages.Request, **fields: Any) -> Outgoing:
        reply = messages.Reply(v=messages.VERSION, op=request.op, id=request.id, **fields)
        return Outgoing(peer, messages.encode_reply(reply))

    def _refuse(self, peer: Peer, op: str, id: str, error: RunnelError) -> Outgoing:
        """The reply to a request that was not taken."""
        if isinstance(error, WireError):
            log.warning("bad message", peer=peer, error=error.message)
        reply = messages.Reply(v=messages.VERSION, op=op, id=id, error=self._count(error))
        return Outgoing(peer, messages.encode_reply(reply))

    def _count(self, error: RunnelError) -> messages.ErrorInfo:
        self.stats.errors[error.code] += 1
        return told(error)

    def _hello(self) -> messages.Description:
        """What is served; made anew, since a limit may have changed."""
        engine, place = self._engine, self._place
        user_pending, user_bytes = self._intake.user_part
        return messages.Description(
            boot_id=self._boot_id,
            worker=place.index,
            workers=[address for address in place.addresses if address],
            limits=messages.Limits(
                streams=engine.max_streams,
                user_streams=self._lives.user_part,
                user_pending=user_pending,
                user_pending_bytes=user_bytes,
                pending_per_peer=MAX_PENDING_PER_PEER,
                pending_bytes=MAX_PEER_BYTES - messages.MAX_MESSAGE_BYTES,
                reply_bytes=MAX_REPLY_BYTES,
                kept_replies=KEPT_REPLIES,
                idle_seconds=self.idle_seconds,
            ),
            **self._description,
        )
