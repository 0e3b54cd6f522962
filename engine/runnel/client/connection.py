"""One connection of a client: a DEALER and the client protocol. Never blocks; not thread-safe.

Theory: libzmq reconnects by itself, with back-off, and reports it through the socket's monitor. A message
sent over a new connection before the protocol knows of it follows requests that the old one lost, and may be
answered with errors (`GAP`) that must be ignored. So received messages are put aside until the monitor was
read: libzmq reports a connection before it delivers any message from it.

Both file descriptors are edge-triggered. An event is consumed by any call on the socket, even a `send`. So
call `turn` before waiting, and after each wake-up.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
from collections.abc import Mapping
from itertools import islice
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..errors import LimitError
from ..wire import messages
from ..wire.curve import connect_as
from ..wire.keys import Secret
from .common import random_epoch
from .protocol import ClientProtocol, PendingRequest

FILES: Final = 20  # descriptors of a process's first connection, with libzmq's threads (seen: 17)
QUEUED: Final = 1024  # messages in libzmq's queue, in either direction; the rest wait in the outbox
BUNDLE_BYTES: Final = 256 * 1024  # requests in one message: larger ones gain nothing
RECONNECT_MS: Final = 50  # before the first attempt; doubled at each ...
RECONNECT_MAX_MS: Final = 2000  # ... up to this: the longest delay until a restarted daemon is found
CONNECT_MS: Final = 5000  # instead of the system's 2 min for a host that does not answer
HEARTBEAT_MS: Final = 2000  # over tcp a peer can vanish silently: ping it this often,
HEARTBEAT_TIMEOUT_MS: Final = 6000  # and give it up after this long

_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)  # plain integers: an IntFlag is slow to combine
_LAST: Final = int(zmq.NOBLOCK)


class Connection:
    """The connection to one worker, from first use until `close`."""

    def __init__(self, address: str, keys: Secret | None = None) -> None:
        """Raises LimitError if the process has no descriptors left, and then leaves nothing open."""
        self.address = address
        self.protocol = ClientProtocol(secrets.token_hex(4), random_epoch)
        self.limit = 1  # requests in flight: the daemon's limit per client, once known
        self.limit_bytes: float = messages.MAX_MESSAGE_BYTES  # the last request in flight may exceed it
        self.generation = 0  # number of connections made so far
        self._up = False  # connected, as last reported by the monitor
        self._socket = opened(zmq.DEALER, address)
        try:
            self._connect(keys)
        except BaseException as error:
            self._socket.close(linger=0)
            if isinstance(error, zmq.ZMQError) and error.errno == errno.EMFILE:
                raise no_room(address) from None
            raise

    def _connect(self, keys: Secret | None) -> None:
        address = self.address
        _configure(self._socket, address)
        if keys is not None:
            connect_as(self._socket, keys)
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(events)
        self._drain_monitor()  # after that, each event makes its descriptor readable
        self.descriptors: tuple[int, int] = self._socket.FD, self._monitor.FD
        self._monitor_poll = select.poll()
        self._monitor_poll.register(self.descriptors[1], select.POLLIN)
        self._socket.connect(address)

    @property
    def full(self) -> bool:
        """Whether the daemon would refuse another request."""
        protocol = self.protocol
        return protocol.in_flight >= self.limit or protocol.in_flight_bytes >= self.limit_bytes

    def allow(self, limits: Mapping[str, float]) -> None:
        """Apply the daemon's limits for one client."""
        self.limit = int(limits["pending_per_peer"])
        self.limit_bytes = limits["pending_bytes"]

    @property
    def ready(self) -> bool:
        """Whether `turn` has something to do. Wait for the descriptors only after this was False."""
        events: int = self._socket.getsockopt(zmq.EVENTS)  # type: ignore[assignment]
        sending = self._up and self.protocol.outbox
        return bool(events & (zmq.POLLIN | zmq.POLLOUT if sending else zmq.POLLIN))

    def send(self) -> None:
        """Pass the outbox to libzmq, as far as it accepts it; do nothing without a connection.

        Without one, libzmq would queue everything, even requests that are given up. (Its option IMMEDIATE
        would prevent that, but ends the process if a connection breaks within a message: libzmq 4.3.5,
        `fq.cpp`.)
        """
        outbox = self.protocol.outbox
        if not self._up:
            return
        sent = 0
        try:
            # Bundle even one request: then replies may be bundled too, which is far cheaper for the daemon.
            for together, frames in messages.bundles(list(outbox.values()), BUNDLE_BYTES, always=True):
                self._hand_over(frames)
                sent += together
        except zmq.Again:  # the queue is full, since the daemon does not read
            for id in list(islice(outbox, sent)):
                del outbox[id]
        else:
            outbox.clear()

    def _hand_over(self, frames: list[bytes]) -> None:
        send = self._socket.send  # send_multipart checks each frame's type, which doubles the cost
        for frame in frames[:-1]:
            send(frame, _MORE)
        send(frames[-1], _LAST)

    def turn(self) -> list[PendingRequest]:
        """Read what has arrived, and send what follows from it. Return the settled requests."""
        protocol = self.protocol
        received: list[list[bytes]] = []
        try:
            for _ in range(protocol.in_flight or 1):  # no more than are expected: an empty read costs most
                received.append(self._socket.recv_multipart(zmq.NOBLOCK))  # noqa: PERF401
        except zmq.Again:
            pass
        again = False
        if self._monitor_poll.poll(0) and self._drain_monitor():
            self.generation += 1
            again = self.generation > 1
        settled: list[PendingRequest] = []
        for frames in received:
            settled += protocol.received(frames, again)
        if again:
            protocol.reconnected()
        if protocol.outbox:
            self.send()
        return settled

    def close(self) -> None:
        """Disconnect; unsent requests are dropped."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def _drain_monitor(self) -> bool:
        """Read the monitor's events; return whether a connection was made."""
        made = False
        try:
            while True:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
                self._up = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
                made = made or self._up
        except zmq.Again:
            return made


def opened(kind: int, address: str) -> zmq.Socket[bytes]:
    """Make a socket to connect to `address`. Raises LimitError if the process has too few descriptors.

    libzmq aborts the process if it reaches the limit when its threads start, and reports no later failure. So
    check the limit first.
    """
    held: list[int] = []
    try:
        held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        held.extend(os.dup(held[0]) for _ in range(FILES - 1))
    except OSError as error:
        raise no_room(address, error) from None
    finally:
        for descriptor in held:
            os.close(descriptor)
    try:
        return zmq.Context.instance().socket(kind)
    except zmq.ZMQError as error:
        raise no_room(address, error) from None


def no_room(address: str, error: OSError | zmq.ZMQError | None = None) -> LimitError:
    """The error of a process that can have no more descriptors or sockets."""
    why = (error.strerror if error is not None else "") or "Too many open files"
    return LimitError(
        f"no connection to {address} can be made: {why} in this process. Close clients that are not used any "
        "more, use one client for many streams, or raise the limit (ulimit -n)"
    )


def _configure(dealer: zmq.Socket[bytes], address: str) -> None:
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.SNDHWM, QUEUED)
    dealer.setsockopt(zmq.RCVHWM, QUEUED)
    dealer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    dealer.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    if address.startswith("tcp"):
        dealer.setsockopt(zmq.IPV6, int("[" in address))
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
        dealer.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
