"""The client protocol, sans-IO: requests in, frames out; frames in, settled requests out.

Rules of this file: no socket, no clock, no thread, no randomness. It covers one connection to one daemon, or
to one of its workers.

Theory: a `ClientStream` is one stream as the client sees it: its epoch, the last seq used, and the unanswered
requests, in order. A `PendingRequest` is one request. It is settled once: by its reply, by an error, or by
giving it up. After a lost connection, `reconnected` resumes each stream that has unanswered requests, and
repeats them under the new epoch, with the same seqs. If the daemon had applied some of them, it answers from
its reply cache, so each chunk is applied once. Requests that the old connection may still deliver have an old
epoch, or are repeats, and change nothing. Each sending has a new id, so that a reply to an earlier sending
(`GAP`, `FENCED`) is not taken for the reply to the last one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final
from weakref import WeakValueDictionary

from ..errors import FencedError, RunnelError, UnknownStreamError, WireError, by_code
from ..wire import messages

SNAPSHOT: Final = "snapshot"  # the tensor that carries a snapshot
MAX_ABANDONED: Final = 1024  # abandoned openings whose epochs are remembered: one client's streams

_FOUNDING: Final = frozenset({"open", "restore", "resume"})  # these begin an epoch
_UNNUMBERED: Final = frozenset({"snapshot", "close"})  # the first changes nothing; the second may be repeated


class ClientStream:
    """A stream as its client sees it."""

    __slots__ = ("__weakref__", "applied", "epoch", "lost", "name", "resuming", "sent", "unanswered")

    def __init__(self, name: str, epoch: int) -> None:
        self.name = name
        self.epoch = epoch
        self.sent = 0  # the last seq used
        self.applied = 0  # the last seq that the daemon reported as applied
        self.unanswered: deque[PendingRequest] = deque()  # numbered ones have the seqs applied + 1, ... sent
        self.resuming: PendingRequest | None = None  # nothing else is sent until it is settled
        self.lost: RunnelError | None = None  # why the stream no longer belongs to this client


class PendingRequest:
    """One request, from its making until it is settled."""

    __slots__ = (
        "buffers", "done", "epoch", "error", "id", "infos", "new_epoch", "op", "payload", "reply",
        "seq", "steps", "stream",
    )  # fmt: skip

    def __init__(
        self,
        op: messages.Op,
        stream: ClientStream | None = None,
        seq: int = 0,
        infos: list[messages.TensorInfo] | None = None,
        buffers: Sequence[bytes] = (),
        epoch: int = 0,
        steps: int = 0,
        new_epoch: int = 0,
    ) -> None:
        self.op = op
        self.stream = stream
        self.seq = seq
        self.infos = infos or []
        self.buffers = buffers
        self.steps = steps  # for a feed without inputs
        self.epoch = epoch  # for a request that begins an epoch; other requests use their stream's
        self.new_epoch = new_epoch  # for a resume: lets the daemon recognise a repeat
        self.id = ""  # of its last sending
        self.done = False
        self.error: RunnelError | None = None
        self.reply: messages.Reply | None = None
        self.payload: Sequence[bytes] = ()  # the reply's tensors

    def answer(self) -> messages.Reply:
        """Return the reply, or raise the request's error. Only once the request is `done`."""
        if self.error is not None:
            raise self.error
        if self.reply is None:
            raise RuntimeError(f"{self.op!r} is not answered yet")
        return self.reply


