"""Monitor a daemon from outside, for `top`, `inspect` and the metrics page.

The daemon's loop answers between two batches, so an answer proves that the loop runs, and nothing is shared
with it. A question costs two small messages per worker, on a connection that is kept open.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import zmq

from ..errors import RunnelError, UsageError
from ..wire import messages
from ..wire.address import beside, parse
from ..wire.curve import connect_as
from ..wire.keys import Secret
from .connection import opened

MAX_WORKERS: Final = 256  # as many as serve starts; each takes one of libzmq's 1023 sockets
UNANSWERED: Final = 16  # questions in libzmq's queue for a worker that does not read; then it reconnects
MAX_TIMEOUT: Final = 86400.0  # seconds: a day
LARGEST_ANSWER: Final = 2**20  # bytes of a frame: a description and its stats have some kilobytes

_QUESTIONS: Final[tuple[messages.Op, ...]] = ("hello", "stats")


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker's answer: its stats, or in `error` why there are none."""

    address: str
    served: messages.Description | None = None  # also None while the worker stops
    stats: dict[str, Any] | None = None
    error: str = ""

    @property
    def alive(self) -> bool:
        """Whether its loop runs."""
        return self.stats is not None

    @property
    def ready(self) -> bool:
        """Whether it serves: it answers, and is not stopping."""
        return self.stats is not None and not self.stats.get("stopping", False)


class Watcher:
    """Asks all workers of a daemon for their status: ``with Watcher(["ipc:///run/runnel.sock"]) as w``.

    `addresses`: one or more workers; the others are found in their HELLO. `timeout`: seconds for all to
    answer. `keys`: the monitor's own, if the daemon has keys. A restarted worker is found again. Not
    thread-safe. Raises UsageError for an invalid address.
    """

    def __init__(self, addresses: Sequence[str], timeout: float = 2.0, keys: Secret | None = None) -> None:
        for address in addresses:
            if parse(address, keyed=keys is not None).text.endswith(":*"):
                raise UsageError(f"address {address!r}: expected the port that the daemon has")
        if not 0 < timeout <= MAX_TIMEOUT:
            raise UsageError(f"timeout: up to {MAX_TIMEOUT:g} seconds, not {timeout:g}")
        self.timeout = timeout
        self._keys = keys
        self._addresses = list(addresses)
        self._asked = itertools.count(1)
        self._sockets: dict[str, zmq.Socket[bytes]] = {}

    def look(self) -> list[WorkerStatus]:
        """Ask all workers at once; one `WorkerStatus` each, in their order. Silence is not an error."""
        seen = self._ask(self._addresses)
        named = next((_workers(s.served, s.address) for s in seen if s.served), self._addresses)
        if named == self._addresses:
            return seen
        self._adopt(named)
        known = {s.address: s for s in seen}
        missing = self._ask([address for address in named if address not in known])
        known.update((s.address, s) for s in missing)
        return [known[address] for address in named]

    def close(self) -> None:
        """Disconnect. Closing twice is allowed."""
        for socket in self._sockets.values():
            socket.close(linger=0)
        self._sockets.clear()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _adopt(self, addresses: Sequence[str]) -> None:
        """Watch these addresses from now on."""
        if len(addresses) > MAX_WORKERS:
            raise UsageError(f"the daemon names {len(addresses)} workers: at most {MAX_WORKERS} are watched")
        self._addresses = [parse(address, keyed=self._keys is not None).text for address in addresses]
        for gone in self._sockets.keys() - set(self._addresses):
            self._sockets.pop(gone).close(linger=0)

    def _ask(self, addresses: Sequence[str]) -> list[WorkerStatus]:
        turn = str(next(self._asked))
        poller = zmq.Poller()
        found: dict[str, WorkerStatus] = {}
        for address in addresses:
            for op in _QUESTIONS:
                self._send(address, messages.Request(v=messages.VERSION, op=op, id=f"{turn}/{op}"))
            found[address] = WorkerStatus(address)
            poller.register(self._sockets[address], zmq.POLLIN)
        missing: dict[str, set[str]] = {address: set(_QUESTIONS) for address in addresses}
        names = {self._sockets[address]: address for address in addresses}
        deadline = time.monotonic() + self.timeout
        while missing and (left := deadline - time.monotonic()) > 0:
            for socket, _ in poller.poll(int(left * 1000) + 1):
                address = names[socket]
                reply = _answer(socket)
                if reply is None or address not in missing or reply.id != f"{turn}/{reply.op}":
                    continue  # no reply, or one to an earlier question
                found[address] = _with_reply(found[address], reply)
                missing[address].discard(reply.op)
                if not missing[address]:
                    del missing[address]
        for address in missing:
            if not found[address].error and found[address].stats is None:
                why = f"no answer from {address} within {self.timeout:g} s"
                found[address] = replace(found[address], error=why)
        return [found[address] for address in addresses]

    def _send(self, address: str, question: messages.Request) -> None:
        frames = messages.encode_request(question)
        try:
            self._connected(address).send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:  # the worker does not read: discard the old questions, so that this one is first
            self._sockets.pop(address).close(linger=0)
            self._connected(address).send_multipart(frames, zmq.NOBLOCK)

    def _connected(self, address: str) -> zmq.Socket[bytes]:
        if address not in self._sockets:
            socket = opened(zmq.DEALER, address)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, UNANSWERED)
            socket.setsockopt(zmq.RCVHWM, UNANSWERED)
            socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_ANSWER)
            socket.setsockopt(zmq.IPV6, int("[" in address))
            if self._keys is not None:
                connect_as(socket, self._keys)
            socket.connect(address)
            self._sockets[address] = socket
        return self._sockets[address]


def _workers(served: messages.Description, address: str) -> list[str]:
    """All workers' addresses, as seen from here; `address` is that of the worker that answered."""
    found = [beside(worker, address) for worker in served.workers] or [address]
    if served.worker < len(found):
        found[served.worker] = address
    return found


def _answer(socket: zmq.Socket[bytes]) -> messages.Reply | None:
    """The next reply; None if it cannot be decoded."""
    try:
        return messages.decode_reply(socket.recv_multipart())[0]
    except RunnelError:
        return None


def _with_reply(seen: WorkerStatus, reply: messages.Reply) -> WorkerStatus:
    if reply.op == "stats":
        if reply.stats is not None:
            return replace(seen, stats=reply.stats)
        why = f"{reply.error.code}: {reply.error.message}" if reply.error else "an answer without stats"
        return replace(seen, error=why)
    return replace(seen, served=reply.server)
