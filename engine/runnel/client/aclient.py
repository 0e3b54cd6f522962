"""The client for asyncio: like `Client`, with ``await``."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import FencedError, RunnelError, UnknownStreamError, UsageError
from ..spec import Array
from ..stage import Chunk
from ..wire import messages
from ..wire.keys import Secret, client_keys
from ..wire.pauses import extended
from .common import (
    HELD,
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
from .connection import Connection
from .protocol import ClientProtocol, ClientStream, PendingRequest

Chunks = Iterable[Array | Chunk] | AsyncIterable[Array | Chunk]


class AsyncClient:
    """A connection to a daemon: ``async with runnel.AsyncClient(address) as client: ...``.

    Everything said of `Client` holds, for tasks instead of threads. A client belongs to the event loop in
    which it is first used, and raises UsageError in another. Cancelling a task, also by a time-out, only
    stops the waiting: its chunk is applied, and later requests on the stream go on behind it. The output of a
    cancelled `feed` is lost; a cancelled `receive` leaves the result to the next one.
    """

    def __init__(
        self, address: str, timeout: float = 5.0, window: int = WINDOW, keys: str | Path | None = None
    ) -> None:
        self._keys = client_keys(keys) if keys is not None else None
        self.address = check_client(address, timeout, window, keyed=keys is not None)
        self.timeout = timeout
        self.window = window
        self._connections: dict[str, _SharedConnection] = {}  # by address
        self._served: Served | None = None
        self._generation = 0  # connection number of the home connection when `_served` was read
        self._closed = False

    async def describe(self) -> Served:
        """Describe what the daemon serves; asked at first use, and again after each new connection."""
        home = self._connection_to(self.address)
        served = self._served
        if served is None or self._generation != home.connection.generation:
            pending = await home.ask(lambda protocol: protocol.ask("hello"), self.timeout)
            served = Served.from_reply(pending.answer(), self.address)
            home.connection.allow(served.limits)
            self._served, self._generation = served, home.connection.generation
        return served

    async def open(self, id: str | None = None) -> AsyncRemoteStream:
        """Open a new stream: as `Client.open`."""
        name, served, shared = await self._locate(id)
        epoch = random_epoch()
        return self._stream(
            await shared.ask(lambda protocol: protocol.open(name, epoch), self.timeout), shared, served
        )

    async def restore(self, blob: bytes, id: str | None = None) -> AsyncRemoteStream:
        """Open a new stream from a snapshot: as `Client.restore`."""
        name, served, shared = await self._locate(id)
        epoch = random_epoch()
        pending = await shared.ask(lambda protocol: protocol.restore(name, bytes(blob), epoch), self.timeout)
        return self._stream(pending, shared, served)

    async def resume(self, id: str) -> AsyncRemoteStream:
        """Take over a stream that is open in the daemon: as `Client.resume`."""
        name, served, shared = await self._locate(id)
        return self._stream(
            await shared.ask(lambda protocol: protocol.resume(name), self.timeout), shared, served
        )

    async def stats(self) -> list[dict[str, Any]]:
        """Each worker's counters, in the order of the workers."""
        served = await self.describe()
        questions = [
            await self._connection_to(address).ask(lambda protocol: protocol.ask("stats"), self.timeout)
            for address in served.addresses(self.address)
        ]
        return [pending.answer().stats or {} for pending in questions]

    async def feed_many(self, pairs: Sequence[tuple[AsyncRemoteStream, Array | Chunk]]) -> list[Any]:
        """Feed several streams, with many chunks in flight: as `Client.feed_many`."""
        in_flight = InFlight(len(pairs))
        waiting = in_flight.waiting

        async def take_oldest() -> None:
            _, stream, pending, _ = waiting[0]
            if not pending.done:
                shared = cast(AsyncRemoteStream, stream)._shared
                await shared.settle(pending, self.timeout, None if in_flight.silent is None else 0.0)
            in_flight.take_oldest()

        for at, (stream, chunk) in enumerate(pairs):
            shared = stream._shared
            try:
                infos, buffers = stream._tensors(chunk)
                while in_flight.held_back(stream) or (waiting and shared.connection.full):
                    await take_oldest()
                if in_flight.silent is not None:
                    raise in_flight.silent
                pending = await shared.post(
                    stream._client_stream, stream._window, "feed", infos, buffers, self.timeout, held=True
                )
            except RunnelError as error:
                in_flight.results[at] = error
            else:
                waiting.append((at, stream, pending, isinstance(chunk, np.ndarray)))
        while waiting:
            await take_oldest()
        return in_flight.results

    async def close(self) -> None:
        """Disconnect; waiting tasks get UsageError. Closing twice is allowed."""
        self._closed = True
        for shared in self._connections.values():
            shared.close()
        self._connections.clear()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient of {self.address}{', closed' if self._closed else ''}>"

    def _connection_to(self, address: str) -> _SharedConnection:
        if self._closed:
            raise closed(self.address)
        shared = self._connections.get(address)
        if shared is None:
            limit = int(self._served.limits["pending_per_peer"]) if self._served else 1
            shared = self._connections[address] = _SharedConnection(address, limit, self._keys)
            if self._served:
                shared.connection.allow(self._served.limits)
        return shared

    async def _locate(self, id: str | None) -> tuple[str, Served, _SharedConnection]:
        name = secrets.token_hex(8) if id is None else check_name(id)
        served = await self.describe()
        return name, served, self._connection_to(served.address_of(name) or self.address)

    def _stream(
        self, pending: PendingRequest, shared: _SharedConnection, served: Served
    ) -> AsyncRemoteStream:
        pending.answer()
        return AsyncRemoteStream(self, shared, pending, served)


