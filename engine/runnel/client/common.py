"""What both clients share: what a daemon serves, a stream's handle, chunks as tensors. No socket."""

from __future__ import annotations

import secrets
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..errors import (
    ChunkError,
    LimitError,
    RunnelError,
    StreamClosedError,
    StreamError,
    TimeoutError,
    UsageError,
)
from ..spec import Array, Signal
from ..stage import Chunk, Steps
from ..wire import messages
from ..wire.address import beside, parse
from ..wire.placement import worker_of
from ..wire.tensors import pack, undescribe, unpack
from .protocol import SNAPSHOT, Line, Ticket

WINDOW: Final = 32  # a stream's chunks on their way: enough to hide the way, and half of what a daemon keeps
IN_FLIGHT: Final = 512  # requests that feed_many has on their way: enough to fill a daemon's batches
HELD: Final = 64  # requests sent together: enough for a batch, which the daemon runs while more are made
MAX_TIMEOUT: Final = 86400  # seconds: a day; a poll counts milliseconds in 32 bits

Out = Any  # dict[str, Array], or one Array where the chunk was one array and the pipeline has one output
Tensors = tuple[list[messages.TensorInfo], list[bytes]]


@dataclass(frozen=True, slots=True)
class Served:
    """What a daemon serves."""

    version: str  # of the daemon's runnel
    boot_id: str  # new at each start of the daemon; its streams are gone with it
    inputs: Signal
    outputs: Signal
    latency: int  # input time steps
    limits: Mapping[str, float]
    worker: int = 0  # which of the workers answered
    workers: tuple[str, ...] = ()  # their addresses
    pipeline: str = ""  # the fingerprint of the model, the stages and their options
    stages: tuple[str, ...] = ()
    state_bytes: int = 0  # of one stream, in its models

    @classmethod
    def told(cls, reply: messages.Reply, home: str) -> Served:
        """What the answer to hello says that came from `home`. Raises RunnelError where it says nothing."""
        told = reply.server
        if told is None:
            raise RunnelError(f"the daemon's answer to {reply.op!r} lacks what was asked for")
        return cls(
            version=told.version,
            boot_id=told.boot_id,
            inputs=undescribe(told.inputs, told.input_rate),
            outputs=undescribe(told.outputs, told.output_rate),
            latency=told.latency,
            limits={name: getattr(told.limits, name) for name in told.limits.__struct_fields__},
            worker=told.worker,
            workers=tuple(beside(address, home) for address in told.workers),
            pipeline=told.pipeline,
            stages=tuple(told.stages),
            state_bytes=told.state_bytes,
        )

    def address_of(self, stream: str) -> str | None:
        """The worker that a stream of that name lives at; None: the one that told this."""
        if len(self.workers) < 2:
            return None
        index = worker_of(stream, len(self.workers))
        return None if index == self.worker else self.workers[index]

    def addresses(self, home: str) -> list[str]:
        """Every worker's address, in order; `home` is that of the one that told this."""
        if len(self.workers) < 2:
            return [home]
        return [home if i == self.worker else address for i, address in enumerate(self.workers)]

    def window(self, wanted: int) -> int:
        """A stream's unanswered requests: no more than can be answered again, if all replies are lost."""
        return max(1, min(wanted, int(self.limits["kept_replies"])))

    def tensors(self, chunk: Array | Chunk) -> Tensors:
        """A chunk as a request holds it. Raises ChunkError for what is none."""
        if isinstance(chunk, np.ndarray):
            names = self.inputs.names
            if len(names) != 1:
                raise ChunkError(
                    f"this pipeline has {len(names)} inputs: give a dict of arrays with {self.inputs}"
                )
            return pack({names[0]: chunk})
        if not isinstance(chunk, Mapping):
            raise ChunkError(f"a chunk is a numpy array or a dict of them, not {type(chunk).__name__}")
        return pack(chunk)


