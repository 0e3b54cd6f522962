"""The client: streams in a daemon, with the interface of an engine's streams."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import FencedError, RunnelError, UnknownStreamError
from ..spec import Array
from ..stage import Chunk
from ..wire import messages
from ..wire.keys import client_keys
from .common import (
    WINDOW,
    InFlight,
    Out,
    RemoteStreamBase,
    Served,
    check_client,
    check_name,
    closed,
    full_window,
    outputs,
    random_epoch,
    silence,
    snapshot_of,
)
from .protocol import PendingRequest
from .threads import SharedConnection, Until


class Client:
    """A connection to a daemon: ``with runnel.Client("ipc:///run/runnel.sock") as client: ...``.

    `timeout`: seconds that a call waits for replies in total, also across lost connections. `window`: most
    chunks of one stream in flight (`RemoteStream.send`). `keys`: for a daemon with keys, the client's key
    file, made by `runnel keys new NAME --server DAEMON.pub`. Connects at first use, once to each worker of
    the daemon; a stream's name determines its worker. A lost connection is restored, with back-off: streams
    are resumed, unanswered requests are repeated, and each chunk is applied once. Closing the client leaves
    its streams open in the daemon.

    Threads may share a client, and even one of its streams: a stream's requests are done in the order in
    which they were made. Errors that the daemon reports are raised as the engine's own classes. Raises
    UsageError for an invalid address, or once closed; TimeoutError if the daemon does not answer: it is then
    unknown whether the request was done (see `RemoteStream.feed`).
    """

    def __init__(
        self, address: str, timeout: float = 5.0, window: int = WINDOW, keys: str | Path | None = None
    ) -> None:
        self._keys = client_keys(keys) if keys is not None else None
        self.address = check_client(address, timeout, window, keyed=keys is not None)
        self.timeout = timeout
        self.window = window
        self._lock = threading.Lock()
        self._connections: dict[str, SharedConnection] = {}  # by address
        self._served: Served | None = None
        self._generation = 0  # connection number of the home connection when `_served` was read
        self._closed = False

    def describe(self) -> Served:
        """Describe what the daemon serves; asked at first use, and again after each new connection."""
        home = self._connection_to(self.address)
        served = self._served
        if served is None or self._generation != home.connection.generation:
            reply = home.ask(lambda protocol: protocol.ask("hello"), self.timeout).answer()
            served = Served.from_reply(reply, self.address)
            home.connection.allow(served.limits)
            self._served, self._generation = served, home.connection.generation
        return served

    def open(self, id: str | None = None) -> RemoteStream:
        """Open a new stream in its initial state. Without an id, a random one is made.

        Raises StreamExistsError; LimitError if the daemon has no stream left; StreamError for an invalid id.
        After a TimeoutError the daemon may still open it later: open it again.
        """
        name, served, shared = self._locate(id)
        epoch = random_epoch()
        return self._stream(
            shared.ask(lambda protocol: protocol.open(name, epoch), self.timeout), shared, served
        )

    def restore(self, blob: bytes, id: str | None = None) -> RemoteStream:
        """Open a new stream that continues from a snapshot; its `seq` counts the chunks since.

        Raises as `open` does; SnapshotError for a blob that is damaged or of another pipeline; TooLargeError
        for one larger than a message may be.
        """
        name, served, shared = self._locate(id)
        epoch = random_epoch()
        pending = shared.ask(lambda protocol: protocol.restore(name, bytes(blob), epoch), self.timeout)
        return self._stream(pending, shared, served)

    def resume(self, id: str) -> RemoteStream:
        """Take over an open stream, for example after a restart of this program.

        The previous holder gets FencedError from then on. `seq` is the last request applied. Raises
        UnknownStreamError.
        """
        name, served, shared = self._locate(id)
        return self._stream(shared.ask(lambda protocol: protocol.resume(name), self.timeout), shared, served)

    def stats(self) -> list[dict[str, Any]]:
        """Each worker's counters, in the order of the workers."""
        served = self.describe()
        return [
            self._connection_to(address)
            .ask(lambda protocol: protocol.ask("stats"), self.timeout)
            .answer()
            .stats
            or {}
            for address in served.addresses(self.address)
        ]

    def feed_many(self, pairs: Sequence[tuple[RemoteStream, Array | Chunk]]) -> list[Any]:
        """Feed several streams, with many chunks in flight: as `Engine.feed_many`.

        Returns what `RemoteStream.feed` returns for each chunk, in the same order; for a failed chunk, its
        error. A stream may occur more than once: its chunks are applied in order. If one fails, those in
        flight behind it fail too (GapError), so that none is skipped. Each reply may take `timeout` seconds
        after the last one. After a TimeoutError, all remaining chunks have that error.
        """
        in_flight = InFlight(len(pairs))
        waiting = in_flight.waiting

        def take_oldest() -> None:
            _, stream, pending, _ = waiting[0]
            if not pending.done:
                shared = cast(RemoteStream, stream)._shared
                with shared.lock:  # replies behind a late one may have arrived already
                    shared.settle(pending, self.timeout, None if in_flight.silent is None else 0.0)
            in_flight.take_oldest()

        for at, (stream, chunk) in enumerate(pairs):
            shared = stream._shared
            try:
                infos, buffers = stream._tensors(chunk)
                while in_flight.held_back(stream) or (waiting and shared.connection.full):
                    take_oldest()
                if in_flight.silent is not None:
                    raise in_flight.silent
                with shared.lock:
                    pending = shared.post(
                        stream._client_stream, stream._window, "feed", infos, buffers, self.timeout, held=True
                    )
            except RunnelError as error:
                in_flight.results[at] = error
            else:
                waiting.append((at, stream, pending, isinstance(chunk, np.ndarray)))
        for shared in {cast(RemoteStream, stream)._shared for _, stream, _, _ in waiting}:
            with shared.lock:
                shared.flush()
        while waiting:
            take_oldest()
        return in_flight.results

    def close(self) -> None:
        """Disconnect. Closing twice is allowed."""
        with self._lock:
            self._closed = True
            connections = list(self._connections.values())
            self._connections.clear()
        for shared in connections:
            shared.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.address}{', closed' if self._closed else ''}>"

    def _connection_to(self, address: str) -> SharedConnection:
        with self._lock:
            if self._closed:
                raise closed(self.address)
            shared = self._connections.get(address)
            if shared is None:
                limit = int(self._served.limits["pending_per_peer"]) if self._served else 1
                shared = self._connections[address] = SharedConnection(address, limit, self._keys)
                if self._served:
                    shared.connection.allow(self._served.limits)
            return shared

    def _locate(self, id: str | None) -> tuple[str, Served, SharedConnection]:
        name = secrets.token_hex(8) if id is None else check_name(id)
        served = self.describe()
        return name, served, self._connection_to(served.address_of(name) or self.address)

    def _stream(self, pending: PendingRequest, shared: SharedConnection, served: Served) -> RemoteStream:
        pending.answer()
        return RemoteStream(self, shared, pending, served)


