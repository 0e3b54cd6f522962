"""A link that threads share, without a thread of its own: whoever waits reads for all.

Theory: under the lock belong the link and everything about its conversation. A thread that waits for
something while no other does is the *leader*: it lets the lock go, sleeps until a descriptor tells, takes
the lock and reads what has arrived, for everyone. Other threads that wait are *followers*, each woken
when what it waits for is done; a leader that leaves wakes one of them, which then leads. Where only one
thread is there, a call is: lock, send, sleep, read, with no hop to another thread.

A descriptor falls silent when any call on its socket has seen what it told. So a thread that sends while
the leader sleeps reads too, and rings the leader's bell where what it waits for is done by that.
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
from ..wire.attention import overslept
from ..wire.keys import Secret
from .common import HELD, closed, silence
from .connection import Connection, no_room
from .protocol import Conversation, Line, Ticket


class Awaited(Protocol):
    """What a thread can wait for: a Ticket, or a Condition of the caller's."""

    @property
    def done(self) -> bool: ...


class When:
    """Awaited until a predicate holds; it is asked under the lock."""

    __slots__ = ("_holds",)

    def __init__(self, holds: Callable[[], bool]) -> None:
        self._holds = holds

    @property
    def done(self) -> bool:
        return self._holds()


class SharedLink:
    """A link and its lock. Methods whose text says so are called with the lock held."""

    def __init__(self, address: str, limit: int = 1, keys: Secret | None = None) -> None:
        self.lock = threading.Lock()
        self.link = Connection(address, keys)
        self.link.limit = limit
        self._leads: Awaited | None = None  # what the leader waits for, while it sleeps
        self._followers: dict[threading.Condition, Awaited] = {}
        self._closed = False
        try:
            self._ear, self._bell = socket.socketpair()
        except OSError as error:
            self.link.close()
            raise no_room(address, error) from None
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        self._ear_descriptor = self._ear.fileno()
        self._wakers = select.poll()
        for descriptor in (*self.link.descriptors, self._ear_descriptor):
            self._wakers.register(descriptor, select.POLLIN)

    def ask(self, make: Callable[[Conversation], Ticket], timeout: float) -> Ticket:
        """Make a request, and wait until it is settled: given up when time is over."""
        with self.lock:
            self.check()
            ticket = make(self.link.talk)
            self._send()
            self.settle(ticket, timeout)
        return ticket

    def post(
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
        """Put a request on its way, once there is room for it. With the lock held.

        `held`: it is sent with those that follow it: as soon as they are enough, or by `wait`.
        Raises TimeoutError where there is none in time; what `Conversation.post` raises.
        """
        self.check()
        link = self.link
        if link.full or len(line.unanswered) >= window:
            room = When(lambda: not link.full and len(line.unanswered) < window)
            if not self.wait(room, timeout):
                raise silence(link.address, timeout)
        ticket = link.talk.post(line, op, infos, buffers, steps)
        if not held or len(link.talk.outbox) >= HELD:
            self._send()
        return ticket

    def flush(self) -> None:
        """Send what is held. With the lock held."""
        if self.link.talk.outbox:
            self._send()

    def settle(self, ticket: Ticket, timeout: float, waited: float | None = None) -> None:
        """Wait until it is settled, at most `timeout` seconds, or `waited`; then give it up. Lock held."""
        if not self.wait(ticket, timeout if waited is None else waited):
            self.link.talk.give_up(ticket, silence(self.link.address, timeout))
            self.changed()

    def wait(self, awaited: Awaited, timeout: float) -> bool:
        """Sleep until it is done, at most so many seconds; whether it is. With the lock held."""
        deadline = 0.0
        link = self.link
        try:
            self.flush()
            while not awaited.done:
                self.check()
                if self._leads is None and link.ready:
                    self._read()
                    continue
                now = time.monotonic()
                deadline = deadline or now + timeout
                if now >= deadline:
                    deadline = overslept(deadline, now)
                if now >= deadline:
                    return False
                if self._leads is None:
                    self._lead(awaited, deadline - now)
                else:
                    self._follow(awaited, deadline - now)
            return True
        finally:
            if self._followers and self._leads is None:
                next(iter(self._followers)).notify()

    def glance(self) -> None:
        """Read what has arrived, without waiting. With the lock held."""
        if not self._closed and self._leads is None and self.link.ready:
            self._read()

    def changed(self) -> None:
        """Something that may be awaited has changed: wake those whose it is. With the lock held."""
        for condition, awaited in self._followers.items():
            if awaited.done:
                condition.notify()
        if self._leads is not None and self._leads.done:
            self._ring()

    def check(self) -> None:
        """Raise UsageError where the client is closed. With the lock held."""
        if self._closed:
            raise closed(self.link.address)

    def close(self) -> None:
        """Disconnect. Those who wait are told. Closing twice is allowed."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            for condition in self._followers:
                condition.notify()
            if self._leads is None:
                self._let_go()
            else:
                self._ring()  # the leader lets go, when it no longer sleeps on the descriptors

    def _lead(self, awaited: Awaited, timeout: float) -> None:
        self._leads = awaited
        self.lock.release()
        try:
            woken = self._wakers.poll(timeout * 1000 + 1)
        finally:
            self.lock.acquire()
            self._leads = None
            if self._closed:
                self._let_go()
        if self._closed:
            return
        if (self._ear_descriptor, select.POLLIN) in woken:
            with suppress(BlockingIOError):
                self._ear.recv(64)
        self._read()

    def _follow(self, awaited: Awaited, timeout: float) -> None:
        condition = threading.Condition(self.lock)
        self._followers[condition] = awaited
        try:
            condition.wait(timeout)
        finally:
            del self._followers[condition]

    def _send(self) -> None:
        self.link.send()
        if self._leads is not None and self.link.ready:
            self._read()

    def _read(self) -> None:
        if self.link.turn() and (self._followers or self._leads is not None):
            self.changed()

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # full of rings that were not heard yet
            self._bell.send(b"\0")

    def _let_go(self) -> None:
        self.link.close()
        self._ear.close()
        self._bell.close()
