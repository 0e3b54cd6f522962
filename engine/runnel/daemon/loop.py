"""The daemon: one thread, one loop around the sans-IO server.

Poll; take what has already arrived; run one batch of it; reply. Nothing waits for a batch to fill: the
busier the daemon is, the more has arrived, and the larger the batches get by themselves.
"""

from __future__ import annotations

import math
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final

import zmq

from ..errors import AccessError, LimitError, RunnelError
from ..wire import messages
from ..wire.address import parse
from ..wire.attention import Attention
from . import process
from .door import opened
from .guard import Guard
from .logs import Log
from .protocol.intake import MAX_PENDING_PER_PEER
from .protocol.outbox import Outbox
from .protocol.replies import Outgoing
from .protocol.server import Server
from .protocol.stats import Stats
from .sender import Sender
from .supervision.lifecycle import Keeper

if TYPE_CHECKING:
    from ..engine import Engine

MAX_TAKEN: Final = 4096  # messages a turn: so many arrivals never keep those before them from running
MAX_TOLD: Final = 256 * 1024  # bytes a turn answered at once, some 10 ms of work: a bundle asks 256 questions
QUEUED_REQUESTS: Final = MAX_PENDING_PER_PEER  # a peer's, in libzmq, before its writes block
HANDSHAKE_MS: Final = 2000  # a peer that connects and says nothing holds a descriptor no longer
LINGER_MS: Final = 2000  # for replies on their way when the daemon stops
SETTLE_SECONDS: Final = 0.05  # after being told to stop: for libzmq to read what the kernel holds
FINISH_SECONDS: Final = 10.0  # for what had arrived when it was told to stop
MAX_PATIENCE_MS: Final = 3_600_000  # of a poll: zmq counts milliseconds in 32 bits

SHARED_FRAME: Final = 256 * 1024  # bytes: from here on a frame is not copied out of libzmq's memory
LEAST_TAKEN: Final = 256  # messages a turn, however long it takes: together they are a batch, and cheap
TAKE_SECONDS: Final = 0.002  # a turn spends on taking any beyond them, beside what it spends on running
STALL_SECONDS: Final = 0.002  # until it is looked again whether a client has read what it must read first

_NOW: Final = int(zmq.NOBLOCK)  # a plain integer: an IntFlag costs more

log = Log("runnel.serve")