class AsyncRemoteStream(RemoteStreamBase):
    """A stream in a daemon, made by `AsyncClient.open`, `restore` or `resume`: as `RemoteStream`."""

    __slots__ = ("_client", "_shared")

    def __init__(
        self, client: AsyncClient, shared: _SharedConnection, pending: PendingRequest, served: Served
    ) -> None:
        assert pending.stream is not None
        super().__init__(pending.stream, served, client.window)
        self._client = client
        self._shared = shared

    async def feed(self, chunk: Array | Chunk) -> Out:
        """Apply one chunk and return its output: as `RemoteStream.feed`."""
        infos, buffers = self._tensors(chunk)
        return outputs(await self._call("feed", infos, buffers), isinstance(chunk, np.ndarray))

    async def generate(self, steps: int) -> Out:
        """Run `steps` time steps without input: as `RemoteStream.generate`."""
        return outputs(await self._call("feed", steps=self._steps(steps)), True)

    async def send(self, chunk: Array | Chunk) -> None:
        """Send a chunk, waiting while the window is full: as `RemoteStream.send`.

        If other requests are in flight, it is sent at the end of this turn of the event loop.
        """
        infos, buffers = self._tensors(chunk)
        shared, waiting, timeout = self._shared, self._waiting, self._client.timeout
        if len(waiting) >= self._window and not await shared.until(
            lambda: len(waiting) < self._window, timeout
        ):
            raise full_window(self)
        pending = await shared.post(self._client_stream, self._window, "feed", infos, buffers, timeout)
        waiting.append((pending, isinstance(chunk, np.ndarray)))

    async def receive(self) -> Out:
        """Return the result of the oldest chunk that was sent: as `RemoteStream.receive`."""
        shared, waiting, timeout = self._shared, self._waiting, self._client.timeout
        deadline = shared.loop.time() + timeout
        shared.check()
        while True:
            if not waiting:
                raise self._nothing_sent()
            pending, bare = waiting[0]
            if pending.done:  # otherwise another task may receive it meanwhile
                break
            if not await shared.wait(pending, deadline - shared.loop.time()):
                shared.renew(self._client_stream)
                raise silence(self._client.address, timeout)
        waiting.popleft()
        shared.changed()
        return outputs(pending, bare)

    async def results(self) -> AsyncIterator[Out]:
        """Yield the outstanding results, in order: as `RemoteStream.results`."""
        while self._waiting:
            yield await self.receive()

    async def feed_all(self, chunks: Chunks) -> AsyncIterator[Out]:
        """Feed all chunks of a normal or an asynchronous iterable: as `RemoteStream.feed_all`."""
        async for chunk in chunks if isinstance(chunks, AsyncIterable) else _each(chunks):
            while len(self._waiting) >= self._window or (self._waiting and self._waiting[0][0].done):
                yield await self.receive()
            await self.send(chunk)
        while self._waiting:
            yield await self.receive()

    async def flush(self) -> Out:
        """End the stream and return the remaining output (an array if there is one output)."""
        self._check_open()
        return outputs(await self._call("flush"), True)

    async def reset(self) -> None:
        """Return to the initial state. Unlike for a new stream, `seq` counts on."""
        self._check_open()
        (await self._call("reset")).answer()

    async def snapshot(self) -> bytes:
        """Snapshot the stream after everything that was fed or sent: as `RemoteStream.snapshot`."""
        self._check_open()
        return snapshot_of(await self._call("snapshot"))

    async def close(self) -> None:
        """Close the stream in the daemon; results not received are dropped: as `RemoteStream.close`."""
        if self._closed:
            return
        if self._client_stream.lost is None:
            with suppress(UnknownStreamError, FencedError):
                (await self._call("close")).answer()
        self._waiting.clear()
        self._closed = True

    async def __aenter__(self) -> AsyncRemoteStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(
        self,
        op: messages.Op,
        infos: list[messages.TensorInfo] | None = None,
        buffers: list[bytes] | None = None,
        steps: int = 0,
    ) -> PendingRequest:
        """Make one request and wait until it is settled."""
        timeout = self._client.timeout
        pending = await self._shared.post(
            self._client_stream, self._window, op, infos or [], buffers or [], timeout, steps=steps
        )
        await self._shared.settle(pending, timeout)
        return pending


