"""The client: streams in a daemon, used as the streams of an engine are."""

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
from .protocol import Ticket
from .threads import SharedLink, When


class Client:
    """A connection to a daemon: ``with runnel.Client("ipc:///run/runnel.sock") as client: ...``.

    `timeout`: seconds that a call waits for replies in all, over lost connections too. `window`: chunks
    of one stream on their way at most (`RemoteStream.send`). `keys`: the file of this client's keys, which
    `runnel keys new NAME --server DAEMON.pub` made, for a daemon that has keys. Connects when first used;
    a daemon with several workers is one connection each, and a stream's name says which it lives at. A lost
    connection is made again, with back-off: streams are resumed, what was not answered is said again,
    and each chunk is applied once. Closing the client leaves its streams open in the daemon.

    Threads may share it, and even a stream of it: a stream's requests are then done in the order in
    which they were made. Errors that the daemon answers are raised as the classes that the engine
    raises. Raises UsageError for an address that is none, or once closed; TimeoutError when the daemon
    does not answer: whether the request was done is then not known (see `RemoteStream.feed`).
    """

    def __init__(
        self, address: str, timeout: float = 5.0, window: int = WINDOW, keys: str | Path | None = None
    ) -> None:
        self._keys = client_keys(keys) if keys is not None else None
        self.address = check_client(address, timeout, window, keyed=keys is not None)
        self.timeout = timeout
        self.window = window
        self._lock = threading.Lock()
        self._links: dict[str, SharedLink] = {}  # by address
        self._served: Served | None = None
        self._connection = 0  # of the home link, that it was asked over
        self._closed = False

    def describe(self) -> Served:
        """What the daemon serves; asked when first needed, and again after each new connection."""
        home = self._link(self.address)
        served = self._served
        if served is None or self._connection != home.link.connections:
            reply = home.ask(lambda talk: talk.ask("hello"), self.timeout).answer()
            served = Served.told(reply, self.address)
            home.link.allow(served.limits)
            self._served, self._connection = served, home.link.connections
        return served

    def open(self, id: str | None = None) -> RemoteStream:
        """A new stream in its initial state; without an id one is made.

        Raises StreamExistsError, LimitError when the daemon's streams are all taken, StreamError for an
        id that is none. After a TimeoutError the daemon may open it later: open it again.
        """
        name, served, link = self._place(id)
        epoch = random_epoch()
        return self._stream(link.ask(lambda talk: talk.open(name, epoch), self.timeout), link, served)

    def restore(self, blob: bytes, id: str | None = None) -> RemoteStream:
        """A new stream that goes on from where the snapshot was taken; its `seq` is the chunks since.

        Raises as `open` does; SnapshotError for a blob that is damaged, or of another pipeline;
        TooLargeError for one larger than a message may be.
        """
        name, served, link = self._place(id)
        epoch = random_epoch()
        ticket = link.ask(lambda talk: talk.restore(name, bytes(blob), epoch), self.timeout)
        return self._stream(ticket, link, served)

    def resume(self, id: str) -> RemoteStream:
        """Take over a stream that is open in the daemon, whoever holds it: after a restart of one's own, say.

        Who held it gets FencedError from then on. `seq` tells how far it is. Raises UnknownStreamError.
        """
        name, served, link = self._place(id)
        return self._stream(link.ask(lambda talk: talk.resume(name), self.timeout), link, served)

    def stats(self) -> list[dict[str, Any]]:
        """What each worker counts, in their order."""
        served = self.describe()
        return [
            self._link(address).ask(lambda talk: talk.ask("stats"), self.timeout).answer().stats or {}
            for address in served.addresses(self.address)
        ]

    def feed_many(self, pairs: Sequence[tuple[RemoteStream, Array | Chunk]]) -> list[Any]:
        """Feed several streams, many chunks on their way at a time: as `Engine.feed_many`.

        Returns what `RemoteStream.feed` returns for each, in the same order; in place of a failed
        chunk's output stands its error. A stream may occur more than once: its chunks are applied in
        order, and after one that failed those on their way fail too (GapError), so that none is skipped.
        Replies are waited for as long as they keep coming; after a TimeoutError all the rest have one.
        """
        flight = Flight(len(pairs))
        flying = flight.flying

        def land() -> None:
            _, stream, ticket, _ = flying[0]
            if not ticket.done:
                link = cast(RemoteStream, stream)._link
                with link.lock:  # those behind a silent one may be here already
                    link.settle(ticket, self.timeout, None if flight.quiet is None else 0.0)
            flight.land()

        for at, (stream, chunk) in enumerate(pairs):
            link = stream._link
            try:
                infos, buffers = stream._tensors(chunk)
                while flight.held_back(stream) or (flying and link.link.full):
                    land()
                if flight.quiet is not None:
                    raise flight.quiet
                with link.lock:
                    ticket = link.post(
                        stream._line, stream._window, "feed", infos, buffers, self.timeout, held=True
                    )
            except RunnelError as error:
                flight.results[at] = error
            else:
                flying.append((at, stream, ticket, isinstance(chunk, np.ndarray)))
        for link in {cast(RemoteStream, stream)._link for _, stream, _, _ in flying}:
            with link.lock:
                link.flush()
        while flying:
            land()
        return flight.results

    def close(self) -> None:
        """Disconnect. Closing twice is allowed."""
        with self._lock:
            self._closed = True
            links = list(self._links.values())
            self._links.clear()
        for link in links:
            link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.address}{', closed' if self._closed else ''}>"

    def _link(self, address: str) -> SharedLink:
        with self._lock:
            if self._closed:
                raise closed(self.address)
            link = self._links.get(address)
            if link is None:
                limit = int(self._served.limits["pending_per_peer"]) if self._served else 1
                link = self._links[address] = SharedLink(address, limit, self._keys)
                if self._served:
                    link.link.allow(self._served.limits)
            return link

    def _place(self, id: str | None) -> tuple[str, Served, SharedLink]:
        name = secrets.token_hex(8) if id is None else check_name(id)
        served = self.describe()
        return name, served, self._link(served.address_of(name) or self.address)

    def _stream(self, ticket: Ticket, link: SharedLink, served: Served) -> RemoteStream:
        ticket.answer()
        return RemoteStream(self, link, ticket, served)