class RemoteStream(RemoteStreamBase):
    """A stream in a daemon, made by `Client.open`, `restore` or `resume`.

    There are two ways to use it. One chunk at a time: `feed` returns its output. Many in flight: `send` sends
    a chunk, `receive` returns the oldest result, in order; `feed_all` does both.

    A chunk that failed was not applied. The chunks in flight behind it fail too (GapError), as does one that
    is sent before all of them are answered. Then `seq` is the last request applied, and the next chunk
    follows it.
    """

    __slots__ = ("_client", "_shared")

    def __init__(
        self, client: Client, shared: SharedConnection, pending: PendingRequest, served: Served
    ) -> None:
        assert pending.stream is not None
        super().__init__(pending.stream, served, client.window)
        self._client = client
        self._shared = shared

    def feed(self, chunk: Array | Chunk) -> Out:
        """Apply one chunk and return its output: as `Stream.feed`.

        Chunks sent before it are applied before it; their results can still be received. Raises what
        `Stream.feed` raises; UnknownStreamError if the daemon has lost or closed the stream, so that it must
        be opened anew; FencedError if another client has resumed it; LimitError, ShutdownError;
        AlreadyAppliedError if the chunk was applied, but its reply is no longer in the daemon's cache.

        After a TimeoutError it is unknown whether the chunk was or will be applied. Feed the same chunk
        again: it is applied once in any case. If the first one was applied, a different chunk in its place
        raises ConflictError: the first one's output is then lost, and the next chunk follows it. So if
        several chunks timed out, feed all of them again before others.
        """
        infos, buffers = self._tensors(chunk)
        return outputs(self._call("feed", infos, buffers), isinstance(chunk, np.ndarray))

    def generate(self, steps: int) -> Out:
        """Run `steps` time steps without input: as `Stream.generate`. Like a `feed`, it is applied once.

        After a TimeoutError, the same number of steps is the same request. Raises TooLargeError for more
        steps than a reply can hold.
        """
        return outputs(self._call("feed", steps=self._steps(steps)), True)

    def send(self, chunk: Array | Chunk) -> None:
        """Send a chunk. Get its result from `receive`.

        If `window` results are outstanding, it waits until another thread receives one. Raises LimitError if
        no thread does in time, TimeoutError if the daemon accepts nothing. In both cases nothing was sent.
        """
        infos, buffers = self._tensors(chunk)
        shared, waiting, timeout = self._shared, self._waiting, self._client.timeout
        with shared.lock:
            if len(waiting) >= self._window and not shared.wait(
                Until(lambda: len(waiting) < self._window), timeout
            ):
                raise full_window(self)
            pending = shared.post(self._client_stream, self._window, "feed", infos, buffers, timeout)
            waiting.append((pending, isinstance(chunk, np.ndarray)))

    def receive(self) -> Out:
        """Return the result of the oldest chunk that was sent, or raise its error, as `feed` does.

        Raises StreamError if nothing is outstanding. After a TimeoutError the result is still outstanding: it
        was requested again, so receive it later.
        """
        shared, waiting, timeout = self._shared, self._waiting, self._client.timeout
        deadline = time.monotonic() + timeout
        with shared.lock:
            shared.check()
            while True:
                if not waiting:
                    raise self._nothing_sent()
                pending, bare = waiting[0]
                if pending.done:  # otherwise another thread may receive it meanwhile
                    break
                if not shared.wait(pending, deadline - time.monotonic()):
                    shared.connection.protocol.renew(self._client_stream)
                    shared.connection.send()
                    raise silence(self._client.address, timeout)
            waiting.popleft()
            shared.changed()
        return outputs(pending, bare)

    def results(self) -> Iterator[Out]:
        """Yield the outstanding results, in order. Raises the error of a failed chunk, as `receive` does."""
        while self._waiting:
            yield self.receive()

    def feed_all(self, chunks: Iterable[Array | Chunk]) -> Iterator[Out]:
        """Feed all chunks, with as many in flight as the window allows; yield each output, in order.

        Raises the error of a failed chunk. Results of chunks sent after it, or before the caller stopped,
        stay outstanding: `receive` them.
        """
        for chunk in chunks:
            while len(self._waiting) >= self._window or self._ready():
                yield self.receive()
            self.send(chunk)
        yield from self.results()

    def flush(self) -> Out:
        """End the stream and return the remaining output (an array if there is one output)."""
        self._check_open()
        return outputs(self._call("flush"), True)

    def reset(self) -> None:
        """Return to the initial state. Unlike for a new stream, `seq` counts on."""
        self._check_open()
        self._call("reset").answer()

    def snapshot(self) -> bytes:
        """Snapshot the stream after everything that was fed or sent.

        Returns a blob for `Client.restore` or `Engine.restore`.
        """
        self._check_open()
        return snapshot_of(self._call("snapshot"))

    def close(self) -> None:
        """Close the stream in the daemon; results not received are dropped.

        It is allowed to close twice, or to close a stream that is lost or was resumed by another client.
        """
        if self._closed:
            return
        if self._client_stream.lost is None:
            with suppress(UnknownStreamError, FencedError):
                self._call("close").answer()
        self._waiting.clear()
        self._closed = True

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        op: messages.Op,
        infos: list[messages.TensorInfo] | None = None,
        buffers: list[bytes] | None = None,
        steps: int = 0,
    ) -> PendingRequest:
        """Make one request and wait until it is settled."""
        shared, timeout = self._shared, self._client.timeout
        with shared.lock:
            pending = shared.post(
                self._client_stream, self._window, op, infos or [], buffers or [], timeout, steps=steps
            )
            shared.settle(pending, timeout)
        return pending

    def _ready(self) -> bool:
        """Whether the oldest result has arrived."""
        with self._shared.lock:
            self._shared.glance()
            return bool(self._waiting) and self._waiting[0][0].done
