"""A client's half of the protocol, sans-IO: requests in, frames out; frames in, settled requests out.

Rules of this file: no socket, no clock, no thread, no randomness. It is about one connection to one
daemon (or one of its workers).

Theory: a `Line` is one stream as the client holds it: its epoch, the last seq given, and the requests
that were not answered yet, in order. A `Ticket` is one request: it is settled once, by its reply, by an
error, or by giving it up. What was lost with a connection is said again: `reconnected` resumes each
stream that has something unanswered, and under the new epoch sends all of that again, with the same seqs.
The daemon answers what it had applied with the replies that it kept, so each chunk is applied once; what
the old connection still holds is of an old epoch, or a repeat, and changes nothing. Every sending has
an id of its own, so that a reply to an earlier sending (`GAP`, `FENCED`) is not taken for the last one's.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Final
from weakref import WeakValueDictionary

from ..errors import FencedError, RunnelError, UnknownStreamError, WireError, by_code
from ..wire import messages

SNAPSHOT: Final = "snapshot"  # the tensor that carries one
MAX_UNHEARD: Final = 1024  # openings given up whose epochs are remembered: a client's streams at a time

_FOUNDING: Final = frozenset({"open", "restore", "resume"})  # they begin an epoch
_UNNUMBERED: Final = frozenset({"snapshot", "close"})  # one changes nothing; the other can be said twice


class Line:
    """A stream as its client holds it."""

    __slots__ = ("__weakref__", "applied", "epoch", "lost", "name", "resuming", "sent", "unanswered")

    def __init__(self, name: str, epoch: int) -> None:
        self.name = name
        self.epoch = epoch
        self.sent = 0  # the last seq given
        self.applied = 0  # the last seq that the daemon told to be applied
        self.unanswered: deque[Ticket] = deque()  # numbered ones with seqs applied + 1, ... sent
        self.resuming: Ticket | None = None  # until it is settled nothing else is sent
        self.lost: RunnelError | None = None  # why it is no longer ours


class Ticket:
    """One request, from when it is made until it is settled."""

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
        self.steps = steps  # of a feed without inputs
        self.epoch = epoch  # of a request that begins one; others state their line's
        self.new_epoch = new_epoch  # of a resume: by it the daemon knows a repeat from another's resume
        self.id = ""  # of its last sending
        self.done = False
        self.error: RunnelError | None = None
        self.reply: messages.Reply | None = None
        self.payload: Sequence[bytes] = ()  # the reply's tensors

    def answer(self) -> messages.Reply:
        """The reply; raises the error that stands in its place. Only once it is `done`."""
        if self.error is not None:
            raise self.error
        if self.reply is None:
            raise RuntimeError(f"{self.op!r} is not answered yet")
        return self.reply


class Conversation:
    """All that one connection has on its way.

    `prefix` begins the ids: random, so that no other client's are the same. `new_epoch` returns a random
    epoch. What `outbox` holds is to be sent in that order; its keys are ids. Not thread-safe.
    """

    def __init__(self, prefix: str, new_epoch: Callable[[], int]) -> None:
        self.outbox: dict[str, list[bytes]] = {}
        self.in_flight = 0  # requests not settled; those of a line that waits to be resumed among them
        self.in_flight_bytes = 0  # of their tensors
        self._prefix = prefix
        self._new_epoch = new_epoch
        self._count = 0
        self._flying: dict[str, Ticket] = {}  # by the id of the last sending, in the order of sending
        self._lines: WeakValueDictionary[str, Line] = WeakValueDictionary()
        self._unheard: OrderedDict[object, int] = OrderedDict()

    # Asking.

    def ask(self, op: messages.Op) -> Ticket:
        """A question about the daemon: hello, stats."""
        return self._begin(Ticket(op))

    def open(self, name: str, epoch: int) -> Ticket:
        """A new stream, in the epoch given (random) unless an earlier `open` of it was given up.

        That one may be applied any time. Said again in the same epoch, both are one.
        """
        epoch = self._unheard.pop(name, epoch)
        return self._begin(Ticket("open", Line(name, epoch), epoch=epoch))

    def restore(self, name: str, blob: bytes, epoch: int) -> Ticket:
        """A stream that goes on from a snapshot; the epoch as for `open`."""
        epoch = self._unheard.pop((name, hash(blob)), epoch)
        infos, parts = snapshot_parts(blob)
        return self._begin(Ticket("restore", Line(name, epoch), 0, infos, parts, epoch))

    def resume(self, name: str) -> Ticket:
        """Take a stream over, whoever holds it."""
        return self._begin(Ticket("resume", Line(name, 0), new_epoch=self._new_epoch()))

    def post(
        self,
        line: Line,
        op: messages.Op,
        infos: list[messages.TensorInfo] | None = None,
        buffers: Sequence[bytes] = (),
        steps: int = 0,
    ) -> Ticket:
        """A request on a stream: feed, flush, reset, close, snapshot.

        Raises what the stream was lost by, WireError and TooLargeError for what is no message; then
        nothing has changed.
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

    # Hearing.

    def received(self, frames: Sequence[bytes], cut: bool = False) -> Sequence[Ticket]:
        """Take a message; the requests that it settles. One that nobody waits for settles none.

        `cut`: it was read when the connection had been made anew, and `reconnected` was not called yet. Then
        an error may be about what was sent behind something lost: it is not heard, but asked for again.
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
        else:  # refused before those in front of it were run
            unanswered.remove(ticket)
        # Of a request that was given up, a snapshot's answer may tell that it was applied. That is not for us
        # to use: the same chunk fed again must have the same seq, else it would be applied twice.
        if reply is not None and reply.epoch == line.epoch and ticket.op != "snapshot":
            line.applied = max(line.applied, reply.applied_seq)
        if error is not None and isinstance(error, (UnknownStreamError, FencedError)):
            line.lost = error
        if not unanswered:  # where one failed, those behind it failed too: the next seq is the daemon's word
            line.sent = line.applied
        return (ticket,)

    def _resumed(
        self, line: Line, reply: messages.Reply | None, error: RunnelError | None
    ) -> Sequence[Ticket]:
        """The stream is ours again, in a new epoch: say again all that is unanswered; or it is lost."""
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
        """The connection was lost and is there again: say again all that was not answered."""
        cut = list(self._flying.values())
        self._flying.clear()
        self.outbox.clear()
        for ticket in cut:
            line = ticket.line
            if line is None or ticket.op in _FOUNDING:  # a resumption that was under way is among these
                self._send(ticket)
            elif line.resuming is None:
                self._resume(line)

    def renew(self, line: Line) -> None:
        """Say again what one stream has unanswered: its replies were lost, though the connection was not."""
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
        """Wait no longer for it, nor for what its stream has behind it: all of that ends in `error`.

        Their seqs are given again. Whether they were, or will be, applied is not known: the same chunks
        posted again are applied once in any case, others are answered CONFLICT where they were.
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
        if not line.unanswered:  # as where the last one is answered
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
        ticket.buffers = ()  # kept for saying it again, until now
        self.in_flight -= 1

    def _forget(self, ticket: Ticket) -> None:
        """Its last sending: not to be sent if it was not yet, and its reply not to be heard."""
        self._flying.pop(ticket.id, None)
        self.outbox.pop(ticket.id, None)

    def _send(self, ticket: Ticket) -> None:
        self.outbox[ticket.id] = self._frames(ticket)
        self._flying[ticket.id] = ticket

    def _frames(self, ticket: Ticket) -> list[bytes]:
        """The request under an id of its own."""
        self._count += 1
        ticket.id = id = (
            f"{self._prefix}{self._count:08x}"  # as long each time: it is sent again as it fitted
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
    """A snapshot as the tensors of a restore: one, or two where it passes what a tensor may hold."""
    most = messages.MAX_TENSOR_BYTES
    parts = [blob] if len(blob) <= most else [blob[:most], blob[most:]]
    names = (SNAPSHOT, f"{SNAPSHOT}.1")
    return [
        messages.TensorInfo(name, "UINT8", [len(part)]) for name, part in zip(names, parts, strict=False)
    ], parts


def failure(told: messages.ErrorInfo) -> RunnelError:
    """The error that the daemon answered, as the class that its code names."""
    cls = by_code(told.code)
    unknown = cls is RunnelError and told.code != RunnelError.code
    return cls(f"{told.code}: {told.message}" if unknown else told.message)