class RemoteStream(Handle):
    """A stream in a daemon; made by `Client.open`, `restore` and `resume`.

    Two ways to use it. One chunk at a time: `feed` returns what it makes. Many on their way: `send` puts
    a chunk on its way, `receive` returns the oldest result, in order; `feed_all` does both.

    A chunk that failed was not applied. Those on their way behind it fail too (GapError), as does one
    that is made before they are all answered; then `seq` says where the stream stands, and the next
    chunk is applied behind that.
    """

    __slots__ = ("_client", "_link")

    def __init__(self, client: Client, link: SharedLink, ticket: Ticket, served: Served) -> None:
        assert ticket.line is not None
        super().__init__(ticket.line, served, client.window)
        self._client = client
        self._link = link

    def feed(self, chunk: Array | Chunk) -> Out:
        """Apply one chunk and return what it makes: as `Stream.feed`.

        What was sent before it is applied before it; those results are still to be received. Raises
        what `Stream.feed` raises; UnknownStreamError when the daemon has lost or closed the stream, so
        that it must be opened anew; FencedError when another has resumed it; LimitError, ShutdownError;
        AlreadyAppliedError when it was applied, but its reply was lost for longer than it is kept.

        After a TimeoutError the chunk may have been applied, or may be. Feed the same chunk again: it
        is applied once in any case. Another chunk in its place is ConflictError where the first was
        applied: its output is then lost, and the next chunk goes behind it. So where several were given up,
        feed all of them again before others.
        """
        infos, buffers = self._tensors(chunk)
        return outputs(self._call("feed", infos, buffers), isinstance(chunk, np.ndarray))

    def generate(self, steps: int) -> Out:
        """So many time steps without input: as `Stream.generate`, once in any case, as `feed`.

        After a TimeoutError the same number again is the same request. Raises TooLargeError for more steps
        than a reply can hold.
        """
        return outputs(self._call("feed", steps=self._steps(steps)), True)

    def send(self, chunk: Array | Chunk) -> None:
        """Put a chunk on its way; its result is to be received.

        Where `window` results are outstanding it waits until another thread receives one; raises
        LimitError where none does in time, TimeoutError where the daemon takes nothing. Nothing was
        sent then.
        """
        infos, buffers = self._tensors(chunk)
        link, waiting, timeout = self._link, self._waiting, self._client.timeout
        with link.lock:
            if len(waiting) >= self._window and not link.wait(
                When(lambda: len(waiting) < self._window), timeout
            ):
                raise full_window(self)
            ticket = link.post(self._line, self._window, "feed", infos, buffers, timeout)
            waiting.append((ticket, isinstance(chunk, np.ndarray)))

    def receive(self) -> Out:
        """The result of the oldest chunk that was sent; raises its error, as `feed` does.

        Raises StreamError where nothing is outstanding. After a TimeoutError the result still is: it
        was asked for again, so receive it later.
        """
        link, waiting, timeout = self._link, self._waiting, self._client.timeout
        deadline = time.monotonic() + timeout
        with link.lock:
            link.check()
            while True:
                if not waiting:
                    raise self._nothing_sent()
                ticket, bare = waiting[0]
                if ticket.done:  # and else it may be another thread that receives it
                    break
                if not link.wait(ticket, deadline - time.monotonic()):
                    link.link.talk.renew(self._line)
                    link.link.send()
                    raise silence(self._client.address, timeout)
            waiting.popleft()
            link.changed()
        return outputs(ticket, bare)

    def results(self) -> Iterator[Out]:
        """What is outstanding, in order; raises the error of a chunk that failed, as `receive` does."""
        while self._waiting:
            yield self.receive()

    def feed_all(self, chunks: Iterable[Array | Chunk]) -> Iterator[Out]:
        """Feed all chunks, as many on their way as the window allows; yields each one's output, in order.

        Raises a failed chunk's error. What was sent behind it, or before the caller left, stays
        outstanding: `receive` it.
        """
        for chunk in chunks:
            while len(self._waiting) >= self._window or self._ready():
                yield self.receive()
            self.send(chunk)
        yield from self.results()

    def flush(self) -> Out:
        """End the stream: return what is still inside (an array where there is one output)."""
        self._check_open()
        return outputs(self._call("flush"), True)

    def reset(self) -> None:
        """Back to the initial state: as a new stream, though its requests are counted on."""
        self._check_open()
        self._call("reset").answer()

    def snapshot(self) -> bytes:
        """The stream behind all that was fed or sent, as bytes for `Client.restore` or `Engine.restore`."""
        self._check_open()
        return snapshot_of(self._call("snapshot"))

    def close(self) -> None:
        """Give the stream's place back; results not received are dropped.

        Closing twice, or one that is lost or in other hands, is allowed.
        """
        if self._closed:
            return
        if self._line.lost is None:
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
    ) -> Ticket:
        """One request, settled."""
        link, timeout = self._link, self._client.timeout
        with link.lock:
            ticket = link.post(self._line, self._window, op, infos or [], buffers or [], timeout, steps=steps)
            link.settle(ticket, timeout)
        return ticket

    def _ready(self) -> bool:
        """Whether the oldest result is here."""
        with self._link.lock:
            self._link.glance()
            return bool(self._waiting) and self._waiting[0][0].done
