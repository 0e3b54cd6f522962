"""The daemon: one thread, one loop around the sans-IO server.

Poll; take what has already arrived; run one batch of it; reply. Nothing waits for a batch to fill: the
busier the daemon is, the more has arrived, and the larger the batches get by themselves.
"""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import zmq

from ..errors import UsageError
from . import process, socketfile, wire
from .address import Address, parse
from .protocol import MAX_PENDING_PER_PEER, Outgoing, Server
from .stats import Stats

if TYPE_CHECKING:
    from ..engine import Engine

MAX_TAKEN: Final = 4096  # messages a turn: so many arrivals never keep those before them from running
QUEUED_REQUESTS: Final = MAX_PENDING_PER_PEER  # a peer's, in libzmq, before its writes block
QUEUED_REPLIES: Final = 2 * MAX_PENDING_PER_PEER  # a peer's: more than it may have requests
HANDSHAKE_MS: Final = 2000  # a peer that connects and says nothing holds a descriptor no longer
LINGER_MS: Final = 2000  # for replies on their way when the daemon stops
SETTLE_SECONDS: Final = 0.05  # after being told to stop: for libzmq to read what the kernel holds
FINISH_SECONDS: Final = 10.0  # for what had arrived when it was told to stop

log = logging.getLogger("runnel.serve")


class Daemon:
    """Serves an engine's streams at an address: ``ipc:///path`` or ``tcp://127.0.0.1:port``.

    The thread that calls `serve` owns the socket and the engine until it returns; only `stop` may be
    called from others. A port ``*`` is chosen by the system: `address` names it once `started` is set.
    Raises UsageError for an address that cannot be served, PipelineError for a pipeline that cannot.
    """

    def __init__(self, engine: Engine, address: str) -> None:
        self._bound = parse(address)
        self.address = self._bound.text
        self.started = threading.Event()
        self._server = Server(engine, secrets.token_hex(8), secrets.randbits(30) << 32)
        self._server.gauges = process.gauges
        self._told, self._teller = socket.socketpair()
        self._told.setblocking(False)
        self._teller.setblocking(False)
        self._stops = 0
        self._about = (
            f"{engine.pipeline.inputs} -> {engine.pipeline.outputs}, up to {engine.max_streams} streams"
        )

    @property
    def stats(self) -> Stats:
        return self._server.stats

    def stop(self) -> None:
        """Ask to stop: what has arrived is answered first. Asked twice, it is not. From any thread."""
        with suppress(OSError):  # full of such requests, or already stopped
            self._teller.send(b"\0")

    def serve(self, signals: Sequence[int] = ()) -> bool:
        """Serve until told to stop. Returns whether all that had arrived was answered.

        `signals`: those that ask to stop, as `stop` does; only the main thread may name any. Raises
        UsageError where the address cannot be bound. The socket file is removed on the way out.
        """
        with (
            self._told,
            self._teller,
            _heard(signals, self._teller),
            zmq.Context() as context,
            context.socket(zmq.ROUTER) as router,
        ):
            _configure(router)
            with _bind(router, self._bound) as self.address:
                log.info("serving on %s: %s", self.address, self._about)
                self.started.set()
                self._loop(router)
                answered = self._finish(router)
                # In this order: replies leave before the socket file does, and before the context ends.
                router.close(linger=LINGER_MS if answered else 0)
                context.term()
        log.info("stopped: %s, %d replies dropped", self.stats, self.stats.dropped_replies)
        return answered

    def _loop(self, router: zmq.Socket[bytes]) -> None:
        """Until told to stop."""
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._told, zmq.POLLIN)
        while not self._stops:
            poller.poll(0 if self._server.pending else None)
            self._turn(router)

    def _finish(self, router: zmq.Socket[bytes]) -> bool:
        """Answer what had arrived; refuse what arrives after it. False if forced, or out of time."""
        log.info("stopping: %d requests wait", self._server.pending)
        began = time.monotonic()
        while self._stops < 2 and (left := began + SETTLE_SECONDS - time.monotonic()) > 0:
            router.poll(0 if self._server.pending else int(left * 1000) + 1)
            self._turn(router)
        self._server.stop()
        while self._server.pending and self._stops < 2 and time.monotonic() < began + FINISH_SECONDS:
            self._turn(router)
        return not self._server.pending

    def _turn(self, router: zmq.Socket[bytes]) -> None:
        """Take what has arrived, run one batch of it, reply."""
        self._listen()
        self._take(router)
        self._send(router, self._server.run(time.monotonic()))

    def _listen(self) -> None:
        """Count the requests to stop."""
        with suppress(BlockingIOError):
            self._stops += len(self._told.recv(64))

    def _take(self, router: zmq.Socket[bytes]) -> None:
        """Hand the server what has arrived, unless it has its fill: then the peers' writes will block."""
        for _ in range(MAX_TAKEN):
            message = None if self._server.full else _receive(router)
            if message is None:
                return
            peer, frames = message
            self._send(router, self._server.receive(peer, frames, time.monotonic()))

    def _send(self, router: zmq.Socket[bytes], outgoing: Iterable[Outgoing]) -> None:
        for reply in outgoing:
            try:
                router.send_multipart([reply.peer, *reply.frames], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                    raise
                self.stats.dropped_replies += 1


@contextmanager
def _heard(signals: Sequence[int], teller: socket.socket) -> Iterator[None]:
    """Within it each of the signals is a byte on `teller`, written in C.

    A handler in Python would wait for the poll to return when the signal comes just before it.
    """
    if not signals:
        yield
        return
    handlers = [(number, signal.signal(number, lambda *_: None)) for number in signals]
    before = signal.set_wakeup_fd(teller.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers:
            signal.signal(number, handler)


def _configure(router: zmq.Socket[bytes]) -> None:
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # else what cannot be sent vanishes without a word
    router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_TENSOR_BYTES)  # a frame's; a larger one ends its connection
    router.setsockopt(zmq.RCVHWM, QUEUED_REQUESTS)
    router.setsockopt(zmq.SNDHWM, QUEUED_REPLIES)
    router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    router.setsockopt(zmq.LINGER, 0)


@contextmanager
def _bind(router: zmq.Socket[bytes], address: Address) -> Iterator[str]:
    """The address as bound; its socket file is removed afterwards."""
    try:
        if address.path is None:
            router.setsockopt(zmq.IPV6, int("[" in address.text))
            router.bind(address.text)
            yield router.getsockopt(zmq.LAST_ENDPOINT).decode()  # type: ignore[union-attr]
            return
        with socketfile.claim(address.path):
            router.bind(address.text)
            ours = socketfile.identity(address.path)
    except zmq.ZMQError as error:
        raise UsageError(f"cannot bind {address}: {error.strerror}") from None
    try:
        yield address.text
    finally:
        socketfile.remove(address.path, ours)


def _receive(router: zmq.Socket[bytes]) -> tuple[bytes, list[bytes]] | None:
    """The next message that has arrived: its peer and its frames, one too many of them at most.

    What no message can hold is read, and not kept. libzmq hands a message over when its last frame
    has come: what a peer sends before that it keeps itself, and only a limit on the process bounds it.
    """
    try:
        peer = router.recv(zmq.NOBLOCK)
    except zmq.Again:
        return None
    frames: list[bytes] = []
    kept = 0
    while router.getsockopt(zmq.RCVMORE):
        frame = router.recv()
        if len(frames) <= 1 + wire.MAX_TENSORS and kept <= wire.MAX_MESSAGE_BYTES:
            frames.append(frame)
            kept += len(frame)
    return peer, frames
