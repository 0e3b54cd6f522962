"""The daemon's door: new clients are let in while there are file descriptors for them.

libzmq 4.3 aborts the process if `accept` meets the limit of open files on an ipc socket, and burns a core on
tcp. Its `unbind` cuts off everybody who came through that socket. So:

On ipc libzmq never accepts from the socket that new clients reach. When somebody waits there and there is
room, another socket takes its name, and libzmq gets the first one. That one can hold no more than its
backlog, so libzmq accepts a bounded number of connections, however fast they come. While there is no room,
clients wait in the kernel, and cost nothing. A socket that libzmq has is taken back once all who came
through it are gone. By then libzmq must have reported each connection that it accepted, and it reports late
on a busy machine. So we connect a last time ourselves, behind all clients: libzmq accepts in order, and
greets a connection only after it has reported it, so its greeting means that all were reported.

On tcp libzmq accepts by itself, and survives the limit. A connection past the bound is closed at once; the
client tries again, with back-off.
"""

from __future__ import annotations

import os
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
QUEUE_SECONDS: Final = 0.01  # between two attempts to connect behind clients that fill a queue
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
    """A listening socket that libzmq accepts from.

    `settled`: libzmq has reported all clients that came through it. `last` is our own connection, the last
    one in the socket's queue; None before the queue had room for it, and once the socket is settled.
    """

    def __init__(self, replaced: socketfile.Replaced) -> None:
        self.descriptor = replaced.descriptor  # libzmq's
        self.clients = 0  # that came through it, and are still here
        self.settled = False
        self.last: socket.socket | None = None
        self._entry: int | None = replaced.entry

    def connect(self) -> socket.socket | None:
        """Connect behind all clients. None: the queue is full. Raises OSError."""
        assert self._entry is not None
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.setblocking(False)
        try:
            made.connect(f"/proc/self/fd/{self._entry}")
        except BlockingIOError:
            made.close()
            return None
        except BaseException:
            made.close()
            raise
        self.last = made
        os.close(self._entry)
        self._entry = None
        return made

    def close(self) -> None:
        """Close what is ours: the connection, and the way to it. Calling it twice is allowed."""
        if self.last is not None:
            self.last.close()
            self.last = None
        if self._entry is not None:
            os.close(self._entry)
            self._entry = None


class _IpcDoor(Door):
    def __init__(self, router: zmq.Socket[bytes], address: Address) -> None:
        super().__init__(router)
        assert address.path is not None
        self.address = address.text
        self._given: dict[bytes, _Given] = {}  # by what libzmq calls them
        self._latest: _Given | None = None  # until it is settled
        try:
            self._file = socketfile.SocketFile(address.path, self._backlog)
        except BaseException:
            self.close()
            raise
        self._again: float | None = None  # when to look whether there is room again
        self._gate.register(self._file.public, select.EPOLLIN)

    def turn(self, now: float) -> None:
        retry = self._settle(now)
        self._account()
        self._take_back()
        if self._again is not None and now >= self._again:
            self._again = None
            self._gate.register(self._file.public, select.EPOLLIN)
        if self._again is None:
            self._let_in(now)
            retry = self._settle(now)
        self.due = min((due for due in (retry, self._again) if due is not None), default=None)

    def _let_in(self, now: float) -> None:
        if not _readable(self._file.public.fileno()) or self._latest is not None:
            return  # the latest socket's clients come first
        needed = self._backlog + 1 + SLACK
        full = not self._has_room(needed)
        self._tell(full, "wait")
        if full:
            self._pause(now)
            return
        self._gate.unregister(self._file.public)
        try:
            replaced = self._file.renew()
        except OSError as error:
            log.error("new connections wait: the socket file cannot be renewed", why=error.strerror)
            self._again = now + FULL_SECONDS
            return
        self._gate.register(self._file.public, select.EPOLLIN)
        self._room -= needed
        name = f"ipc://{replaced.name}"
        self._latest = self._given[name.encode()] = _Given(replaced)
        self._router.setsockopt(zmq.USE_FD, replaced.descriptor)
        self._router.bind(name)  # the descriptor is libzmq's from now on

    def _settle(self, now: float) -> float | None:
        """Find out whether libzmq has reported all clients of the latest socket; when to try again."""
        latest = self._latest
        if latest is None:
            return None
        if latest.last is None:
            try:
                made = latest.connect()
            except OSError as error:
                log.error("new connections wait: cannot connect to the own socket", why=error.strerror)
                return now + FULL_SECONDS
            if made is None:
                return now + QUEUE_SECONDS
            self._gate.register(made, select.EPOLLIN)
        elif _readable(latest.last.fileno()):
            self._gate.unregister(latest.last)
            latest.close()
            latest.settled = True
            self._latest = None
        return None

    def _account(self) -> None:
        for came, _, name in self._heard():
            given = self._given.get(name)
            if given is not None:
                given.clients += 1 if came else -1

    def _take_back(self) -> None:
        """Close the sockets that nobody is connected through any more."""
        for name, given in list(self._given.items()):
            # Readable: a client had looked up the file before it was replaced, and came after our own
            # connection.
            if given.settled and not given.clients and not _readable(given.descriptor):
                self._router.unbind(name)
                del self._given[name]

    def close(self) -> None:
        super().close()
        for given in self._given.values():
            given.close()
        if hasattr(self, "_file"):
            self._file.close()

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