class Handle:
    """What a stream in a daemon is, whoever waits for its replies."""

    __slots__ = ("_closed", "_infos", "_kind", "_line", "_served", "_waiting", "_window")

    def __init__(self, line: Line, served: Served, window: int) -> None:
        self._line = line
        self._served = served
        self._window = served.window(window)
        self._waiting: deque[tuple[Ticket, bool]] = deque()  # sent; and whether the chunk was one array
        self._closed = False
        self._kind: tuple[tuple[int, ...], np.dtype[Any]] | None = None  # of the last chunk, one array
        self._infos: list[messages.TensorInfo] = []  # what a request said of it

    @property
    def id(self) -> str:
        """The stream's name."""
        return self._line.name

    @property
    def seq(self) -> int:
        """The last request applied to it, as the daemon last told: chunks, flushes and resets count."""
        return self._line.applied

    @property
    def outstanding(self) -> int:
        """Chunks sent whose results were not received."""
        return len(self._waiting)

    def _tensors(self, chunk: Array | Chunk) -> Tensors:
        """A chunk as a request holds it. Raises ChunkError, StreamClosedError."""
        self._check_open()
        if not isinstance(chunk, np.ndarray):
            return self._served.tensors(chunk)
        kind = chunk.shape, chunk.dtype
        if kind == self._kind:  # like the last one, as all day long: only the numbers differ
            return self._infos, [chunk.tobytes()]
        infos, buffers = self._served.tensors(chunk)
        if sys.byteorder == "little" and chunk.dtype.isnative:  # then the wire's bytes are the array's
            self._kind, self._infos = kind, infos
        return infos, buffers

    def _steps(self, steps: int) -> int:
        """A number of steps without input. Raises ChunkError, StreamClosedError."""
        self._check_open()
        Steps(steps).check()
        return int(steps)

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError(f"stream {self.id!r} is closed: open it anew")

    def _nothing_sent(self) -> StreamError:
        return StreamError(f"stream {self.id!r} has no result to receive: send a chunk first")

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"<{name} {self.id!r}, {'closed' if self._closed else f'seq {self.seq}'}>"


class Flight:
    """The chunks of one `feed_many`: their results, in the order given, and those on their way."""

    def __init__(self, chunks: int) -> None:
        self.results: list[Any] = [None] * chunks
        self.flying: deque[tuple[int, Handle, Ticket, bool]] = deque()
        self.quiet: TimeoutError | None = None  # the daemon is: nothing more is sent, nor waited for

    def held_back(self, stream: Handle) -> bool:
        """Whether a result must be taken before the stream's next chunk is sent."""
        return bool(self.flying) and (
            len(self.flying) >= IN_FLIGHT or len(stream._line.unanswered) >= stream._window
        )

    def land(self) -> None:
        """Take the oldest, which is settled."""
        at, _, ticket, bare = self.flying.popleft()
        try:
            self.results[at] = outputs(ticket, bare)
        except RunnelError as error:
            self.results[at] = error
            if isinstance(error, TimeoutError):
                self.quiet = error


def full_window(stream: Handle) -> LimitError:
    """Chunks were sent, and no result was received."""
    return LimitError(
        f"stream {stream.id!r}: {stream.outstanding} results are outstanding, which is its window: "
        "receive some before sending more"
    )


def outputs(ticket: Ticket, bare: bool) -> Out:
    """What an answered request's reply holds; `bare`: an array alone where there is one output."""
    arrays = unpack(ticket.answer().outputs, ticket.payload)
    if bare and len(arrays) == 1:
        return next(iter(arrays.values()))
    return arrays


def snapshot_of(ticket: Ticket) -> bytes:
    """The blob in the answer to `snapshot`."""
    reply = ticket.answer()
    if [info.name for info in reply.outputs] != [SNAPSHOT]:
        raise RunnelError("the daemon's answer to 'snapshot' lacks what was asked for")
    return bytes(ticket.payload[0])


def check_client(address: str, timeout: float, window: int, keyed: bool = False) -> str:
    """The address, checked, as are the other two. Raises UsageError."""
    text = parse(address, keyed).text
    if text.endswith(":*"):
        raise UsageError(f"address {address!r}: a client needs the port that the daemon has")
    if not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT:
        raise UsageError(
            f"timeout must be a positive number of seconds, {MAX_TIMEOUT} at most, not {timeout!r}"
        )
    if not isinstance(window, int) or window < 1:
        raise UsageError(f"window must be a positive number of chunks, not {window!r}")
    return text


def check_name(name: str) -> str:
    """A stream's name, checked: an empty one would ask the daemon to make one. Raises StreamError."""
    if not isinstance(name, str) or not 1 <= len(name) <= messages.MAX_ID or not name.isprintable():
        raise StreamError(f"a stream's id is 1 to {messages.MAX_ID} printable characters, not {name!r:.80}")
    return name


def random_epoch() -> int:
    """63 bits with the highest set: never 0, never one that a daemon counts up to, always as long."""
    return secrets.randbits(62) | 1 << 62


def silence(address: str, timeout: float) -> TimeoutError:
    """No reply came."""
    return TimeoutError(
        f"no reply from {address} within {timeout:g} s: is the daemon running there "
        f"(runnel serve PIPELINE --bind {address}), and is it not overloaded? "
        "One that has keys answers those on its list alone, and only if `server` is its key (runnel keys)"
    )


def closed(address: str) -> UsageError:
    return UsageError(f"this client of {address} is closed: make another")
