"""The daemon's door: new clients are let in while there are file descriptors for them.

libzmq 4.3 aborts the process if `accept` meets the limit of open files on an ipc socket, and burns a core on
tcp. Its `unbind` cuts off everybody who came through that socket. So:

On ipc libzmq never accepts from the socket that new clients reach. When somebody waits there and there is
room, another socket takes its name, and libzmq gets the first one. That one can hold no more than its
backlog, so libzmq accepts a bounded number of connections, however fast they come. While there is no room,
clients wait in the kernel, and cost nothing. A socket that libzmq has is taken back once all who came
through it are gone.

On tcp libzmq accepts by itself, and survives the limit. A connection past the bound is closed at once; the
client tries again, with back-off.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import zmq

from ..errors import UsageError
from ..wire.address import Address
from . import process, socketfile
from .logs import Log

MAX_BACKLOG: Final = 128  # connections that wait in the kernel for an ipc socket
MAX_RESERVED: Final = 64  # descriptors for the daemon's own files, and for its HTTP pages
SLACK: Final = 8  # descriptors: the sockets themselves, and who had looked up the name before it was taken
FULL_SECONDS: Final = 0.25  # between two counts while there is no room: each may list the open files
SETTLED_SECONDS: Final = 0.5  # after that libzmq has told of all whom it accepted from a socket
LEAST_CLIENTS: Final = 16  # a limit that leaves room for fewer is a mistake

_EVENT = struct.Struct("=Hi")  # zmq_socket_monitor(3): the event's number, and its value

log = Log("runnel.serve")


@contextmanager
def opened(router: zmq.Socket[bytes], address: Address) -> Iterator[Door]:
    """Within it clients are let into a ROUTER socket, which is configured and not yet bound.

    The socket file is removed afterwards. Raises UsageError if the address cannot be bound, or if the limit
    of open files leaves no room for clients.
    """
    try:
        door = _TcpDoor(router, address.text) if address.path is None else _IpcDoor(router, address)
    except zmq.ZMQError as error:
        raise UsageError(f"cannot bind {address}: {error.strerror}") from None
    except OSError as error:
        raise UsageError(f"cannot bind {address}: {error.strerror or error}") from None
    try:
        yield door
    finally:
        door.close()


class Door:
    """What `opened` yields. Belongs to the socket's thread.

    `address` is the one that is bound, with its port. `descriptor` is readable when there is something to do;
    call `turn` then, and when `due` has come.
    """

    address: str
    due: float | None = None

    def __init__(self, router: zmq.Socket[bytes]) -> None:
        self._router = router
        self._full = False
        limit = process.max_files()
        self._reserved = min(MAX_RESERVED, limit // 8)
        self._backlog = max(1, min(MAX_BACKLOG, limit // 16))
        self._room = 0  # connections to accept before the descriptors are counted again
        if not self._has_room(max(LEAST_CLIENTS, self._backlog + 1 + SLACK)):
            raise UsageError(
                f"the limit of open files, {limit}, leaves no room for clients: raise it (LimitNOFILE= of a "
                "service, ulimit -n)"
            )
        self._events: zmq.Socket[bytes] = router.context.socket(zmq.PAIR)
        # libzmq's thread waits where its events do not fit. What it accepts is bounded, so these are too.
        self._events.rcvhwm = 0
        told = f"inproc://door.{id(self)}"
        router.monitor(told, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._events.connect(told)
        for _ in self._heard():  # from the first look on, the descriptor tells of each event
            pass
        self._gate = select.epoll()
        self._gate.register(self._events.FD, select.EPOLLIN)
        self.descriptor: int = self._gate.fileno()

    def turn(self, now: float) -> None:
        """Let in those who wait, as far as there are descriptors for them. Never waits."""
        raise NotImplementedError

    def detach(self) -> None:
        """Let go of the router, before it closes. Calling it twice is allowed."""
        if not self._events.closed:
            if not self._router.closed:
                self._router.disable_monitor()
            self._events.close(linger=0)

    def close(self) -> None:
        """Let nobody in any more."""
        self.detach()
        self._gate.close()

    def _heard(self) -> Iterator[tuple[bool, int, bytes]]:
        """Who came (True) and went, in this order: the connection's descriptor, and the socket's name."""
        while True:
            try:
                event, name = self._events.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            number, descriptor = _EVENT.unpack(event)
            yield number == zmq.EVENT_ACCEPTED, descriptor, name

    def _has_room(self, wanted: int) -> bool:
        """Whether so many connections more can be accepted."""
        if self._room < wanted:
            self._room = process.max_files() - self._reserved - process.open_files()
        return self._room >= wanted

    def _tell(self, full: bool, what: str) -> None:
        """Log that new connections are taken, or not, where that has changed."""
        if full and not self._full:
            log.warning(
                "open files at their limit",
                new_connections=what,
                limit=process.max_files(),
                reserved=self._reserved,
            )
        elif self._full and not full:
            log.info("new connections are taken again", open_files=process.open_files())
        self._full = full


class _Given:
    """A listening socket that libzmq accepts from."""

    __slots__ = ("clients", "descriptor", "since")

    def __init__(self, descriptor: int, now: float) -> None:
        self.descriptor = descriptor
        self.since = now
        self.clients = 0  # that came through it, and are still here


class _IpcDoor(Door):
    def __init__(self, router: zmq.Socket[bytes], address: Address) -> None:
        super().__init__(router)
        assert address.path is not None
        self.address = address.text
        try:
            self._file = socketfile.SocketFile(address.path, self._backlog)
        except BaseException:
            self.close()
            raise
        self._given: dict[bytes, _Given] = {}  # by what libzmq calls them
        self._again: float | None = None  # when to look whether there is room again
        self._gate.register(self._file.public, select.EPOLLIN)

    def turn(self, now: float) -> None:
        self._account()
        settles = self._take_back(now)
        if self._again is not None and now >= self._again:
            self._again = None
            self._gate.register(self._file.public, select.EPOLLIN)
        if self._again is None:
            self._let_in(now)
        self.due = min((due for due in (settles, self._again) if due is not None), default=None)

    def _let_in(self, now: float) -> None:
        if not _readable(self._file.public.fileno()):
            return
        latest = next(reversed(self._given.values()), None)
        if latest is not None and _readable(latest.descriptor):
            return  # libzmq has not yet accepted all of those before
        needed = self._backlog + 1 + SLACK
        full = not self._has_room(needed)
        self._tell(full, "wait")
        if full:
            self._pause(now)
            return
        try:
            following = self._file.following()
        except OSError as error:
            log.error("new connections wait: the socket file cannot be renewed", why=error.strerror)
            self._pause(now)
            return
        self._room -= needed
        self._give(now, following)

    def close(self) -> None:
        super().close()
        if hasattr(self, "_file"):
            self._file.close()

    def _account(self) -> None:
        for came, _, name in self._heard():
            given = self._given.get(name)
            if given is not None:
                given.clients += 1 if came else -1

    def _give(self, now: float, following: socket.socket) -> None:
        """Have libzmq accept those who wait, and let the next ones wait at the following socket."""
        self._gate.unregister(self._file.public)
        name = f"ipc://{self._file.public.getsockname()}"
        descriptor = self._file.hand_over(following)
        self._gate.register(self._file.public, select.EPOLLIN)
        self._router.setsockopt(zmq.USE_FD, descriptor)
        self._router.bind(name)  # the descriptor is libzmq's from now on
        self._given[name.encode()] = _Given(descriptor, now)

    def _take_back(self, now: float) -> float | None:
        """Close the sockets that nobody is connected through any more; when to look for the next."""
        settles = []
        for name, given in list(self._given.items()):
            if given.clients > 0:
                continue
            settled = given.since + SETTLED_SECONDS
            if now < settled or _readable(given.descriptor):
                settles.append(max(settled, now + FULL_SECONDS))
            else:
                self._router.unbind(name)
                del self._given[name]
        return min(settles, default=None)

    def _pause(self, now: float) -> None:
        """Let nobody in before some time is over."""
        self._gate.unregister(self._file.public)
        self._again = now + FULL_SECONDS


class _TcpDoor(Door):
    def __init__(self, router: zmq.Socket[bytes], text: str) -> None:
        super().__init__(router)
        router.setsockopt(zmq.IPV6, int("[" in text))
        try:
            router.bind(text)
        except BaseException:
            self.close()
            raise
        self.address = router.getsockopt(zmq.LAST_ENDPOINT).decode()  # type: ignore[union-attr]
        self._port = int(self.address.rpartition(":")[2])

    def turn(self, now: float) -> None:
        newest: dict[int, None] = {}
        for came, descriptor, _ in self._heard():
            if came:
                newest[descriptor] = None
            else:
                newest.pop(descriptor, None)
        if not newest:
            return
        self._room -= len(newest)
        full = not self._has_room(0)
        self._tell(full, "are closed")
        if full:
            for descriptor in list(newest)[self._room :]:
                self._refuse(descriptor)

    def _refuse(self, descriptor: int) -> None:
        """Close a connection, unless it is another's by now."""
        with suppress(OSError):  # libzmq has closed it meanwhile
            connection = socket.socket(fileno=descriptor)
            try:
                if connection.getsockname()[1] == self._port:
                    connection.shutdown(socket.SHUT_RDWR)
            finally:
                connection.detach()  # it is libzmq's to close; a duplicate would need a descriptor


def _readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
