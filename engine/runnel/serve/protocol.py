"""The daemon's half of the protocol, sans-IO: messages and the time in, replies out.

Rules of this file: no socket, no clock, no thread, no randomness; what a request may do is in
`transitions.TRANSITIONS` and nowhere else; an error is answered to the request that it belongs to and
touches no other; every request is answered exactly once.

Theory: `receive` takes requests and keeps those for streams in one queue a stream, in the order of
arrival. `run` takes from each queue what can be done now: calls on the stream up to and including its
first feed. The feeds of all queues are one batch, so a batch steps a stream at most once, order within
a stream holds for feed, flush, reset and close alike, and the batch grows with what has arrived.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from .. import __version__
from ..errors import FencedError, GapError, LimitError, RunnelError, ShutdownError
from ..spec import Array
from ..stage import as_error
from . import wire
from .tensors import describe, pack, unpack
from .transitions import LIKELY, TRANSITIONS, Event, Phase, event_of

if TYPE_CHECKING:
    from ..engine import Engine
    from ..stream import Stream

EPOCH: Final = 1  # every stream's, until streams can be resumed elsewhere

MAX_PENDING: Final = 16 * 1024  # requests taken and not yet run: about a second of work
MAX_PENDING_PER_PEER: Final = 1024  # one client's share: more than any useful window of requests
MAX_PENDING_BYTES: Final = 256 * 2**20  # tensors taken and not yet run

Peer = bytes
Outputs = Mapping[str, Array]


class Outgoing(NamedTuple):
    """A reply and where it goes."""

    peer: Peer
    frames: list[bytes]


@dataclass(slots=True)
class Counts:
    """What happened since the start; times in seconds."""

    requests: int = 0
    errors: int = 0
    batches: int = 0
    feeds: int = 0
    longest_wait: float = 0.0  # from receive to run

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, {self.errors} errors, {self.feeds} chunks in {self.batches} batches, "
            f"longest wait {self.longest_wait * 1e3:.1f} ms"
        )


class _Pending(NamedTuple):
    peer: Peer
    request: wire.Request
    buffers: Sequence[bytes]
    event: Event
    nbytes: int
    arrived: float


@dataclass(slots=True)
class _Sequence:
    """A stream's name on the wire: its stream where one is open, and the requests that wait for it."""

    name: str
    stream: Stream | None = None
    queue: deque[_Pending] = field(default_factory=deque)

    @property
    def phase(self) -> Phase:
        if self.stream is None:
            return Phase.ABSENT
        return Phase.ENDED if self.stream.ended else Phase.LIVE

    @property
    def open_stream(self) -> Stream:
        assert self.stream is not None  # the table has no such transition from ABSENT
        return self.stream

    @property
    def applied(self) -> int:
        """Chunks applied since open or reset."""
        return self.stream.seq if self.stream else 0

    def close(self) -> None:
        stream, self.stream = self.open_stream, None
        stream.close()


class _Step(NamedTuple):
    """A feed in a batch."""

    sequence: _Sequence
    stream: Stream
    pending: _Pending
    chunk: Mapping[str, Array]
    before: bytes | None  # the stream as it was, where the feed is its last


