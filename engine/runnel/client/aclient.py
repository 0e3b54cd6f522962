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
from ..wire.attention import overslept
from ..wire.keys import Secret, client_keys
from .common import (
    HELD,
    WINDOW,
    Flight,
    Handle,
    Out,
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
from .protocol import Conversation, Line, Ticket

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
        self._links: dict[str, _LoopLink] = {}  # by address
        self._served: Served | None = None
        self._connection = 0  # connection number of the home link when `_served` was read
        self._closed = False

    async def describe(self) -> Served:
        """Describe what the daemon serves; asked at first use, and again after each new connection."""
        home = self._link(self.address)
        served = self._served
        if served is None or self._connection != home.link.connections:
            ticket = await home.ask(lambda talk: talk.ask("hello"), self.timeout)
            served = Served.told(ticket.answer(), self.address)
            home.link.allow(served.limits)
            self._served, self._connection = served, home.link.connections
        return served

    async def open(self, id: str | None = None) -> AsyncRemoteStream:
        """Open a new stream: as `Client.open`."""
        name, served, link = await self._place(id)
        epoch = random_epoch()
        return self._stream(await link.ask(lambda talk: talk.open(name, epoch), self.timeout), link, served)

    async def restore(self, blob: bytes, id: str | None = None) -> AsyncRemoteStream:
        """Open a new stream from a snapshot: as `Client.restore`."""
        name, served, link = await self._place(id)
        epoch = random_epoch()
        ticket = await link.ask(lambda talk: talk.restore(name, bytes(blob), epoch), self.timeout)
        return self._stream(ticket, link, served)

    async def resume(self, id: str) -> AsyncRemoteStream:
        """Take over a stream that is open in the daemon: as `Client.resume`."""
        name, served, link = await self._place(id)
        return self._stream(await link.ask(lambda talk: talk.resume(name), self.timeout), link, served)

    async def stats(self) -> list[dict[str, Any]]:
        """Each worker's counters, in the order of the workers."""
        served = await self.describe()
        tickets = [
            await self._link(address).ask(lambda talk: talk.ask("stats"), self.timeout)
            for address in served.addresses(self.address)
        ]
        return [ticket.answer().stats or {} for ticket in tickets]

    async def feed_many(self, pairs: Sequence[tuple[AsyncRemoteStream, Array | Chunk]]) -> list[Any]:
        """Feed several streams, with many chunks in flight: as `Client.feed_many`."""
        flight = Flight(len(pairs))
        flying = flight.flying

        async def land() -> None:
            _, stream, ticket, _ = flying[0]
            if not ticket.done:
                link = cast(AsyncRemoteStream, stream)._link
                await link.settle(ticket, self.timeout, None if flight.quiet is None else 0.0)
            flight.land()

        for at, (stream, chunk) in enumerate(pairs):
            link = stream._link
            try:
                infos, buffers = stream._tensors(chunk)
                while flight.held_back(stream) or (flying and link.link.full):
                    await land()
                if flight.quiet is not None:
                    raise flight.quiet
                ticket = await link.post(
                    stream._line, stream._window, "feed", infos, buffers, self.timeout, held=True
                )
            except RunnelError as error:
                flight.results[at] = error
            else:
                flying.append((at, stream, ticket, isinstance(chunk, np.ndarray)))
        while flying:
            await land()
        return flight.results

    async def close(self) -> None:
        """Disconnect; waiting tasks get UsageError. Closing twice is allowed."""
        self._closed = True
        for link in self._links.values():
            link.close()
        self._links.clear()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient of {self.address}{', closed' if self._closed else ''}>"

    def _link(self, address: str) -> _LoopLink:
        if self._closed:
            raise closed(self.address)
        link = self._links.get(address)
        if link is None:
            limit = int(self._served.limits["pending_per_peer"]) if self._served else 1
            link = self._links[address] = _LoopLink(address, limit, self._keys)
            if self._served:
                link.link.allow(self._served.limits)
        return link

    async def _place(self, id: str | None) -> tuple[str, Served, _LoopLink]:
        name = secrets.token_hex(8) if id is None else check_name(id)
        served = await self.describe()
        return name, served, self._link(served.address_of(name) or self.address)

    def _stream(self, ticket: Ticket, link: _LoopLink, served: Served) -> AsyncRemoteStream:
        ticket.answer()
        return AsyncRemoteStream(self, link, ticket, served)


class AsyncRemoteStream(Handle):
    """A stream in a daemon, made by `AsyncClient.open`, `restore` or `resume`: as `RemoteStream`."""

    __slots__ = ("_client", "_link")

    def __init__(self, client: AsyncClient, link: _LoopLink, ticket: Ticket, served: Served) -> None:
        assert ticket.line is not None
        super().__init__(ticket.line, served, client.window)
        self._client = client
        self._link = link

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
        link, waiting, timeout = self._link, self._waiting, self._client.timeout
        if len(waiting) >= self._window and not await link.until(
            lambda: len(waiting) < self._window, timeout
        ):
            raise full_window(self)
        ticket = await link.post(self._line, self._window, "feed", infos, buffers, timeout)
        waiting.append((ticket, isinstance(chunk, np.ndarray)))

    async def receive(self) -> Out:
        """Return the result of the oldest chunk that was sent: as `RemoteStream.receive`."""
        link, waiting, timeout = self._link, self._waiting, self._client.timeout
        deadline = link.loop.time() + timeout
        link.check()
        while True:
            if not waiting:
                raise self._nothing_sent()
            ticket, bare = waiting[0]
            if ticket.done:  # otherwise another task may receive it meanwhile
                break
            if not await link.wait(ticket, deadline - link.loop.time()):
                link.renew(self._line)
                raise silence(self._client.address, timeout)
        waiting.popleft()
        link.changed()
        return outputs(ticket, bare)

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
        if self._line.lost is None:
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
    ) -> Ticket:
        """Make one request and wait until it is settled."""
        timeout = self._client.timeout
        ticket = await self._link.post(
            self._line, self._window, op, infos or [], buffers or [], timeout, steps=steps
        )
        await self._link.settle(ticket, timeout)
        return ticket


