"""The daemon: one thread, one loop around the sans-IO server.

Poll; take what has already arrived; run one batch of it; reply. No request waits for a batch to fill. The
busier the daemon is, the more has arrived, and the larger the batches become.
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
from ..wire.pauses import PauseDetector
from . import process
from .authenticator import Authenticator
from .door import opened
from .logs import Log
from .protocol.intake import MAX_PENDING_PER_PEER
from .protocol.outbox import Outbox
from .protocol.outgoing import Outgoing
from .protocol.server import ServerProtocol
from .protocol.stats import Stats
from .sender import Sender
from .supervision.lifecycle import LifecycleHooks

if TYPE_CHECKING:
    from ..engine import Engine

MAX_TAKEN: Final = 4096  # messages a turn: more arrivals must not delay those before them
MAX_ANSWERED: Final = 256 * 1024  # bytes of immediate answers a turn, some 10 ms: one bundle may ask 256
QUEUED_REQUESTS: Final = MAX_PENDING_PER_PEER  # of one peer, in libzmq, before the peer's writes block
HANDSHAKE_MS: Final = 2000  # a silent new connection holds a descriptor no longer than this
LINGER_MS: Final = 2000  # for replies in flight when the daemon stops
SETTLE_SECONDS: Final = 0.05  # after a stop request: for libzmq to read what the kernel holds
FINISH_SECONDS: Final = 10.0  # to answer what had arrived before the stop request
MAX_PATIENCE_MS: Final = 3_600_000  # of a poll: zmq counts milliseconds in 32 bits

SHARED_FRAME: Final = 256 * 1024  # bytes: larger frames are not copied out of libzmq's memory
LEAST_TAKEN: Final = 256  # messages a turn, however long it takes: as one batch they are cheap
TAKE_SECONDS: Final = 0.002  # a turn's time for taking further messages, beside its time for running them
STALL_SECONDS: Final = 0.002  # before checking again whether a client has read its replies

_NOW: Final = int(zmq.NOBLOCK)  # a plain integer: an IntFlag costs more

log = Log("runnel.serve")


class Daemon:
    """Serves an engine's streams at an address: ``ipc:///path`` or ``tcp://host:port``.

    The thread that calls `serve` owns the socket and the engine until it returns. Other threads may call only
    `stop` and `reload`. For port ``*`` the system chooses one: `address` has it once `started` is set.
    `idle_seconds`: a stream without a request for longer is closed; 0: never. `hooks`: called when the
    daemon's state changes. `authenticator`: admits only its users; without one, every client that reaches
    the address is admitted, and the address must be local to this machine. `user_streams`: streams that each
    user can count on; 0: a share. Raises UsageError for an address that cannot be served.
    """

    def __init__(
        self,
        engine: Engine,
        address: str,
        *,
        idle_seconds: float = 0.0,
        hooks: LifecycleHooks | None = None,
        authenticator: Authenticator | None = None,
        user_streams: int = 0,
    ) -> None:
        self._bound = parse(address, keyed=authenticator is not None)
        self._authenticator = authenticator
        self.address = self._bound.text
        self.started = threading.Event()
        self._engine = engine
        self._idle_seconds = idle_seconds
        self._user_streams = user_streams
        self._hooks = hooks or LifecycleHooks()
        self._next_beat = 0.0
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self._stops = 0
        self._about = {
            "inputs": engine.pipeline.inputs,
            "outputs": engine.pipeline.outputs,
            "max_streams": engine.max_streams,
        }

    @property
    def stats(self) -> Stats:
        """Counters of the server; available once `started` is set."""
        return self._server.stats

    def stop(self) -> None:
        """Stop after answering what has arrived; a second call stops at once. Any thread may call this."""
        self._wake(signal.SIGTERM)

    def reload(self) -> None:
        """Read the settings again. Any thread may call this."""
        self._wake(signal.SIGHUP)

    def _wake(self, number: int) -> None:
        with suppress(OSError):  # full of earlier requests, or already stopped
            self._waker.send(bytes([number]))

    def serve(self, signals: Sequence[int] = ()) -> bool:
        """Serve until stopped. Return whether everything that had arrived was answered.

        `signals` to handle: SIGHUP reloads, as `reload` does; any other stops, as `stop` does. Only the main
        thread may name any. Raises UsageError if the address cannot be bound, PipelineError for a pipeline
        that cannot be served. The socket file is removed on the way out.
        """
        with (
            self._wakeup,
            self._waker,
            signals_to(signals, self._waker),
            zmq.Context() as context,
            context.socket(zmq.ROUTER) as router,
        ):
            _configure(router)
            sender = Sender(router)  # before binding: its queue bound applies only to later binds
            authenticator = self._authenticator
            guarded = authenticator.at(context, router) if authenticator is not None else nullcontext()
            with guarded, opened(router, self._bound) as self._door:
                self.address = self._door.address
                placement = self._hooks.bound_to(self.address)
                # Epochs start at a random number, so that none from before a restart can match.
                first_epoch = secrets.randbits(30) << 32
                self._server = ServerProtocol(
                    self._engine,
                    secrets.token_hex(8),
                    first_epoch,
                    self._idle_seconds,
                    placement,
                    self._user_streams,
                    time.monotonic,
                )
                if authenticator is not None:
                    self._server.expect_users(authenticator.users)
                self._server.gauges = process.gauges
                self._outbox = Outbox(sender, self._server.stats, sender.held)
                self._server.set_unread(self._outbox.unread)
                self._pauses = PauseDetector(time.monotonic(), time.thread_time())
                log.info("serving", address=self.address, **self._about)
                self.started.set()
                self._hooks.ready(self.address)
                self._loop(router)
                answered = self._finish(router)
                # In this order: replies leave before the socket file is removed and the context ends.
                if authenticator is not None:
                    authenticator.close()
                self._door.detach()
                router.close(linger=LINGER_MS if answered else 0)
                context.term()
        log.info("stopped", **self.stats.summary())
        return answered

    def _loop(self, router: zmq.Socket[bytes]) -> None:
        """Run turns until stopped."""
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._wakeup, zmq.POLLIN)
        poller.register(self._door.descriptor, zmq.POLLIN)
        if self._authenticator is not None:
            poller.register(self._authenticator.socket, zmq.POLLIN)
        while not self._stops:
            woken = poller.poll(self._patience())
            self._check_pause()
            self._turn(router, any(source is not router for source, _ in woken))

    def _patience(self) -> int | None:
        """Milliseconds until the next deadline; None if there is none."""
        now = time.monotonic()
        if self._server.pending and not self._server.stalled:
            self._pauses.wake_at(now, now)
            return 0
        known = self._server.due, self._outbox.due, self._door.due
        dues = [due for due in known if due is not None]
        if self._hooks.beat_seconds:
            dues.append(self._next_beat)
        if self._server.pending:
            dues.append(now + STALL_SECONDS)
        until = self._pauses.wake_at(min(dues, default=None), now)
        return None if until is None else min(MAX_PATIENCE_MS, math.ceil((until - now) * 1000))

    def _check_pause(self) -> float:
        """Extend all deadlines if the process was paused: no peer was silent then. Return the time."""
        now = time.monotonic()
        paused = self._pauses.paused_for(now, time.thread_time())
        if paused:
            self._server.postpone(paused)
            self._outbox.postpone(paused)
        return now

    def _finish(self, router: zmq.Socket[bytes]) -> bool:
        """Answer what had arrived, and refuse later requests. Return False if cut short."""
        log.info("stopping", pending=self._server.pending)
        self._hooks.stopping()
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

    def _turn(self, router: zmq.Socket[bytes], woken: bool = True) -> None:
        """Take what has arrived, do what is due, run one batch, reply.

        `woken`: something other than requests may have arrived.
        """
        server, outbox = self._server, self._outbox
        if woken:
            self._listen()
            if self._authenticator is not None:
                self._authenticator.answer()
        self._take(router)
        now = time.monotonic()
        if woken or ((due := self._door.due) is not None and due <= now):
            self._door.turn(now)
        # Before the batch, which may take long: a stream whose request arrived is not idle. If the server is
        # full, such requests may still wait in the socket.
        if not server.full and _due(server.due, now):
            now = self._check_pause()  # a pause since the poll is no peer's silence either
            if _due(server.due, now):
                self._send(server.tick(now), now)
        if server.pending:
            self._send(server.run(now), now)
            now = time.monotonic()
            server.done(now)
        if _due(outbox.due, now):
            now = self._check_pause()
            outbox.retry(now)
        if self._hooks.beat_seconds and self._next_beat <= now:
            self._hooks.beat()
            self._next_beat = now + self._hooks.beat_seconds

    def _listen(self) -> None:
        """Count the requests to stop, and do those to reload."""
        try:
            numbers = self._wakeup.recv(64)
        except BlockingIOError:
            return
        reloads = numbers.count(signal.SIGHUP)
        self._stops += len(numbers) - reloads
        if reloads and not self._stops and self._hooks.reload(self._server):
            if self._authenticator is None:
                return
            self._authenticator.reload()
            self._server.expect_users(self._authenticator.users)

    def _take(self, router: zmq.Socket[bytes]) -> None:
        """Pass arrived messages to the server until it is full. Then the peers' writes will block."""
        server, outbox, authenticator, clock = self._server, self._outbox, self._authenticator, time.monotonic
        user = ""
        answered = 0  # bytes
        until = clock() + TAKE_SECONDS
        now = 0.0
        for taken in range(MAX_TAKEN):
            if server.full or answered > MAX_ANSWERED or (taken >= LEAST_TAKEN and now > until):
                return
            message = _receive(router)
            if message is None:
                return
            peer, frames, first = message
            now = clock()
            if authenticator is not None:
                try:
                    user = authenticator.user(peer, first)
                except AccessError as error:
                    answered += self._refuse(peer, frames, error, now)
                    continue
            if why := outbox.refuses(peer):
                answered += self._refuse(peer, frames, LimitError(why), now)
                continue
            for reply in server.receive(peer, frames, now, user):
                outbox.post(*reply, now)
                answered += sum(map(len, reply.frames))

    def _refuse(self, peer: bytes, frames: Sequence[bytes], error: RunnelError, now: float) -> int:
        """Answer a message with an error; return the answer's size in bytes."""
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
def signals_to(signals: Sequence[int], waker: socket.socket) -> Iterator[None]:
    """Let each of the signals write its number as a byte to `waker`, in C.

    A Python handler would run only after the poll returns, if the signal arrives just before the poll.
    """
    if not signals:
        yield
        return
    handlers = [(number, signal.signal(number, lambda *_: None)) for number in signals]
    before = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers:
            signal.signal(number, handler)


def _configure(router: zmq.Socket[bytes]) -> None:
    # Of one frame; a larger one closes its connection.
    router.setsockopt(zmq.MAXMSGSIZE, messages.MAX_TENSOR_BYTES)
    router.setsockopt(zmq.RCVHWM, QUEUED_REQUESTS)
    router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    router.setsockopt(zmq.LINGER, 0)


def _receive(router: zmq.Socket[bytes]) -> tuple[bytes, list[bytes], zmq.Frame] | None:
    """Receive the next message that has arrived: its peer, its frames, and the first frame.

    If a message is too large, the excess is read and discarded; at most one frame too many is returned.
    libzmq hands a message over only when its last frame has arrived. It holds the earlier frames itself,
    bounded only by a limit on the process. If memory for a frame is missing, the message lacks that frame.
    """
    recv = router.recv
    try:
        peer = recv(_NOW)
    except zmq.Again:
        return None
    # A frame that is not copied knows whether more follow; asking the socket costs more than a copy.
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
    """The frame's bytes without a copy, which would delay all clients by milliseconds for megabytes."""
    view: Any = frame.buffer.toreadonly()  # keeps the frame alive
    return view  # type: ignore[no-any-return]  # has what is used of bytes: length, slices, the buffer