class Server:
    """One engine's streams, served to peers.

    `boot_id` tells this start of the daemon from all others. Raises PipelineError for a pipeline whose
    signals the wire has no datatype for.
    """

    def __init__(self, engine: Engine, boot_id: str) -> None:
        self.counts = Counts()
        self._engine = engine
        self._boot_id = boot_id
        self._description = _describe(engine, boot_id)
        self._sequences: dict[str, _Sequence] = {}
        self._ready: dict[str, _Sequence] = {}  # those whose queue is not empty, oldest first
        self._per_peer: Counter[Peer] = Counter()
        self._pending = 0
        self._pending_bytes = 0
        self._named = 0
        self._stopping = False

    @property
    def pending(self) -> int:
        """Requests taken and not yet run."""
        return self._pending

    @property
    def full(self) -> bool:
        """Whether the next request for a stream would be refused: time to run, not to receive."""
        return self._pending >= MAX_PENDING or self._pending_bytes >= MAX_PENDING_BYTES

    def stop(self) -> None:
        """From now on every request is answered ShutdownError; what was taken is still run."""
        self._stopping = True

    def receive(self, peer: Peer, frames: Sequence[bytes], now: float) -> list[Outgoing]:
        """Take a message, whatever its bytes. Returns what can be answered at once: hello, refusals."""
        self.counts.requests += 1
        try:
            request, buffers = wire.decode_request(frames)
        except RunnelError as error:
            return [self._refuse(peer, "", wire.salvage_id(frames), error)]
        try:
            if self._stopping:
                raise ShutdownError("the daemon is stopping: connect again when it is back")
            if request.op == "hello":
                reply = wire.Reply(v=wire.VERSION, op="hello", id=request.id, server=self._description)
                return [Outgoing(peer, wire.encode_reply(reply))]
            self._take(peer, request, buffers, now)
        except RunnelError as error:
            return [self._refuse(peer, request.op, request.id, error)]
        return []

    def run(self, now: float) -> list[Outgoing]:
        """Run one batch of what is pending; call again while `pending`. Returns the replies."""
        replies: list[Outgoing] = []
        batch: list[_Step] = []
        touched = list(self._ready.values())
        for sequence in touched:
            for pending in self._drain(sequence, now):
                try:
                    self._check(sequence, pending)
                    if pending.request.op == "feed":
                        batch.append(self._prepare(sequence, pending))
                        break
                    replies.append(self._answer(sequence, pending, self._call(sequence, pending.event)))
                except Exception as error:
                    replies.append(self._answer(sequence, pending, as_error("engine", error)))
        if batch:
            replies += self._feed(batch)
        for sequence in touched:
            if sequence.stream is None and not sequence.queue:
                del self._sequences[sequence.name]
        return replies

    # Taking a request.

    def _take(self, peer: Peer, request: wire.Request, buffers: Sequence[bytes], now: float) -> None:
        event = event_of(request)
        nbytes = sum(map(len, buffers))
        if self.full:
            raise LimitError(f"{self._pending} requests wait already, {self._pending_bytes} bytes: try later")
        if self._per_peer[peer] >= MAX_PENDING_PER_PEER:
            raise LimitError(
                f"{MAX_PENDING_PER_PEER} of this client's requests wait already: read replies first"
            )
        name = request.sequence_id or self._new_name()
        sequence = self._sequences.get(name)
        if sequence is None:
            sequence = self._sequences[name] = _Sequence(name)
        sequence.queue.append(_Pending(peer, request, buffers, event, nbytes, now))
        self._ready[name] = sequence
        self._per_peer[peer] += 1
        self._pending += 1
        self._pending_bytes += nbytes

    def _new_name(self) -> str:
        """A name for a stream that was opened without one; not met again after a restart."""
        self._named += 1
        return f"{self._boot_id}-{self._named}"

    # Running what was taken.

    def _drain(self, sequence: _Sequence, now: float) -> Iterator[_Pending]:
        """The stream's waiting requests, one by one, each no longer pending."""
        while sequence.queue:
            pending = sequence.queue.popleft()
            if not sequence.queue:
                del self._ready[sequence.name]
            self._pending -= 1
            self._pending_bytes -= pending.nbytes
            self._per_peer[pending.peer] -= 1
            if not self._per_peer[pending.peer]:
                del self._per_peer[pending.peer]
            self.counts.longest_wait = max(self.counts.longest_wait, now - pending.arrived)
            yield pending

    def _check(self, sequence: _Sequence, pending: _Pending) -> None:
        """Raise what the table and the stream's epoch and seq say of a request."""
        request = pending.request
        after = TRANSITIONS[sequence.phase][pending.event]
        if not isinstance(after, Phase):
            raise after(f"stream {sequence.name!r} {LIKELY[after]}")
        if request.epoch not in (0, EPOCH):
            raise FencedError(f"stream {sequence.name!r} is in epoch {EPOCH}, not {request.epoch}")
        if request.seq not in (0, sequence.applied + 1):
            raise GapError(
                f"stream {sequence.name!r} expects seq {sequence.applied + 1}, not {request.seq}: "
                "the chunk was not applied"
            )

    def _prepare(self, sequence: _Sequence, pending: _Pending) -> _Step:
        """The chunk of a feed that was checked, and its stream, opened where the feed is the first."""
        chunk = unpack(pending.request.inputs, pending.buffers)
        if pending.request.sequence_start:
            sequence.stream = self._engine.open(sequence.name)
        stream = sequence.open_stream
        before = stream.snapshot() if pending.event is Event.FEED_LAST else None
        return _Step(sequence, stream, pending, chunk, before)

    def _call(self, sequence: _Sequence, event: Event) -> Outputs:
        """Everything but a feed, once checked."""
        if event is Event.OPEN:
            sequence.stream = self._engine.open(sequence.name)
        elif event is Event.FLUSH:
            return self._flush(sequence.open_stream)
        elif event is Event.RESET:
            sequence.open_stream.reset()
        else:
            sequence.close()
        return {}

    def _feed(self, batch: Sequence[_Step]) -> list[Outgoing]:
        """One step for each stream of the batch."""
        self.counts.batches += 1
        try:
            results = self._engine.feed_many([(step.stream, step.chunk) for step in batch])
        except Exception as error:  # a fault of the engine's own: it committed nothing
            results = [as_error("engine", error)] * len(batch)
        replies: list[Outgoing] = []
        for step, result in zip(batch, results, strict=True):
            try:
                replies.append(self._answer(step.sequence, step.pending, *self._finish(step, result)))
            except Exception as error:
                replies.append(self._answer(step.sequence, step.pending, as_error("engine", error)))
        return replies

    def _finish(self, step: _Step, result: Outputs | RunnelError) -> tuple[Outputs | RunnelError, int]:
        """What is left to do after a step, by the feed's flags; the result and the seq applied."""
        sequence, request = step.sequence, step.pending.request
        if isinstance(result, RunnelError):
            if request.sequence_start:
                sequence.close()
            return result, sequence.applied
        self.counts.feeds += 1
        applied = sequence.applied
        if not request.sequence_end:
            return result, applied
        try:
            rest = self._flush(step.stream)
        except Exception as error:  # then the chunk was not applied either: its outputs go nowhere
            sequence.close()
            if step.before is not None:
                sequence.stream = self._engine.restore(step.before, sequence.name)
            return as_error("engine", error), sequence.applied
        sequence.close()
        return {name: np.concatenate((array, rest[name])) for name, array in result.items()}, applied

    def _flush(self, stream: Stream) -> Outputs:
        """A pipeline with one output gives an array; the wire wants its name too."""
        outputs = stream.flush()
        if isinstance(outputs, np.ndarray):
            return {self._engine.pipeline.outputs.names[0]: outputs}
        named: Outputs = outputs
        return named

    # Answering.

    def _answer(
        self,
        sequence: _Sequence,
        pending: _Pending,
        result: Outputs | RunnelError,
        applied: int | None = None,
    ) -> Outgoing:
        """The reply to a request that was taken."""
        error, outputs = (result, {}) if isinstance(result, RunnelError) else (None, result)
        infos, buffers = pack(outputs)
        reply = wire.Reply(
            v=wire.VERSION,
            op=pending.request.op,
            id=pending.request.id,
            sequence_id=sequence.name,
            epoch=EPOCH,
            applied_seq=sequence.applied if applied is None else applied,
            outputs=infos,
            error=self._told(error) if error else None,
        )
        return Outgoing(pending.peer, wire.encode_reply(reply, buffers))

    def _refuse(self, peer: Peer, op: str, id: str, error: RunnelError) -> Outgoing:
        """The reply to a request that was not taken."""
        reply = wire.Reply(v=wire.VERSION, op=op, id=id, error=self._told(error))
        return Outgoing(peer, wire.encode_reply(reply))

    def _told(self, error: RunnelError) -> wire.ErrorInfo:
        self.counts.errors += 1
        return wire.ErrorInfo(error.code, error.message, error.retry)


def _describe(engine: Engine, boot_id: str) -> wire.Description:
    pipeline = engine.pipeline
    return wire.Description(
        version=__version__,
        boot_id=boot_id,
        inputs=describe(pipeline.inputs),
        outputs=describe(pipeline.outputs),
        input_rate=pipeline.inputs.rate or 0.0,
        output_rate=pipeline.outputs.rate or 0.0,
        latency=pipeline.latency,
        limits=wire.Limits(streams=engine.max_streams, pending_per_peer=MAX_PENDING_PER_PEER),
    )