class Daemon:
    """Serves an engine's streams at an address: ``ipc:///path`` or ``tcp://host:port``.

    The thread that calls `serve` owns the socket and the engine until it returns; only `stop` and `reload`
    may be called from others. A port ``*`` is chosen by the system: `address` names it once `started` is
    set. `idle_seconds`: a stream without a request for longer is closed; 0: never. `keeper`: who looks
    after the daemon. `guard`: who lets in none but its users; without it, whoever reaches the address is
    let in, and that is one on this machine. `user_streams`: how many streams each user of the guard can count
    on; 0: a share. Raises UsageError for an address that cannot be served.
    """

    def __init__(
        self,
        engine: Engine,
        address: str,
        *,
        idle_seconds: float = 0.0,
        keeper: Keeper | None = None,
        guard: Guard | None = None,
        user_streams: int = 0,
    ) -> None:
        self._bound = parse(address, keyed=guard is not None)
        self._guard = guard
        self.address = self._bound.text
        self.started = threading.Event()
        self._engine = engine
        self._idle_seconds = idle_seconds
        self._user_streams = user_streams
        self._keeper = keeper or Keeper()
        self._next_beat = 0.0
        self._told, self._teller = socket.socketpair()
        self._told.setblocking(False)
        self._teller.setblocking(False)
        self._stops = 0
        self._about = {
            "inputs": engine.pipeline.inputs,
            "outputs": engine.pipeline.outputs,
            "max_streams": engine.max_streams,
        }

    @property
    def stats(self) -> Stats:
        """What is counted, once `started` is set."""
        return self._server.stats

    def stop(self) -> None:
        """Ask to stop: what has arrived is answered first. Asked twice, it is not. From any thread."""
        self._tell(signal.SIGTERM)

    def reload(self) -> None:
        """Ask to read the settings again. From any thread."""
        self._tell(signal.SIGHUP)

    def _tell(self, number: int) -> None:
        with suppress(OSError):  # full of such requests, or already stopped
            self._teller.send(bytes([number]))

    def serve(self, signals: Sequence[int] = ()) -> bool:
        """Serve until told to stop. Returns whether all that had arrived was answered.

        `signals`: those to heed; SIGHUP reloads, as `reload` does, any other stops, as `stop` does. Only
        the main thread may name any. Raises UsageError where the address cannot be bound, PipelineError
        for a pipeline that cannot be served. The socket file is removed on the way out.
        """
        with (
            self._told,
            self._teller,
            heard(signals, self._teller),
            zmq.Context() as context,
            context.socket(zmq.ROUTER) as router,
        ):
            _configure(router)
            sender = Sender(router)  # its bound on a peer's queue holds for what is bound after it
            guarded = self._guard.at(context, router) if self._guard is not None else nullcontext()
            with guarded, opened(router, self._bound) as self._door:
                self.address = self._door.address
                place = self._keeper.meet(self.address)
                # Another start, other epochs: one that a client remembers from before is nobody's.
                first_epoch = secrets.randbits(30) << 32
                self._server = Server(
                    self._engine,
                    secrets.token_hex(8),
                    first_epoch,
                    self._idle_seconds,
                    place,
                    self._user_streams,
                    time.monotonic,
                )
                if self._guard is not None:
                    self._server.expect(self._guard.users)
                self._server.gauges = process.gauges
                self._outbox = Outbox(sender, self._server.stats, sender.held)
                self._server.heed(self._outbox.unread)
                self._attention = Attention(time.monotonic(), time.thread_time())
                log.info("serving", address=self.address, **self._about)
                self.started.set()
                self._keeper.ready(self.address)
                self._loop(router)
                answered = self._finish(router)
                # In this order: replies leave before the socket file does, and before the context ends.
                if self._guard is not None:
                    self._guard.close()
                self._door.detach()
                router.close(linger=LINGER_MS if answered else 0)
                context.term()
        log.info("stopped", **self.stats.summary())
        return answered

    def _loop(self, router: zmq.Socket[bytes]) -> None:
        """Until told to stop."""
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._told, zmq.POLLIN)
        poller.register(self._door.descriptor, zmq.POLLIN)
        if self._guard is not None:
            poller.register(self._guard.socket, zmq.POLLIN)
        while not self._stops:
            woken = poller.poll(self._patience())
            self._look()
            self._turn(router, any(source is not router for source, _ in woken))

    def _patience(self) -> int | None:
        """Milliseconds until something is to be done though nothing arrives; None for ever."""
        now = time.monotonic()
        if self._server.pending and not self._server.stalled:
            self._attention.until(now, now)
            return 0
        known = self._server.due, self._outbox.due, self._door.due
        dues = [due for due in known if due is not None]
        if self._keeper.beat_seconds:
            dues.append(self._next_beat)
        if self._server.pending:
            dues.append(now + STALL_SECONDS)
        until = self._attention.until(min(dues, default=None), now)
        return None if until is None else min(MAX_PATIENCE_MS, math.ceil((until - now) * 1000))

    def _look(self) -> float:
        """Put off all deadlines if the process was paused: then nobody was silent. Returns the time."""
        now = time.monotonic()
        paused = self._attention.look(now, time.thread_time())
        if paused:
            self._server.postpone(paused)
            self._outbox.postpone(paused)
        return now

    def _finish(self, router: zmq.Socket[bytes]) -> bool:
        """Answer what had arrived; refuse what arrives after it. False if forced, or out of time."""
        log.info("stopping", pending=self._server.pending)
        self._keeper.stopping()
        began = time.monotonic()
        while self._stops < 2 and (left := began + SETTLE_SECONDS - time.monotonic()) > 0:
            router.poll(0 if self._server.pending else int(left * 1000) + 1)
            self._turn(router)
        self._server.stop()
        while self._server.pending and self._stops < 2 and time.monotonic() < began + FINISH_SECONDS:
            self._turn(router)
        ended = time.monotonic()
        while self._outbox.waiting and self._stops < 2 and time.monotonic() < ended + LINGER_MS / 1000:
            router.poll(self._patience())  # for peers that read slowly
            self._turn(router)
        return not self._server.pending

    def _turn(self, router: zmq.Socket[bytes], told: bool = True) -> None:
        """Take what has arrived, do what time asks for, run one batch, reply.

        `told`: something besides requests may have arrived.
        """
        server, outbox = self._server, self._outbox
        if told:
            self._listen()
            if self._guard is not None:
                self._guard.answer()
        self._take(router)
        now = time.monotonic()
        if told or ((due := self._door.due) is not None and due <= now):
            self._door.turn(now)
        # Before the batch, which may take long: a stream whose request arrived is not idle. Where the server
        # has its fill, such requests may wait in the socket.
        if not server.full and _due(server.due, now):
            now = self._look()  # a pause since the poll is nobody's silence either
            if _due(server.due, now):
                self._send(server.tick(now), now)
        if server.pending:
            self._send(server.run(now), now)
            now = time.monotonic()
            server.done(now)
        if _due(outbox.due, now):
            now = self._look()
            outbox.retry(now)
        if self._keeper.beat_seconds and self._next_beat <= now:
            self._keeper.beat()
            self._next_beat = now + self._keeper.beat_seconds

    def _listen(self) -> None:
        """Count the requests to stop, and heed those to reload."""
        try:
            told = self._told.recv(64)
        except BlockingIOError:
            return
        reloads = told.count(signal.SIGHUP)
        self._stops += len(told) - reloads
        if reloads and not self._stops and self._keeper.reload(self._server) and self._guard is not None:
            self._guard.reload()
            self._server.expect(self._guard.users)

    def _take(self, router: zmq.Socket[bytes]) -> None:
        """Hand the server what has arrived, unless it has its fill: then the peers' writes will block."""
        server, outbox, guard, clock = self._server, self._outbox, self._guard, time.monotonic
        user = ""
        told = 0  # bytes
        until = clock() + TAKE_SECONDS
        now = 0.0
        for taken in range(MAX_TAKEN):
            if server.full or told > MAX_TOLD or (taken >= LEAST_TAKEN and now > until):
                return
            message = _receive(router)
            if message is None:
                return
            peer, frames, first = message
            now = clock()
            if guard is not None:
                try:
                    user = guard.user(peer, first)
                except AccessError as error:
                    told += self._refuse(peer, frames, error, now)
                    continue
            if why := outbox.refuses(peer):
                told += self._refuse(peer, frames, LimitError(why), now)
                continue
            for reply in server.receive(peer, frames, now, user):
                outbox.post(*reply, now)
                told += sum(map(len, reply.frames))

    def _refuse(self, peer: bytes, frames: Sequence[bytes], error: RunnelError, now: float) -> int:
        """Answer a message with an error; the answer's bytes."""
        reply = self._server.refuse(peer, frames, error)
        self._outbox.refuse(*reply, now)
        return sum(map(len, reply.frames))

    def _send(self, replies: Iterable[Outgoing], now: float) -> None:
        post = self._outbox.post
        for peer, frames in replies:
            post(peer, frames, now)


