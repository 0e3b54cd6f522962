"""The client: streams in a daemon, used as the streams of an engine are."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import zmq

from ..errors import (
    ChunkError,
    RunnelError,
    StreamClosedError,
    TimeoutError,
    UnknownStreamError,
    UsageError,
    by_code,
)
from ..spec import Array, Signal
from ..stage import Chunk
from . import wire
from .address import parse
from .tensors import pack, undescribe, unpack

WINDOW: Final = 512  # requests that feed_many has in flight: enough to fill a daemon's batches
MAX_TIMEOUT: Final = 86400  # seconds: a day; zmq counts milliseconds in 32 bits
QUEUED: Final = 2 * WINDOW  # messages that libzmq holds for us, either way

Out = Any  # dict[str, Array], or one Array where the chunk was one array and the pipeline has one output


@dataclass(frozen=True, slots=True)
class Served:
    """What a daemon serves."""

    version: str  # of the daemon's runnel
    boot_id: str  # new at each start of the daemon; its streams are gone with it
    inputs: Signal
    outputs: Signal
    latency: int  # input time steps
    limits: Mapping[str, int]


class Client:
    """A connection to a daemon: ``with runnel.Client("ipc:///run/runnel.sock") as client: ...``.

    `timeout`: seconds to wait for a reply. Connects when first used. Errors that the daemon answers are
    raised as the same classes that the engine raises. Closing the client leaves its streams open in the
    daemon. Not thread-safe: it belongs to the thread that uses it first.

    Raises UsageError for an address that is none, or use from another thread; TimeoutError when the
    daemon does not answer: a chunk may then have been applied or not (see `RemoteStream.feed`).
    """

    def __init__(self, address: str, timeout: float = 5.0) -> None:
        self.address = parse(address).text
        if self.address.endswith(":*"):
            raise UsageError(f"address {address!r}: a client needs the port that the daemon has")
        if not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT:
            raise UsageError(
                f"timeout must be a positive number of seconds, {MAX_TIMEOUT} at most, not {timeout!r}"
            )
        self.timeout = timeout
        self._socket: zmq.Socket[bytes] | None = None
        self._thread = 0
        self._closed = False
        self._ids = itertools.count(1)
        self._awaited: set[str] = set()
        self._arrived: dict[str, tuple[wire.Reply, dict[str, Array]]] = {}
        self._served: Served | None = None

    def describe(self) -> Served:
        """What the daemon serves; asked once, when first needed."""
        if self._served is None:
            reply, _ = self._ask(wire.Request(v=wire.VERSION, op="hello", id=self._new_id()))
            told = reply.server
            if told is None:
                raise _failed(reply)
            self._served = Served(
                told.version,
                told.boot_id,
                undescribe(told.inputs, told.input_rate),
                undescribe(told.outputs, told.output_rate),
                told.latency,
                {name: getattr(told.limits, name) for name in told.limits.__struct_fields__},
            )
        return self._served

    def open(self, id: str | None = None) -> RemoteStream:
        """A new stream in its initial state; without an id the daemon makes one.

        Raises StreamExistsError, LimitError when the daemon's streams are all taken, StreamError for an
        id that is none.
        """
        self.describe()
        request = wire.Request(v=wire.VERSION, op="open", id=self._new_id(), sequence_id=id or "")
        reply, _ = self._ask(request)
        if reply.error:
            raise _failed(reply)
        return RemoteStream(self, reply.sequence_id)

    def feed_many(self, pairs: Sequence[tuple[RemoteStream, Array | Chunk]]) -> list[Any]:
        """Feed several streams, all on their way before the first reply: as `Engine.feed_many`.

        Returns what `RemoteStream.feed` returns for each, in the same order; in place of a failed
        chunk's output stands its error. A stream may occur more than once: its chunks are applied in
        order, and after one that failed its later ones fail too (GapError), so that none is skipped.
        Replies are waited for as long as they keep coming.
        """
        results: list[Any] = [None] * len(pairs)
        flying: deque[tuple[int, str]] = deque()
        window = min(WINDOW, self.describe().limits["pending_per_peer"])
        stated: dict[RemoteStream, int] = {}
        silence: TimeoutError | None = None

        def land() -> None:
            nonlocal silence
            at, id = flying.popleft()
            stream, chunk = pairs[at]
            try:
                results[at] = stream._result(id, chunk, wait=silence is None)
            except TimeoutError as error:  # of this one; those behind it may be here already
                results[at] = silence = error
            except RunnelError as error:
                results[at] = error

        for at, (stream, chunk) in enumerate(pairs):
            if len(flying) == window:
                land()
            seq = stated[stream] = stated.get(stream, stream.seq) + 1
            try:
                if silence:
                    raise silence
                flying.append((at, stream._post("feed", chunk, seq)))
            except RunnelError as error:
                results[at] = error
        while flying:
            land()
        return results

    def close(self) -> None:
        """Disconnect. Closing twice is allowed."""
        self._closed = True
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.address}{', closed' if self._closed else ''}>"

    # One request, one reply.

    def _new_id(self) -> str:
        return str(next(self._ids))

    def _ask(
        self, request: wire.Request, buffers: Sequence[bytes] = ()
    ) -> tuple[wire.Reply, dict[str, Array]]:
        self._post(request, buffers)
        return self._collect(request.id)

    def _post(self, request: wire.Request, buffers: Sequence[bytes]) -> None:
        frames = wire.encode_request(request, buffers)
        try:
            self._connected().send_multipart(frames)
        except zmq.Again:
            raise self._silence() from None
        self._awaited.add(request.id)

    def _collect(self, id: str, wait: bool = True) -> tuple[wire.Reply, dict[str, Array]]:
        """Wait for this reply, keeping those that are awaited besides it and no others.

        A reply that came too late for its own request is among the others.
        """
        socket = self._connected()
        try:
            while id not in self._arrived:
                if not socket.poll(int(self.timeout * 1000) if wait else 0):
                    raise self._silence()
                reply, buffers = wire.decode_reply(socket.recv_multipart())
                if reply.id in self._awaited:
                    self._arrived[reply.id] = reply, unpack(reply.outputs, buffers)
            return self._arrived.pop(id)
        finally:
            self._awaited.discard(id)

    def _connected(self) -> zmq.Socket[bytes]:
        if self._closed:
            raise UsageError(f"this client of {self.address} is closed: make another")
        if self._socket is None:
            self._thread = threading.get_ident()
            self._socket = zmq.Context.instance().socket(zmq.DEALER)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.SNDHWM, QUEUED)
            self._socket.setsockopt(zmq.RCVHWM, QUEUED)
            self._socket.setsockopt(zmq.SNDTIMEO, int(self.timeout * 1000))
            self._socket.setsockopt(zmq.IPV6, int("[" in self.address))
            self._socket.connect(self.address)
        elif self._thread != threading.get_ident():
            raise UsageError("a Client belongs to the thread that used it first: make one for each thread")
        return self._socket

    def _silence(self) -> TimeoutError:
        return TimeoutError(
            f"no reply from {self.address} within {self.timeout:g} s: is the daemon running there "
            f"(runnel serve PIPELINE --bind {self.address}), and is it not overloaded?"
        )


class RemoteStream:
    """A stream in a daemon; made by `Client.open`.

    `seq` counts the chunks applied since it was opened or reset, as the daemon last told.
    """

    __slots__ = ("_client", "_closed", "id", "seq")

    def __init__(self, client: Client, id: str) -> None:
        self.id = id
        self.seq = 0
        self._client = client
        self._closed = False

    def feed(self, chunk: Array | Chunk) -> Out:
        """Apply one chunk and return what it makes: as `Stream.feed`.

        Raises what `Stream.feed` raises; UnknownStreamError when the daemon has lost the stream, so it
        must be opened anew; LimitError, TimeoutError. After a TimeoutError the chunk may or may not have
        been applied: feed it again, and a GapError says that it was, `seq` then being what is true.
        """
        return self._result(self._post("feed", chunk, self.seq + 1), chunk)

    def flush(self) -> Out:
        """End the stream: return what is still inside (an array where there is one output)."""
        return self._result(self._post("flush"), None)

    def reset(self) -> None:
        """Back to the initial state: as a new stream, with `seq` 0."""
        self._result(self._post("reset"), {})

    def close(self) -> None:
        """Give the stream's place back. Closing twice, or one that the daemon has lost, is allowed."""
        if self._closed:
            return
        with suppress(UnknownStreamError):
            self._result(self._post("close"), {})
        self._closed = True

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RemoteStream {self.id!r}, {'closed' if self._closed else f'seq {self.seq}'}>"

    def _post(self, op: wire.Op, chunk: Array | Chunk | None = None, seq: int = 0) -> str:
        """Send a request; its correlation id. `seq` 0: whichever is next."""
        if self._closed:
            raise StreamClosedError(f"stream {self.id!r} is closed: open it anew")
        client = self._client
        infos, buffers = pack(self._named(chunk)) if chunk is not None else ([], [])
        id = client._new_id()
        request = wire.Request(v=wire.VERSION, op=op, id=id, sequence_id=self.id, seq=seq, inputs=infos)
        client._post(request, buffers)
        return id

    def _result(self, id: str, chunk: Array | Chunk | None, wait: bool = True) -> Out:
        """The reply's outputs, in the form that the chunk had."""
        reply, outputs = self._client._collect(id, wait)
        if reply.epoch:  # said of the stream, and not of the message alone
            self.seq = reply.applied_seq
        if reply.error:
            raise _failed(reply)
        if len(outputs) == 1 and not isinstance(chunk, Mapping):
            return next(iter(outputs.values()))
        return outputs

    def _named(self, chunk: Array | Chunk) -> Chunk:
        inputs = self._client.describe().inputs
        if isinstance(chunk, Mapping):
            return chunk
        if not isinstance(chunk, np.ndarray):
            raise ChunkError(f"a chunk is a numpy array or a dict of them, not {type(chunk).__name__}")
        if len(inputs.names) != 1:
            raise ChunkError(
                f"this pipeline has {len(inputs.names)} inputs: give a dict of arrays with {inputs}"
            )
        return {inputs.names[0]: chunk}


def _failed(reply: wire.Reply) -> RunnelError:
    """The error that the daemon answered, as the class that its code names."""
    if reply.error is None:
        return RunnelError(f"the daemon's answer to {reply.op!r} lacks what was asked for")
    cls = by_code(reply.error.code)
    unknown = cls is RunnelError and reply.error.code != RunnelError.code
    return cls(f"{reply.error.code}: {reply.error.message}" if unknown else reply.error.message)
