"""The client protocol, sans-IO: requests in, frames out; frames in, settled requests out.

Rules of this file: no socket, no clock, no thread, no randomness. It covers one connection to one daemon, or
to one of its workers.

Theory: a `Line` is one stream as the client sees it: its epoch, the last seq used, and the unanswered
requests, in order. A `Ticket` is one request. It is settled once: by its reply, by an error, or by giving it
up. After a lost connection, `reconnected` resumes each stream that has unanswered requests, and repeats them
under the new epoch, with the same seqs. If the daemon had applied some of them, it answers from its reply
cache, so each chunk is applied once. Requests that the old connection may still deliver have an old epoch, or
are repeats, and change nothing. Each sending has a new id, so that a reply to an earlier sending (`GAP`,
`FENCED`) is not taken for the reply to the last one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final
from weakref import WeakValueDictionary

from ..errors import FencedError, RunnelError, UnknownStreamError, WireError, by_code
from ..wire import messages

SNAPSHOT: Final = "snapshot"  # the tensor that carries a snapshot
MAX_UNHEARD: Final = 1024  # abandoned openings whose epochs are remembered: one client's streams

_FOUNDING: Final = frozenset({"open", "restore", "resume"})  # these begin an epoch
_UNNUMBERED: Final = frozenset({"snapshot", "close"})  # the first changes nothing; the second may be repeated


class Line:
    """A stream as its client sees it."""

    __slots__ = ("__weakref__", "applied", "epoch", "lost", "name", "resuming", "sent", "unanswered")

    def __init__(self, name: str, epoch: int) -> None:
        self.name = name
        self.epoch = epoch
        self.sent = 0  # the last seq used
        self.applied = 0  # the last seq that the daemon reported as applied
        self.unanswered: deque[Ticket] = deque()  # numbered ones have the seqs applied + 1, ... sent
        self.resuming: Ticket | None = None  # nothing else is sent until it is settled
        self.lost: RunnelError | None = None  # why the stream no longer belongs to this client


class Ticket:
    """One request, from its making until it is settled."""

    __slots__ = (
        "buffers", "done", "epoch", "error", "id", "infos", "line", "new_epoch", "op", "payload", "reply",
        "seq", "steps",
    )  # fmt: skip

    def __init__(
        self,
        op: messages.Op,
        line: Line | None = None,
        seq: int = 0,
        infos: list[messages.TensorInfo] | None = None,
        buffers: Sequence[bytes] = (),
        epoch: int = 0,
        steps: int = 0,
        new_epoch: int = 0,
    ) -> None:
        self.op = op
        self.line = line
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


class Conversation:
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
        self._flying: dict[str, Ticket] = {}  # by the id of the last sending, in the order of sending
        self._lines: WeakValueDictionary[str, Line] = WeakValueDictionary()
        self._unheard: OrderedDict[object, int] = OrderedDict()

    # Making requests.

    def ask(self, op: messages.Op) -> Ticket:
        """Ask about the daemon: hello, stats."""
        return self._begin(Ticket(op))

    def open(self, name: str, epoch: int) -> Ticket:
        """Open a stream, in a random `epoch`, or in that of an earlier `open` of it that was given up.

        The daemon may still apply the earlier one. With the same epoch, both are one request.
        """
        epoch = self._unheard.pop(name, epoch)
        return self._begin(Ticket("open", Line(name, epoch), epoch=epoch))

    def restore(self, name: str, blob: bytes, epoch: int) -> Ticket:
        """Open a stream from a snapshot; `epoch` as for `open`."""
        epoch = self._unheard.pop((name, hash(blob)), epoch)
        infos, parts = snapshot_parts(blob)
        return self._begin(Ticket("restore", Line(name, epoch), 0, infos, parts, epoch))

    def resume(self, name: str) -> Ticket:
        """Take a stream over from any holder."""
        return self._begin(Ticket("resume", Line(name, 0), new_epoch=self._new_epoch()))

    def post(
        self,
        line: Line,
        op: messages.Op,
        infos: list[messages.TensorInfo] | None = None,
        buffers: Sequence[bytes] = (),
        steps: int = 0,
    ) -> Ticket:
        """Make a request on a stream: feed, flush, reset, close, snapshot.

        Raises the error by which the stream was lost, or WireError and TooLargeError for an invalid message.
        Then nothing has changed.
        """
        if line.lost is not None:
            raise type(line.lost)(line.lost.message)
        numbered = op not in _UNNUMBERED
        ticket = Ticket(op, line, line.sent + 1 if numbered else 0, infos, buffers, steps=steps)
        if line.resuming is None:
            self._send(ticket)
        else:
            self._frames(ticket)  # raises now, and not when it is sent
        self.in_flight += 1
        self.in_flight_bytes += sum(map(len, ticket.buffers))
        line.sent += numbered
        line.unanswered.append(ticket)
        return ticket

    # Receiving replies.

    def received(self, frames: Sequence[bytes], cut: bool = False) -> Sequence[Ticket]:
        """Take a message and return the requests that it settles: none, if it answers no current request.

        `cut`: the message was read after a reconnection, but before `reconnected` was called. Then an error
        may be caused by a lost request before it. Such an error is ignored, and the request repeated.
        """
        try:
            if not messages.bundled(frames):
                return self._heard(*messages.decode_reply(frames), cut)
            replies = messages.decode_replies(frames)
        except WireError as error:
            lost = (self._flying.pop(id, None) for id in messages.salvage_ids(frames))
            return [
                settled for ticket in lost if ticket is not None for settled in self._settle(ticket, error)
            ]
        return [settled for reply, payload in replies for settled in self._heard(reply, payload, cut)]

    def _heard(self, reply: messages.Reply, payload: Sequence[bytes], cut: bool) -> Sequence[Ticket]:
        if cut and reply.error is not None:
            return ()
        ticket = self._flying.pop(reply.id, None)
        if ticket is None:
            if not reply.id and reply.op == "close" and reply.error is not None:
                self._notice(reply, reply.error)
            return ()
        ticket.reply, ticket.payload = reply, payload
        return self._settle(ticket, failure(reply.error) if reply.error is not None else None)

    def _settle(self, ticket: Ticket, error: RunnelError | None) -> Sequence[Ticket]:
        line, reply = ticket.line, ticket.reply
        if line is not None and line.resuming is ticket:
            return self._resumed(line, reply, error)
        self._end(ticket, error)
        if line is None:
            return (ticket,)
        if ticket.op in _FOUNDING:
            if error is None and reply is not None:
                line.name, line.epoch = reply.sequence_id or line.name, reply.epoch
                line.sent = line.applied = reply.applied_seq
                self._lines[line.name] = line
            return (ticket,)
        unanswered = line.unanswered
        if unanswered[0] is ticket:
            unanswered.popleft()
        else:  # refused before the requests in front of it were run
            unanswered.remove(ticket)
        # The answer to a snapshot may show that an abandoned request was applied. Ignore that: the same chunk
        # fed again must have the same seq, or it would be applied twice.
        if reply is not None and reply.epoch == line.epoch and ticket.op != "snapshot":
            line.applied = max(line.applied, reply.applied_seq)
        if error is not None and isinstance(error, (UnknownStreamError, FencedError)):
            line.lost = error
        if not unanswered:  # if one failed, those behind it failed too: continue from the daemon's seq
            line.sent = line.applied
        return (ticket,)

    def _resumed(
        self, line: Line, reply: messages.Reply | None, error: RunnelError | None
    ) -> Sequence[Ticket]:
        """End a resumption: repeat the unanswered requests in the new epoch, or give up a lost stream."""
        self.in_flight -= 1
        line.resuming = None
        if error is None and reply is not None:
            line.epoch = reply.epoch
            for ticket in line.unanswered:
                self._send(ticket)
            return ()
        if not error.retry:  # type: ignore[union-attr]  # one of the two is given
            line.lost = error
        return self._drop(line, line.unanswered[0], error) if line.unanswered else ()

    def _notice(self, reply: messages.Reply, told: messages.ErrorInfo) -> None:
        line = self._lines.get(reply.sequence_id)
        if line is not None and line.epoch == reply.epoch:
            line.lost = failure(told)

    # Losing.

    def reconnected(self) -> None:
        """Repeat all unanswered requests, after the connection was lost and restored."""
        cut = list(self._flying.values())
        self._flying.clear()
        self.outbox.clear()
        for ticket in cut:
            line = ticket.line
            if line is None or ticket.op in _FOUNDING:  # this includes an unfinished resumption
                self._send(ticket)
            elif line.resuming is None:
                self._resume(line)

    def renew(self, line: Line) -> None:
        """Repeat one stream's unanswered requests: their replies were lost, though the connection was not."""
        if line.resuming is not None:
            self._forget(line.resuming)
            self._send(line.resuming)
        elif line.unanswered:
            for ticket in line.unanswered:
                self._forget(ticket)
            self._resume(line)

    def _resume(self, line: Line) -> None:
        line.resuming = Ticket("resume", line, epoch=line.epoch, new_epoch=self._new_epoch())
        self._begin(line.resuming)

    def give_up(self, ticket: Ticket, error: RunnelError) -> Sequence[Ticket]:
        """Give up a request, and its stream's requests behind it: all of them end in `error`.

        Their seqs are used again. It is unknown whether they were or will be applied. If the same chunks are
        posted again, they are applied once in any case; other chunks are answered CONFLICT if the first ones
        were applied.
        """
        if ticket.done:
            return ()
        line = ticket.line
        if line is not None and ticket.op not in _FOUNDING:
            return self._drop(line, ticket, error)
        self._forget(ticket)
        if ticket.op in ("open", "restore") and line is not None:
            key = line.name if ticket.op == "open" else (line.name, hash(b"".join(ticket.buffers)))
            self._unheard[key] = ticket.epoch
            while len(self._unheard) > MAX_UNHEARD:
                self._unheard.popitem(last=False)
        self._end(ticket, error)
        return (ticket,)

    def _drop(self, line: Line, first: Ticket, error: RunnelError | None) -> Sequence[Ticket]:
        dropped: list[Ticket] = []
        while not dropped or dropped[-1] is not first:
            ticket = line.unanswered.pop()
            self._forget(ticket)
            line.sent -= ticket.seq > 0
            self._end(ticket, error)
            dropped.append(ticket)
        if not line.unanswered:  # as in `_settle`
            line.sent = line.applied
        dropped.reverse()
        return dropped

    # Small parts.

    def _begin(self, ticket: Ticket) -> Ticket:
        self._send(ticket)
        self.in_flight += 1
        self.in_flight_bytes += sum(map(len, ticket.buffers))
        return ticket

    def _end(self, ticket: Ticket, error: RunnelError | None) -> None:
        ticket.error = error
        ticket.done = True
        self.in_flight_bytes -= sum(map(len, ticket.buffers))
        ticket.buffers = ()  # kept until now, for a repeat
        self.in_flight -= 1

    def _forget(self, ticket: Ticket) -> None:
        """Drop the request's last sending: do not send it, and ignore its reply."""
        self._flying.pop(ticket.id, None)
        self.outbox.pop(ticket.id, None)

    def _send(self, ticket: Ticket) -> None:
        self.outbox[ticket.id] = self._frames(ticket)
        self._flying[ticket.id] = ticket

    def _frames(self, ticket: Ticket) -> list[bytes]:
        """The request's frames, under a new id."""
        self._count += 1
        ticket.id = id = (
            f"{self._prefix}{self._count:08x}"  # of fixed length, so that a repeat has the same size
        )
        line = ticket.line
        request = messages.Request(
            v=messages.VERSION,
            op=ticket.op,
            id=id,
            sequence_id=line.name if line is not None else "",
            epoch=ticket.epoch or (line.epoch if line is not None else 0),
            new_epoch=ticket.new_epoch,
            seq=ticket.seq,
            steps=ticket.steps,
            inputs=ticket.infos,
        )
        return messages.encode_request(request, ticket.buffers)


def snapshot_parts(blob: bytes) -> tuple[list[messages.TensorInfo], list[bytes]]:
    """A snapshot as the tensors of a restore: two if it exceeds the bound of a tensor."""
    most = messages.MAX_TENSOR_BYTES
    parts = [blob] if len(blob) <= most else [blob[:most], blob[most:]]
    names = (SNAPSHOT, f"{SNAPSHOT}.1")
    return [
        messages.TensorInfo(name, "UINT8", [len(part)]) for name, part in zip(names, parts, strict=False)
    ], parts


def failure(told: messages.ErrorInfo) -> RunnelError:
    """The daemon's error, in the class that its code names."""
    cls = by_code(told.code)
    unknown = cls is RunnelError and told.code != RunnelError.code
    return cls(f"{told.code}: {told.message}" if unknown else told.message)