def _due(deadline: float | None, now: float) -> bool:
    return deadline is not None and deadline <= now


@contextmanager
def heard(signals: Sequence[int], teller: socket.socket) -> Iterator[None]:
    """Within it each of the signals is a byte on `teller`, its number, written in C.

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
    # Of a frame; a larger one ends its connection.
    router.setsockopt(zmq.MAXMSGSIZE, messages.MAX_TENSOR_BYTES)
    router.setsockopt(zmq.RCVHWM, QUEUED_REQUESTS)
    router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    router.setsockopt(zmq.LINGER, 0)


def _receive(router: zmq.Socket[bytes]) -> tuple[bytes, list[bytes], zmq.Frame] | None:
    """The next message that has arrived: its peer, its frames, one too many at most, and the first of them.

    What no message can hold is read, and not kept. libzmq hands a message over when its last frame
    has come: what a peer sends before that it keeps itself, and only a limit on the process bounds it.
    Where there is no memory for a frame, the message is read to its end and lacks that frame.
    """
    recv = router.recv
    try:
        peer = recv(_NOW)
    except zmq.Again:
        return None
    # A frame that is not copied knows whether more follow: to ask the socket costs more than the frame.
    frame = first = recv(copy=False)
    frames = [frame.bytes]
    kept = len(frames[0])
    while frame.more:
        frame = recv(copy=False)
        if len(frames) <= 1 + messages.MAX_TENSORS and kept <= messages.MAX_MESSAGE_BYTES:
            size = len(frame)
            with suppress(MemoryError):
                frames.append(frame.bytes if size < SHARED_FRAME else _shared(frame))
            kept += size
    return peer, frames, first


def _shared(frame: zmq.Frame) -> bytes:
    """The frame's bytes where they lie: a copy of megabytes would take milliseconds of everybody's turn."""
    view: Any = frame.buffer.toreadonly()  # it keeps the frame alive
    return view  # type: ignore[no-any-return]  # used as bytes are: its length, slices, as a buffer
