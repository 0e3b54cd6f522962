"""ZeroMQ: a SUB socket as a source, and a PUB socket as a sink.

A message is ``[topic] payload``; the topic is a frame of its own and may be absent. A JSON payload is one
time step, as in `jsonl`, or a list of such objects. A raw payload has one frame per tensor: little-endian
numbers in C order, for any number of time steps. A slow subscriber loses messages: libzmq holds `queue` of
them, and drops others without notice.

Neither socket authenticates its peer, so addresses must be this machine's own: ``ipc://`` or loopback.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import numpy as np

from runnel import Signal, Sink, Source, hookimpl
from runnel.columns import pack
from runnel.errors import UsageError
from runnel.files import warn
from runnel.hookspecs import SinkFactory, SourceFactory
from runnel.spec import Array
from runnel.stage import Chunk
from runnel.times import Unit
from runnel_plugins.connectors.cells import Json, Rate, Row
from runnel_plugins.connectors.jsonl import rows_as_json

MAX_MESSAGE: Final = 2**26  # bytes of a frame: an hour of 16 kHz int8; it is in memory at once
MAX_QUEUE: Final = 10**6  # the largest queue that libzmq may hold
_LINGER: Final = 1000  # milliseconds to send the rest at the end
_RETRY: Final = 0.5  # seconds after a lost connection until it is made anew, unless libzmq does so
_SHOWN: Final = 60  # bytes of a malformed message in the report


class Sub(Source):
    """Subscribe to a ZeroMQ publisher, live: messages of time steps as JSON or as raw numbers.

    `address`: tcp://127.0.0.1:port or ipc:///path; connected to, or bound with `bind`. `topic`: only messages
    whose first frame begins with it. `format`: "json", one time step per message, or a list of them, as in
    jsonl; "raw", one little-endian frame per array, for any number of time steps. `columns`, `time`, `unit`
    and `rate`: for JSON, as for jsonl. `queue`: messages held while the pipeline is busy; others are lost.
    `malformed`: "skip" leaves malformed messages out, and reports their number at the end; "refuse" ends the
    run.
    """

    live = True

    def __init__(
        self,
        signal: Signal,
        address: str,
        topic: str = "",
        format: Literal["json", "raw"] = "json",
        columns: list[str] | None = None,
        time: str | None = None,
        bind: bool = False,
        queue: int = 1000,
        malformed: Literal["skip", "refuse"] = "skip",
        unit: Unit = "s",
        rate: Rate = "check",
    ) -> None:
        self._name = f"sub {address}"
        self._signal = signal
        self._refuse = malformed == "refuse"
        self._json: Json | None = None
        if format == "json":
            row = Row(self._name, signal, time, unit, rate, live=True)
            self._json = Json(self._name, row, columns, "refuse")
        elif columns is not None or time is not None:
            raise UsageError(f"{self._name}: columns and time are for JSON; raw numbers have no names")
        self._count = self._bad = 0
        self._first_bad = ""
        self._address = address
        self._lost: float | None = None  # time of a disconnect for which libzmq has not reported a retry
        self._cut = False
        self._socket, self._context = _socket("sub", address, bind, queue)
        self._socket.setsockopt_string(_zmq().SUBSCRIBE, topic)
        # If it is bound, the publishers reconnect.
        events = 0 if bind else _zmq().EVENT_DISCONNECTED | _zmq().EVENT_CONNECT_RETRIED
        self._monitor = self._socket.get_monitor_socket(events)

    def chunks(self, block: int) -> Iterator[Chunk]:
        again = _zmq().Again
        while True:
            frames = self._receive()
            held: list[Chunk] = []
            rows, refused = 0, None
            while True:
                try:
                    chunk = self._chunk(frames)
                except UsageError as error:  # the messages before it were valid, and count
                    refused = error
                    break
                if chunk is not None:
                    held.append(chunk)
                    rows += _steps(chunk)
                if rows >= block:
                    break
                try:
                    frames = self._socket.recv_multipart(_zmq().NOBLOCK)
                except again:
                    break
            if rows:
                whole = {name: np.concatenate([part[name] for part in held]) for name in self._signal.names}
                for start in range(0, rows, block):
                    yield {name: array[start : start + block] for name, array in whole.items()}
            if refused is not None:
                raise refused

    def _receive(self) -> list[bytes]:
        """Wait for the next message.

        If a message exceeds MAX_MESSAGE, libzmq ends the connection for good, without a retry. If a publisher
        went away, it retries, and reports that. Without such a report, the connection is made anew here.
        """
        zmq = _zmq()
        poller = zmq.Poller()
        for socket in (self._socket, self._monitor):
            poller.register(socket, zmq.POLLIN)
        while True:
            wait = None if self._lost is None else max(0.0, self._lost + _RETRY - time.monotonic())
            ready = dict(poller.poll(None if wait is None else math.ceil(1000 * wait)))
            if self._monitor in ready:
                (event,) = struct.unpack_from("=H", self._monitor.recv_multipart()[0])
                self._lost = time.monotonic() if event == zmq.EVENT_DISCONNECTED else None
            if self._socket in ready:
                frames: list[bytes] = self._socket.recv_multipart()
                return frames
            if wait == 0.0:
                self._lost = None
                if not self._cut:
                    self._cut = True
                    warn(f"{self._name}: a message of more than {MAX_MESSAGE} bytes ended a connection")
                with contextlib.suppress(zmq.ZMQError):  # the connection is gone already
                    self._socket.disconnect(self._address)
                self._socket.connect(self._address)

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._context.term()
        if self._bad:
            warn(
                f"{self._name}: {self._bad} of {self._count} messages were left out; the first: "
                f"{self._first_bad}"
            )

    def _chunk(self, frames: Sequence[bytes]) -> Chunk | None:
        """Return the time steps of one message; None if it is malformed."""
        self._count += 1
        try:
            return self._from_json(frames) if self._json else self._from_raw(frames)
        except (ValueError, OverflowError, RecursionError) as error:
            why = f"message {self._count}, {b' '.join(frames)[:_SHOWN]!r}: {error}"
            if self._refuse:
                raise UsageError(f"{self._name}: {why}") from None
            if not self._bad:  # now: if all messages are malformed, no other report may come
                warn(f"{self._name}: a message was left out; such messages are counted. {why}")
            self._bad += 1
            self._first_bad = self._first_bad or why
            return None

    def _from_json(self, frames: Sequence[bytes]) -> Chunk:
        assert self._json is not None
        if len(frames) > 2:
            raise ValueError(f"{len(frames)} frames, not a topic and a payload")
        value = json.loads(frames[-1])
        several = isinstance(value, list) and value and isinstance(value[0], dict)
        rows = []
        for item in value if several else [value]:
            row, when = self._json.read(item)
            rows.append(row)
            self.stamp = when and when[1]
        return pack(rows, self._signal)

    def _from_raw(self, frames: Sequence[bytes]) -> Chunk:
        tensors = self._signal.tensors
        if len(frames) not in (len(tensors), len(tensors) + 1):
            raise ValueError(f"{len(frames)} frames, not a topic and {len(tensors)} of numbers")
        chunk: dict[str, Array] = {}
        steps = set()
        for tensor, frame in zip(tensors, frames[-len(tensors) :], strict=True):
            dtype = np.dtype(tensor.dtype).newbyteorder("<")
            size = dtype.itemsize * math.prod(tensor.shape)
            if len(frame) % size or not frame:
                raise ValueError(f"{len(frame)} bytes are no whole number of time steps of {size} ({tensor})")
            values = np.frombuffer(frame, dtype).astype(tensor.dtype)
            chunk[tensor.name] = values.reshape(-1, *tensor.shape)
            steps.add(len(chunk[tensor.name]))
        if len(steps) > 1:
            raise ValueError(f"its tensors have {' and '.join(map(str, sorted(steps)))} time steps")
        return chunk


class Pub(Sink):
    """Publish the output on a ZeroMQ socket: one time step per message as JSON, or a chunk as raw numbers.

    `address`: tcp://127.0.0.1:port or ipc:///path; bound, or connected to with `connect`. `topic`: the first
    frame; if empty, it is not sent. `queue`: messages held for a slow subscriber, which loses any others. A
    late subscriber has missed earlier messages.
    """

    def __init__(
        self,
        signal: Signal,
        address: str,
        topic: str = "",
        format: Literal["json", "raw"] = "json",
        connect: bool = False,
        queue: int = 1000,
    ) -> None:
        self._signal, self._raw = signal, format == "raw"
        self._topic = [topic.encode()] if topic else []
        self._socket, self._context = _socket("pub", address, not connect, queue)

    def write(self, chunk: Chunk) -> None:
        if self._raw and _steps(chunk):
            frames = [
                np.ascontiguousarray(chunk[t.name], np.dtype(t.dtype).newbyteorder("<")).tobytes()
                for t in self._signal.tensors
            ]
            self._socket.send_multipart([*self._topic, *frames])
        elif not self._raw:
            for row in rows_as_json(self._signal, chunk):
                self._socket.send_multipart([*self._topic, row.encode()])

    def close(self, whole: bool) -> None:
        self._socket.close(linger=_LINGER if whole else 0)
        self._context.term()


def _steps(chunk: Chunk) -> int:
    return len(next(iter(chunk.values())))


def _zmq() -> Any:
    import zmq  # imported when a socket is opened, because a run without one does not need it

    return zmq


def _socket(kind: str, address: str, bind: bool, queue: int) -> tuple[Any, Any]:
    zmq = _zmq()
    _check(kind, address)
    if not 1 <= queue <= MAX_QUEUE:
        raise UsageError(f"{kind}: queue must be 1 to {MAX_QUEUE}, not {queue}")
    context = zmq.Context()
    socket = context.socket(zmq.SUB if kind == "sub" else zmq.PUB)
    socket.setsockopt(zmq.RCVHWM if kind == "sub" else zmq.SNDHWM, queue)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
    socket.setsockopt(zmq.LINGER, 0)
    try:
        (socket.bind if bind else socket.connect)(address)
    except zmq.ZMQError as error:
        socket.close()
        context.term()
        what = "listen at" if bind else "connect to"
        raise UsageError(f"{kind}: cannot {what} {address}: {error.strerror or error}") from None
    return socket, context


def _check(kind: str, address: str) -> None:
    """Raise UsageError unless it is an address of this machine."""
    if address.startswith("ipc://") and not address.startswith("ipc://@") and len(address) > len("ipc://"):
        return
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not address.startswith("tcp://") or not host or port is None:
        raise UsageError(f"{kind}: address {address!r}: expected tcp://127.0.0.1:port or ipc:///path")
    try:
        local = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise UsageError(
            f"{kind}: {address} leads to other machines, where anyone could listen in or send in another's "
            "name: bring it here through a tunnel, as with ssh -L, and use tcp://127.0.0.1:port"
        )


@hookimpl
def runnel_sources() -> Mapping[str, SourceFactory]:
    return {"sub": Sub}


@hookimpl
def runnel_sinks() -> Mapping[str, SinkFactory]:
    return {"pub": Pub}