class _LoopLink:
    """A connection in an event loop: its descriptors wake the loop, which reads for all tasks.

    Requests of one turn of the loop are sent together at its end. A request with no other in flight is sent
    at once.
    """

    def __init__(self, address: str, limit: int, keys: Secret | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.link = Connection(address, keys)
        self.link.limit = limit
        self._closed = False
        self._due = False  # a flush is scheduled for the end of this turn of the loop
        self._tickets: dict[Ticket, list[asyncio.Future[bool]]] = {}  # the waiting tasks of each request
        self._others: dict[asyncio.Future[bool], Callable[[], bool]] = {}
        for descriptor in self.link.descriptors:
            self.loop.add_reader(descriptor, self._woken)

    async def ask(self, make: Callable[[Conversation], Ticket], timeout: float) -> Ticket:
        """Make a request and wait until it is settled; give it up at the time-out."""
        self.check()
        ticket = make(self.link.talk)
        self._send()
        await self.settle(ticket, timeout)
        return ticket

    async def post(
        self,
        line: Line,
        window: int,
        op: messages.Op,
        infos: list[messages.TensorInfo],
        buffers: list[bytes],
        timeout: float,
        held: bool = False,
        steps: int = 0,
    ) -> Ticket:
        """Send a request once there is room for it; `held`: more follow. As `SharedLink.post`."""
        self.check()
        link = self.link
        if link.full or len(line.unanswered) >= window:
            roomy = await self.until(lambda: not link.full and len(line.unanswered) < window, timeout)
            if not roomy:
                raise silence(link.address, timeout)
        ticket = link.talk.post(line, op, infos, buffers, steps)
        alone = link.talk.in_flight == 1 and not held
        if alone or len(link.talk.outbox) >= HELD:
            self._send()
        elif not self._due:
            self._due = True
            self.loop.call_soon(self._flush)
        return ticket

    async def settle(self, ticket: Ticket, timeout: float, waited: float | None = None) -> None:
        """Wait until a request is settled, for `timeout` or `waited` seconds; then give it up."""
        if not await self.wait(ticket, timeout if waited is None else waited):
            self._tell(self.link.talk.give_up(ticket, silence(self.link.address, timeout)))

    async def wait(self, ticket: Ticket, timeout: float) -> bool:
        """Return whether the request is settled within `timeout` seconds."""
        if ticket.done:
            return True
        future: asyncio.Future[bool] = self.loop.create_future()
        futures = self._tickets.setdefault(ticket, [])
        futures.append(future)
        try:
            return await self._within(future, timeout) or ticket.done
        finally:
            if not ticket.done:  # else `_tell` has removed them
                futures.remove(future)
                if not futures:
                    del self._tickets[ticket]

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

    def renew(self, line: Line) -> None:
        """Repeat the unanswered requests of a stream."""
        self.link.talk.renew(line)
        self._send()

    def changed(self) -> None:
        """Wake the tasks whose condition now holds."""
        for future, holds in self._others.items():
            if not future.done() and holds():
                future.set_result(True)

    def check(self) -> None:
        """Raise UsageError if the client is closed, or belongs to another event loop."""
        if self._closed:
            raise closed(self.link.address)
        if asyncio.get_running_loop() is not self.loop:
            raise UsageError("an AsyncClient belongs to the event loop that used it first: make one for each")

    def close(self) -> None:
        """Disconnect. Waiting tasks get UsageError."""
        self._closed = True
        for descriptor in self.link.descriptors:
            self.loop.remove_reader(descriptor)
        self.link.close()
        for future in [*self._others, *(f for futures in self._tickets.values() for f in futures)]:
            if not future.done():
                future.set_exception(closed(self.link.address))

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
        if self.link.talk.outbox and not self._closed:
            self._send()

    def _send(self) -> None:
        self.link.send()
        if self.link.ready:  # sending may have consumed the descriptor's event
            self._woken()

    def _woken(self) -> None:
        self._tell(self.link.turn())
        while self.link.ready:
            self._tell(self.link.turn())

    def _tell(self, settled: Sequence[Ticket]) -> None:
        for ticket in settled:
            for future in self._tickets.pop(ticket, ()):
                if not future.done():
                    future.set_result(True)
        if settled and self._others:
            self.changed()


def _expire(loop: asyncio.AbstractEventLoop, future: asyncio.Future[bool], deadline: float) -> None:
    if future.done():
        return
    later = overslept(deadline, loop.time())
    if later > deadline:
        loop.call_at(later, _expire, loop, future, later)
    else:
        future.set_result(False)


async def _each(chunks: Iterable[Array | Chunk]) -> AsyncIterator[Array | Chunk]:
    for chunk in chunks:
        yield chunk
