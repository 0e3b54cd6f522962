"""A load on a daemon: plain frames over a few sockets, one thread, one poll.

It does not use `runnel.Client`, which stores requests for reconnecting and returns arrays: the generator
shares the machine with the daemon, and should take little of it. It states epoch and seq as a client does, so
that the daemon does all of its work.
"""

from __future__ import annotations

import secrets
import select
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Final, NamedTuple

import msgspec
import zmq

from ..client.common import silence
from ..client.connection import BUNDLE_BYTES
from ..errors import RunnelError, TimeoutError, UsageError, WireError, by_code
from ..stage import Chunk
from ..wire import messages
from ..wire.address import beside, parse
from ..wire.curve import connect_as
from ..wire.keys import Secret
from ..wire.placement import worker_of
from ..wire.tensors import pack
from .inputs import Playlist
from .trial import Answer

STREAMS_PER_CONNECTION: Final = 64  # to the daemon each connection is a client, with a client's limits
MAX_CONNECTIONS: Final = 32  # to one worker: each takes descriptors at both ends
OPENING: Final = 256  # opens or closes in flight: within any daemon's limit for a client
MOST_ANSWERS: Final = 512  # read from a socket at once, so that due chunks are not delayed
_NOBLOCK: Final = int(zmq.NOBLOCK)  # plain integers: pyzmq's enums take a microsecond to combine
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)


class _ReplyHeader(msgspec.Struct):
    """The fields of a reply that are needed here; others are skipped, tensors are not read."""

    id: str = ""
    epoch: int = 0
    applied_seq: int = 0
    error: messages.ErrorInfo | None = None
    server: messages.Description | None = None


class _Sent(NamedTuple):
    """A request without a reply yet."""

    stream: int
    seq: int
    due: float


_reply_header = msgspec.msgpack.Decoder(_ReplyHeader)
_reply_headers = msgspec.msgpack.Decoder(list[_ReplyHeader])