class _SharedConnection:
    """A connection in an event loop: its descriptors wake the loop, which reads for all tasks.

    Requests of one turn of the loop are sent together at its end. A request with no other in flight is sent
    at once.
    """

    def __init__(self, address: str, limit: int, keys: Secret | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.connection = Connection(address, keys)
        self.connection.limit = limit
        self._closed = False
        self._due = False  # a flush is scheduled for the end of this turn of the loop
        self._waiters: dict[PendingRequest, list[asyncio.Future[bool]]] = {}
        self._others: dict[asyncio.Future[bool], Callable[[], bool]] = {}
        for descriptor in self.connection.descriptors:
            self.loop.add_reader(descriptor, self._woken)

    async def ask(self, make: Callable[[ClientProtocol], PendingRequest], timeout: float) -> PendingRequest:
        """Make a request and wait until it is settled; give it up at the time-out."""
        self.check()
        pending = make(self.connection.protocol)
        self._send()
        await self.settle(pending, timeout)
        return pending

    async def post(
        self,
        stream: ClientStream,
        window: int,
        op: messages.Op,
        infos: list[messages.TensorInfo],
        buffers: list[bytes],
        timeout: float,
        held: bool = False,
        steps: int = 0,
    ) -> PendingRequest:
        """Send a request once there is room for it; `held`: more follow. As `SharedConnection.post`."""
        self.check()
        connection = self.connection
        if connection.full or len(stream.unanswered) >= window:
            roomy = await self.until(lambda: not connection.full and len(stream.unanswered) < window, timeout)
            if not roomy:
                raise silence(connection.address, timeout)
        pending = connection.protocol.post(stream, op, infos, buffers, steps)
        alone = connection.protocol.in_flight == 1 and not held
        if alone or len(connection.protocol.outbox) >= HELD:
            self._send()
        elif not self._due:
            self._due = True
            self.loop.call_soon(self._flush)
        return pending

    async def settle(self, pending: PendingRequest, timeout: float, waited: float | None = None) -> None:
        """Wait until a request is settled, for `timeout` or `waited` seconds; then give it up."""
        if not await self.wait(pending, timeout if waited is None else waited):
            self._tell(self.connection.protocol.give_up(pending, silence(self.connection.address, timeout)))

    async def wait(self, pending: PendingRequest, timeout: float) -> bool:
        """Return whether the request is settled within `timeout` seconds."""
        if pending.done:
            return True
        future: asyncio.Future[bool] = self.loop.create_future()
        futures = self._waiters.setdefault(pending, [])
        futures.append(future)
        try:
            return await self._within(future, timeout) or pending.done
        finally:
            if not pending.done:  # else `_tell` has removed them
                futures.remove(future)
                if not futures:
                    del self._waiters[pending]

    async def until(self, holds: Callable[[], bool], timeout: float) -> bool:
        """Wait until `holds()`. If True is returned, no other task has run since that could change it."""
        deadline = self.loop.time() + timeout
        while not holds():
            left = deadline - self.loop.time()
            if left <= 0:
                return False
            future: asyncio.Future[bool] = self.loop.create_future()
            self._others[future] = holds
            await self._within(future, left)
        return True

    def renew(self, stream: ClientStream) -> None:
        """Repeat the unanswered requests of a stream."""
        self.connection.protocol.renew(stream)
        self._send()

    def changed(self) -> None:
        """Wake the tasks whose condition now holds."""
        for future, holds in self._others.items():
            if not future.done() and holds():
                future.set_result(True)

    def check(self) -> None:
        """Raise UsageError if the client is closed, or belongs to another event loop."""
        if self._closed:
            raise closed(self.connection.address)
        if asyncio.get_running_loop() is not self.loop:
            raise UsageError("an AsyncClient belongs to the event loop that used it first: make one for each")

    def close(self) -> None:
        """Disconnect. Waiting tasks get UsageError."""
        self._closed = True
        for descriptor in self.connection.descriptors:
            self.loop.remove_reader(descriptor)
        self.connection.close()
        for future in [*self._others, *(f for futures in self._waiters.values() for f in futures)]:
            if not future.done():
                future.set_exception(closed(self.connection.address))

    async def _within(self, future: asyncio.Future[bool], timeout: float) -> bool:
        deadline = self.loop.time() + timeout
        timer = self.loop.call_at(deadline, _expire, self.loop, future, deadline)
        try:
            return await future
        finally:
            timer.cancel()
            self._others.pop(future, None)

    def _flush(self) -> None:
        self._due = False
        if self.connection.protocol.outbox and not self._closed:
            self._send()

    def _send(self) -> None:
        self.connection.send()
        if self.connection.ready:  # sending may have consumed the descriptor's event
            self._woken()

    def _woken(self) -> None:
        self._tell(self.connection.turn())
        while self.connection.ready:
            self._tell(self.connection.turn())

    def _tell(self, settled: Sequence[PendingRequest]) -> None:
        for pending in settled:
            for future in self._waiters.pop(pending, ()):
                if not future.done():
                    future.set_result(True)
        if settled and self._others:
            self.changed()


def _expire(loop: asyncio.AbstractEventLoop, future: asyncio.Future[bool], deadline: float) -> None:
    if future.done():
        return
    later = extended(deadline, loop.time())
    if later > deadline:
        loop.call_at(later, _expire, loop, future, later)
    else:
        future.set_result(False)


async def _each(chunks: Iterable[Array | Chunk]) -> AsyncIterator[Array | Chunk]:
    for chunk in chunks:
        yield chunk