class ClientProtocol:
    """Client side of the protocol on one connection.

    `prefix` begins each id; it is random, so that ids of other clients differ. `new_epoch` returns a random
    epoch. Send the messages of `outbox` in its order; its keys are ids. Not thread-safe.
    """

    def __init__(self, prefix: str, new_epoch: Callable[[], int]) -> None:
        self.outbox: dict[str, list[bytes]] = {}
        self.in_flight = 0  # unsettled requests, also those of a stream that waits to be resumed
        self.in_flight_bytes = 0  # of their tensors
        self._prefix = prefix
        self._new_epoch = new_epoch
        self._count = 0
        self._by_id: dict[str, PendingRequest] = {}  # by the id of the last sending, in the order of sending
        self._streams: WeakValueDictionary[str, ClientStream] = WeakValueDictionary()
        self._abandoned: OrderedDict[object, int] = OrderedDict()

    # Making requests.

    def ask(self, op: messages.Op) -> PendingRequest:
        """Ask about the daemon: hello, stats."""
        return self._begin(PendingRequest(op))

    def open(self, name: str, epoch: int) -> PendingRequest:
        """Open a stream in a random `epoch`.

        If an earlier `open` of it was given up, its epoch is used again. The daemon may still apply that one,
        and with the same epoch both are one request.
        """
        epoch = self._abandoned.pop(name, epoch)
        return self._begin(PendingRequest("open", ClientStream(name, epoch), epoch=epoch))

    def restore(self, name: str, blob: bytes, epoch: int) -> PendingRequest:
        """Open a stream from a snapshot; `epoch` as for `open`."""
        epoch = self._abandoned.pop((name, hash(blob)), epoch)
        infos, parts = snapshot_parts(blob)
        return self._begin(PendingRequest("restore", ClientStream(name, epoch), 0, infos, parts, epoch))

    def resume(self, name: str) -> PendingRequest:
        """Take a stream over from any holder."""
        return self._begin(PendingRequest("resume", ClientStream(name, 0), new_epoch=self._new_epoch()))

    def post(
        self,
        stream: ClientStream,
        op: messages.Op,
        infos: list[messages.TensorInfo] | None = None,
        buffers: Sequence[bytes] = (),
        steps: int = 0,
    ) -> PendingRequest:
        """Make a request on a stream: feed, flush, reset, close, snapshot.

        Raises the error by which the stream was lost, or WireError and TooLargeError for an invalid message.
        Then nothing has changed.
        """
        if stream.lost is not None:
            raise type(stream.lost)(stream.lost.message)
        numbered = op not in _UNNUMBERED
        pending = PendingRequest(op, stream, stream.sent + 1 if numbered else 0, infos, buffers, steps=steps)
        if stream.resuming is None:
            self._send(pending)
        else:
            self._frames(pending)  # raises now, and not when it is sent
        self.in_flight += 1
        self.in_flight_bytes += sum(map(len, pending.buffers))
        stream.sent += numbered
        stream.unanswered.append(pending)
        return pending

    # Receiving replies.

    def received(self, frames: Sequence[bytes], cut: bool = False) -> Sequence[PendingRequest]:
        """Take a message and return the requests that it settles.

        `cut`: the message was read after a reconnection, but before `reconnected` was called. Then an error
        may be caused by a lost request before it. Such an error is ignored, and the request repeated.
        """
        try:
            if not messages.bundled(frames):
                return self._take_reply(*messages.decode_reply(frames), cut)
            replies = messages.decode_replies(frames)
        except WireError as error:
            lost = (self._by_id.pop(id, None) for id in messages.salvage_ids(frames))
            return [
                settled for pending in lost if pending is not None for settled in self._settle(pending, error)
            ]
        return [settled for reply, payload in replies for settled in self._take_reply(reply, payload, cut)]

    def _take_reply(
        self, reply: messages.Reply, payload: Sequence[bytes], cut: bool
    ) -> Sequence[PendingRequest]:
        if cut and reply.error is not None:
            return ()
        pending = self._by_id.pop(reply.id, None)
        if pending is None:
            if not reply.id and reply.op == "close" and reply.error is not None:
                self._notice(reply, reply.error)
            return ()
        pending.reply, pending.payload = reply, payload
        return self._settle(pending, failure(reply.error) if reply.error is not None else None)

    def _settle(self, pending: PendingRequest, error: RunnelError | None) -> Sequence[PendingRequest]:
        stream, reply = pending.stream, pending.reply
        if stream is not None and stream.resuming is pending:
            return self._resumed(stream, reply, error)
        self._end(pending, error)
        if stream is None:
            return (pending,)
        if pending.op in _FOUNDING:
            if error is None and reply is not None:
                stream.name, stream.epoch = reply.sequence_id or stream.name, reply.epoch
                stream.sent = stream.applied = reply.applied_seq
                self._streams[stream.name] = stream
            return (pending,)
        unanswered = stream.unanswered
        if unanswered[0] is pending:
            unanswered.popleft()
        else:  # refused before the requests in front of it were run
            unanswered.remove(pending)
        # The answer to a snapshot may show that an abandoned request was applied. Ignore that: the same chunk
        # fed again must have the same seq, or it would be applied twice.
        if reply is not None and reply.epoch == stream.epoch and pending.op != "snapshot":
            stream.applied = max(stream.applied, reply.applied_seq)
        if error is not None and isinstance(error, (UnknownStreamError, FencedError)):
            stream.lost = error
        if not unanswered:  # if one failed, those behind it failed too: continue from the daemon's seq
            stream.sent = stream.applied
        return (pending,)

    def _resumed(
        self, stream: ClientStream, reply: messages.Reply | None, error: RunnelError | None
    ) -> Sequence[PendingRequest]:
        """End a resumption: repeat the unanswered requests in the new epoch, or give up a lost stream."""
        self.in_flight -= 1
        stream.resuming = None
        if error is None and reply is not None:
            stream.epoch = reply.epoch
            for pending in stream.unanswered:
                self._send(pending)
            return ()
        if not error.retry:  # type: ignore[union-attr]  # one of the two is given
            stream.lost = error
        return self._drop(stream, stream.unanswered[0], error) if stream.unanswered else ()

    def _notice(self, reply: messages.Reply, info: messages.ErrorInfo) -> None:
        stream = self._streams.get(reply.sequence_id)
        if stream is not None and stream.epoch == reply.epoch:
            stream.lost = failure(info)

    # Losing.

    def reconnected(self) -> None:
        """Repeat all unanswered requests, after the connection was lost and restored."""
        cut = list(self._by_id.values())
        self._by_id.clear()
        self.outbox.clear()
        for pending in cut:
            stream = pending.stream
            if stream is None or pending.op in _FOUNDING:  # this includes an unfinished resumption
                self._send(pending)
            elif stream.resuming is None:
                self._resume(stream)

    def renew(self, stream: ClientStream) -> None:
        """Repeat one stream's unanswered requests: their replies were lost, though the connection was not."""
        if stream.resuming is not None:
            self._forget(stream.resuming)
            self._send(stream.resuming)
        elif stream.unanswered:
            for pending in stream.unanswered:
                self._forget(pending)
            self._resume(stream)

    def _resume(self, stream: ClientStream) -> None:
        stream.resuming = PendingRequest("resume", stream, epoch=stream.epoch, new_epoch=self._new_epoch())
        self._begin(stream.resuming)

    def give_up(self, pending: PendingRequest, error: RunnelError) -> Sequence[PendingRequest]:
        """Give up a request and its stream's later ones: all end in `error`.

        Their seqs are used again. It is unknown whether they were or will be applied. If the same chunks are
        posted again, they are applied once in any case; other chunks are answered CONFLICT if the first ones
        were applied.
        """
        if pending.done:
            return ()
        stream = pending.stream
        if stream is not None and pending.op not in _FOUNDING:
            return self._drop(stream, pending, error)
        self._forget(pending)
        if pending.op in ("open", "restore") and stream is not None:
            key = stream.name if pending.op == "open" else (stream.name, hash(b"".join(pending.buffers)))
            self._abandoned[key] = pending.epoch
            while len(self._abandoned) > MAX_ABANDONED:
                self._abandoned.popitem(last=False)
        self._end(pending, error)
        return (pending,)

    def _drop(
        self, stream: ClientStream, first: PendingRequest, error: RunnelError | None
    ) -> Sequence[PendingRequest]:
        dropped: list[PendingRequest] = []
        while not dropped or dropped[-1] is not first:
            pending = stream.unanswered.pop()
            self._forget(pending)
            stream.sent -= pending.seq > 0
            self._end(pending, error)
            dropped.append(pending)
        if not stream.unanswered:  # as in `_settle`
            stream.sent = stream.applied
        dropped.reverse()
        return dropped

    # Small parts.

    def _begin(self, pending: PendingRequest) -> PendingRequest:
        self._send(pending)
        self.in_flight += 1
        self.in_flight_bytes += sum(map(len, pending.buffers))
        return pending

    def _end(self, pending: PendingRequest, error: RunnelError | None) -> None:
        pending.error = error
        pending.done = True
        self.in_flight_bytes -= sum(map(len, pending.buffers))
        pending.buffers = ()  # kept until now, for a repeat
        self.in_flight -= 1

    def _forget(self, pending: PendingRequest) -> None:
        """Drop the request's last sending: do not send it, and ignore its reply."""
        self._by_id.pop(pending.id, None)
        self.outbox.pop(pending.id, None)

    def _send(self, pending: PendingRequest) -> None:
        self.outbox[pending.id] = self._frames(pending)
        self._by_id[pending.id] = pending

    def _frames(self, pending: PendingRequest) -> list[bytes]:
        """The request's frames, under a new id."""
        self._count += 1
        pending.id = id = (
            f"{self._prefix}{self._count:08x}"  # of fixed length, so that a repeat has the same size
        )
        stream = pending.stream
        request = messages.Request(
            v=messages.VERSION,
            op=pending.op,
            id=id,
            sequence_id=stream.name if stream is not None else "",
            epoch=pending.epoch or (stream.epoch if stream is not None else 0),
            new_epoch=pending.new_epoch,
            seq=pending.seq,
            steps=pending.steps,
            inputs=pending.infos,
        )
        return messages.encode_request(request, pending.buffers)


def snapshot_parts(blob: bytes) -> tuple[list[messages.TensorInfo], list[bytes]]:
    """A snapshot as the tensors of a restore: two if it exceeds the bound of a tensor."""
    most = messages.MAX_TENSOR_BYTES
    parts = [blob] if len(blob) <= most else [blob[:most], blob[most:]]
    names = (SNAPSHOT, f"{SNAPSHOT}.1")
    return [
        messages.TensorInfo(name, "UINT8", [len(part)]) for name, part in zip(names, parts, strict=False)
    ], parts


def failure(info: messages.ErrorInfo) -> RunnelError:
    """The daemon's error, in the class that its code names."""
    cls = by_code(info.code)
    unknown = cls is RunnelError and info.code != RunnelError.code
    return cls(f"{info.code}: {info.message}" if unknown else info.message)