class RemoteTarget:
    """Streams in a daemon, opened by the constructor; `close` closes them after all earlier requests."""

    def __init__(
        self,
        address: str,
        served: messages.Description,
        chunks: Sequence[Chunk],
        streams: int,
        timeout: float,
        keys: Secret | None = None,
    ) -> None:
        """Connect and open the streams. Raises as `hello` does, and any error of an open."""
        self._address, self._timeout, self._keys = address, timeout, keys
        self._playlist = Playlist(chunks, streams)
        self._packed = [pack(chunk) for chunk in chunks]
        self._unanswered: dict[int, _Sent] = {}  # by number
        self._numbers = 0
        self._due: dict[zmq.Socket[bytes], list[list[bytes]]] = {}  # sent at the next `poll`
        prefix = f"bench-{secrets.token_hex(4)}-"
        self._names = [f"{prefix}{stream}" for stream in range(streams)]
        self._epochs = [0] * streams
        self._seqs = [0] * streams  # the last seq sent
        self._checked = [0] * streams  # errors of requests numbered below this do not change the next seq
        workers = [beside(worker, address) for worker in served.workers] or [address]
        self._undo = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            self._sockets = self._connect(workers, streams)
            self._every = list(dict.fromkeys(self._sockets))
            self._descriptors = [socket.FD for socket in self._every]
            opened = self._ask("open", range(streams))
            for reply, stream in opened:
                self._epochs[stream] = reply.epoch if reply.error is None else 0
            for reply, _ in opened:
                if reply.error:
                    raise _error(reply.error)
            undo.pop_all()

    def send(self, stream: int, due: float) -> None:
        infos, buffers = self._packed[self._playlist.next_index(stream)]
        seq = self._seqs[stream] = self._seqs[stream] + 1
        request = messages.Request(
            v=messages.VERSION,
            op="feed",
            id=str(self._number(stream, seq, due)),
            sequence_id=self._names[stream],
            epoch=self._epochs[stream],
            seq=seq,
            inputs=infos,
        )
        self._post(stream, messages.encode_request(request, buffers))

    def poll(self, seconds: float) -> list[Answer]:
        answers: list[Answer] = []
        for reply, (stream, seq, due) in self._receive(seconds):
            answers.append((due, _error(reply.error) if reply.error else None))
            if reply.error and int(reply.id) >= self._checked[stream]:
                # Later requests in flight fail as well: the next chunk takes the first free seq.
                self._seqs[stream] = reply.applied_seq if reply.epoch else seq - 1
                self._checked[stream] = self._numbers + 1
        return answers

    def close(self) -> None:
        """Close the open streams, wait for the replies, and disconnect. Closing twice is allowed."""
        try:
            self._ask("close", [s for s, epoch in enumerate(self._epochs) if epoch])
        except TimeoutError:
            pass  # the daemon closes them when they become idle
        finally:
            self._epochs = [0] * len(self._epochs)
            self._undo.close()

    def __enter__(self) -> RemoteTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, workers: Sequence[str], streams: int) -> list[zmq.Socket[bytes]]:
        """Each stream's socket, to the worker of the stream."""
        context = self._undo.enter_context(zmq.Context())
        each = min(MAX_CONNECTIONS, -(-streams // (STREAMS_PER_CONNECTION * len(workers))))
        sockets = [
            [connection(context, self._undo, worker, self._keys) for _ in range(each)] for worker in workers
        ]
        return [
            sockets[worker_of(name, len(workers))][stream % each] for stream, name in enumerate(self._names)
        ]

    def _number(self, stream: int, seq: int, due: float) -> int:
        self._numbers += 1
        self._unanswered[self._numbers] = _Sent(stream, seq, due)
        return self._numbers

    def _ask(self, op: messages.Op, streams: Iterable[int]) -> list[tuple[_ReplyHeader, int]]:
        """Make this request for each stream; return the replies. Raises TimeoutError if none comes."""
        rest = iter(streams)
        replies: list[tuple[_ReplyHeader, int]] = []
        asked: set[int] = set()
        heard = time.monotonic()
        while True:
            for stream in islice(rest, OPENING - len(asked)):
                number = self._number(stream, 0, 0.0)
                asked.add(number)
                request = messages.Request(
                    v=messages.VERSION, op=op, id=str(number), sequence_id=self._names[stream],
                    epoch=self._epochs[stream],
                )  # fmt: skip
                self._post(stream, messages.encode_request(request))
            if not asked:
                return replies
            for reply, (stream, _, _) in self._receive(self._timeout):
                heard = time.monotonic()
                if int(reply.id) in asked:
                    asked.remove(int(reply.id))
                    replies.append((reply, stream))
            if time.monotonic() - heard > self._timeout:
                raise silence(self._address, self._timeout)

    def _post(self, stream: int, frames: list[bytes]) -> None:
        """Queue a message: all messages due at one time share a bundle per connection."""
        self._due.setdefault(self._sockets[stream], []).append(frames)

    def _receive(self, seconds: float) -> list[tuple[_ReplyHeader, _Sent]]:
        """Send what is due, then wait up to `seconds` for replies."""
        for socket, queued in self._due.items():
            for _, frames in messages.bundles(queued, BUNDLE_BYTES, always=True):
                _send(socket, frames)
        self._due.clear()
        found = self._drain()
        if not found and seconds > 0:
            # zmq.Poller counts milliseconds, which is too coarse here. A socket's descriptor reports each
            # event only once; the socket was emptied just before, so the next arrival wakes the select.
            select.select(self._descriptors, (), (), seconds)
            found = self._drain()
        return found

    def _drain(self) -> list[tuple[_ReplyHeader, _Sent]]:
        found: list[tuple[_ReplyHeader, _Sent]] = []
        for socket in self._every:
            for _ in range(MOST_ANSWERS):
                try:
                    frames = socket.recv_multipart(_NOBLOCK)
                except zmq.Again:
                    break
                # a reply without an id is a notice: the stream's next chunk will fail
                found += [
                    (reply, self._unanswered.pop(int(reply.id))) for reply in _decode(frames) if reply.id
                ]
        return found


def hello(address: str, timeout: float, keys: Secret | None = None) -> messages.Description:
    """Ask what a daemon serves. Raises UsageError for an invalid address, TimeoutError without an answer.

    `keys`: a user's keys, if the daemon has keys.
    """
    if parse(address, keyed=keys is not None).text.endswith(":*"):
        raise UsageError(f"address {address!r}: a load needs the port that the daemon has")
    with ExitStack() as stack:
        socket = connection(stack.enter_context(zmq.Context()), stack, address, keys)
        socket.send_multipart(messages.encode_request(messages.Request(v=messages.VERSION, op="hello")))
        if not socket.poll(int(timeout * 1000)):
            raise silence(address, timeout)
        [reply] = _decode(socket.recv_multipart())
        if reply.error:
            raise _error(reply.error)
        if reply.server is None:
            raise WireError(f"{address}: the answer to hello says nothing of a server")
        return reply.server


def connection(
    context: zmq.Context[zmq.Socket[bytes]], stack: ExitStack, address: str, keys: Secret | None = None
) -> zmq.Socket[bytes]:
    """A socket that never blocks and never drops; the trial bounds what is in flight."""
    socket = stack.enter_context(context.socket(zmq.DEALER))
    for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):
        socket.setsockopt(option, 0)
    socket.setsockopt(zmq.IPV6, int("[" in address))
    if keys is not None:
        connect_as(socket, keys)
    socket.connect(address)
    return socket


def _send(socket: zmq.Socket[bytes], frames: Sequence[bytes]) -> None:
    *first, last = frames
    for frame in first:
        socket.send(frame, _MORE)
    socket.send(last, _NOBLOCK)


def _decode(frames: Sequence[bytes]) -> list[_ReplyHeader]:
    """Decode the header of a reply, or those of a bundle."""
    try:
        if messages.bundled(frames):
            return _reply_headers.decode(frames[0])
        return [_reply_header.decode(frames[0])]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(
            f"an answer's header is not a msgpack map of version {messages.VERSION}: {error}"
        ) from None


def _error(info: messages.ErrorInfo) -> RunnelError:
    return by_code(info.code)(info.message)
