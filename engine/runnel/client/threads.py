"""A connection that threads share: a waiting thread reads for all of them.

Theory: the lock protects the connection and its protocol. The first thread that waits is the *leader*: it
releases the lock, sleeps until a descriptor is readable, takes the lock and reads what has arrived, for all
threads. Other waiting threads are *followers*; each is woken when its own request is done. A leader that
stops waiting wakes a follower, which then leads. With a single thread, a call is: lock, send, sleep, read,
without a switch to another thread.

A descriptor's event is consumed by any call on its socket. So if a thread sends while the leader sleeps, it
reads too, and wakes the leader if that completes the leader's request.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from ..wire import messages
from ..wire.keys import Secret
from ..wire.pauses import extended
from .common import HELD, closed, silence
from .connection import Connection, no_room
from .protocol import ClientProtocol, ClientStream, PendingRequest


class Awaited(Protocol):
    """What a thread can wait for: a PendingRequest, or a condition of the caller."""

    @property
    def done(self) -> bool: ...


class Until:
    """Done when a predicate holds. The predicate is called with the lock held."""

    __slots__ = ("_holds",)

    def __init__(self, holds: Callable[[], bool]) -> None:
        self._holds = holds

    @property
    def done(self) -> bool:
        return self._holds()


class SharedConnection:
    """A connection and its lock. The docstring of a method says if the caller must hold the lock."""

    def __init__(self, address: str, limit: int = 1, keys: Secret | None = None) -> None:
        self.lock = threading.Lock()
        self.connection = Connection(address, keys)
        self.connection.limit = limit
        self._leader_awaits: Awaited | None = None  # what the leader waits for, while it sleeps
        self._followers: dict[threading.Condition, Awaited] = {}
        self._closed = False
        try:
            self._wake_reader, self._wake_writer = socket.socketpair()
        except OSError as error:
            self.connection.close()
            raise no_room(address, error) from None
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._wake_descriptor = self._wake_reader.fileno()
        self._wakers = select.poll()
        for descriptor in (*self.connection.descriptors, self._wake_descriptor):
            self._wakers.register(descriptor, select.POLLIN)

    def ask(self, make: Callable[[ClientProtocol], PendingRequest], timeout: float) -> PendingRequest:
        """Make a request and wait until it is settled; give it up at the time-out."""
        with self.lock:
            self.check()
            pending = make(self.connection.protocol)
            self._send()
            self.settle(pending, timeout)
        return pending

    def post(
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
        """Send a request once there is room for it. With the lock held.

        `held`: it is sent later, together with those that follow: once they are enough, or by `wait`. Raises
        TimeoutError if there is no room in time, and what `ClientProtocol.post` raises.
        """
        self.check()
        connection = self.connection
        if connection.full or len(stream.unanswered) >= window:
            room = Until(lambda: not connection.full and len(stream.unanswered) < window)
            if not self.wait(room, timeout):
                raise silence(connection.address, timeout)
        pending = connection.protocol.post(stream, op, infos, buffers, steps)
        if not held or len(connection.protocol.outbox) >= HELD:
            self._send()
        return pending

    def flush(self) -> None:
        """Send the held requests. With the lock held."""
        if self.connection.protocol.outbox:
            self._send()

    def settle(self, pending: PendingRequest, timeout: float, waited: float | None = None) -> None:
        """Wait until a request is settled, for `timeout` or `waited` seconds; then give it up. Lock held."""
        if not self.wait(pending, timeout if waited is None else waited):
            self.connection.protocol.give_up(pending, silence(self.connection.address, timeout))
            self.changed()

    def wait(self, awaited: Awaited, timeout: float) -> bool:
        """Sleep until it is done, for at most `timeout` seconds; return whether it is. With the lock held."""
        deadline = 0.0
        connection = self.connection
        try:
            self.flush()
            while not awaited.done:
                self.check()
                if self._leader_awaits is None and connection.ready:
                    self._read()
                    continue
                now = time.monotonic()
                deadline = deadline or now + timeout
                if now >= deadline:
                    deadline = extended(deadline, now)
                if now >= deadline:
                    return False
                if self._leader_awaits is None:
                    self._lead(awaited, deadline - now)
                else:
                    self._follow(awaited, deadline - now)
            return True
        finally:
            if self._followers and self._leader_awaits is None:
                next(iter(self._followers)).notify()

    def glance(self) -> None:
        """Read what has arrived, without waiting. With the lock held."""
        if not self._closed and self._leader_awaits is None and self.connection.ready:
            self._read()

    def changed(self) -> None:
        """Wake the threads whose request or condition is now done. With the lock held."""
        for condition, awaited in self._followers.items():
            if awaited.done:
                condition.notify()
        if self._leader_awaits is not None and self._leader_awaits.done:
            self._wake_leader()

    def check(self) -> None:
        """Raise UsageError if the client is closed. With the lock held."""
        if self._closed:
            raise closed(self.connection.address)

    def close(self) -> None:
        """Disconnect. Waiting threads get UsageError. Closing twice is allowed."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            for condition in self._followers:
                condition.notify()
            if self._leader_awaits is None:
                self._let_go()
            else:
                self._wake_leader()  # the leader closes it, once it no longer sleeps on the descriptors

    def _lead(self, awaited: Awaited, timeout: float) -> None:
        self._leader_awaits = awaited
        self.lock.release()
        try:
            woken = self._wakers.poll(timeout * 1000 + 1)
        finally:
            self.lock.acquire()
            self._leader_awaits = None
            if self._closed:
                self._let_go()
        if self._closed:
            return
        if (self._wake_descriptor, select.POLLIN) in woken:
            with suppress(BlockingIOError):
                self._wake_reader.recv(64)
        self._read()

    def _follow(self, awaited: Awaited, timeout: float) -> None:
        condition = threading.Condition(self.lock)
        self._followers[condition] = awaited
        try:
            condition.wait(timeout)
        finally:
            del self._followers[condition]

    def _send(self) -> None:
        self.connection.send()
        if self._leader_awaits is not None and self.connection.ready:
            self._read()

    def _read(self) -> None:
        if self.connection.turn() and (self._followers or self._leader_awaits is not None):
            self.changed()

    def _wake_leader(self) -> None:
        with suppress(BlockingIOError):  # full of wake-ups that were not read yet
            self._wake_writer.send(b"\0")

    def _let_go(self) -> None:
        self.connection.close()
        self._wake_reader.close()
        self._wake_writer.close()
