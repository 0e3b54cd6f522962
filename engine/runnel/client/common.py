"""Code shared by both clients: the daemon's description, the base of remote streams, tensors. No socket."""

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
from .protocol import SNAPSHOT, ClientStream, PendingRequest

WINDOW: Final = 32  # chunks of a stream in flight: hides the round trip; half of the reply cache
IN_FLIGHT: Final = 512  # requests of feed_many in flight: enough to fill a daemon's batches
HELD: Final = 64  # requests sent together: one batch for the daemon, which runs it while more are made
MAX_TIMEOUT: Final = 86400  # seconds: a day; a poll counts milliseconds in 32 bits

Out = Any  # dict[str, Array], or one Array if the chunk was one array and the pipeline has one output
Tensors = tuple[list[messages.TensorInfo], list[bytes]]


@dataclass(frozen=True, slots=True)
class Served:
    """What a daemon serves."""

    version: str  # the daemon's version of runnel
    boot_id: str  # new at each start of the daemon, which loses its streams
    inputs: Signal
    outputs: Signal
    latency: int  # input time steps
    limits: Mapping[str, float]
    worker: int = 0  # index of the worker that answered
    workers: tuple[str, ...] = ()  # addresses of all workers
    pipeline: str = ""  # fingerprint of the model, the stages and their options
    stages: tuple[str, ...] = ()
    state_bytes: int = 0  # of one stream, in its models

    @classmethod
    def from_reply(cls, reply: messages.Reply, home: str) -> Served:
        """Read the answer to hello from the daemon at `home`. Raises RunnelError if it has no description."""
        description = reply.server
        if description is None:
            raise RunnelError(f"the daemon's answer to {reply.op!r} lacks what was asked for")
        return cls(
            version=description.version,
            boot_id=description.boot_id,
            inputs=undescribe(description.inputs, description.input_rate),
            outputs=undescribe(description.outputs, description.output_rate),
            latency=description.latency,
            limits={name: getattr(description.limits, name) for name in description.limits.__struct_fields__},
            worker=description.worker,
            workers=tuple(beside(address, home) for address in description.workers),
            pipeline=description.pipeline,
            stages=tuple(description.stages),
            state_bytes=description.state_bytes,
        )

    def address_of(self, stream: str) -> str | None:
        """The address of a stream's worker; None if it is the worker that answered."""
        if len(self.workers) < 2:
            return None
        index = worker_of(stream, len(self.workers))
        return None if index == self.worker else self.workers[index]

    def addresses(self, home: str) -> list[str]:
        """Every worker's address, in order; `home` is that of the worker that answered."""
        if len(self.workers) < 2:
            return [home]
        return [home if i == self.worker else address for i, address in enumerate(self.workers)]

    def window(self, wanted: int) -> int:
        """Limit of a stream's unanswered requests: the daemon's cache must hold all their replies."""
        return max(1, min(wanted, int(self.limits["kept_replies"])))

    def tensors(self, chunk: Array | Chunk) -> Tensors:
        """The chunk as tensors of a request. Raises ChunkError."""
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


class RemoteStreamBase:
    """State shared by the threaded and the asyncio remote stream."""

    __slots__ = ("_client_stream", "_closed", "_infos", "_kind", "_served", "_waiting", "_window")

    def __init__(self, stream: ClientStream, served: Served, window: int) -> None:
        self._client_stream = stream
        self._served = served
        self._window = served.window(window)
        self._waiting: deque[tuple[PendingRequest, bool]] = deque()  # and whether the chunk was one array
        self._closed = False
        self._kind: tuple[tuple[int, ...], np.dtype[Any]] | None = None  # set if the last chunk was one array
        self._infos: list[messages.TensorInfo] = []  # its description in a request

    @property
    def id(self) -> str:
        """The stream's name."""
        return self._client_stream.name

    @property
    def seq(self) -> int:
        """The last request applied, as last reported by the daemon: chunks, flushes and resets count."""
        return self._client_stream.applied

    @property
    def outstanding(self) -> int:
        """Number of chunks sent whose results were not received."""
        return len(self._waiting)

    def _tensors(self, chunk: Array | Chunk) -> Tensors:
        """The chunk as tensors of a request. Raises ChunkError, StreamClosedError."""
        self._check_open()
        if not isinstance(chunk, np.ndarray):
            return self._served.tensors(chunk)
        kind = chunk.shape, chunk.dtype
        if kind == self._kind:  # the usual case: only the numbers differ from the last chunk
            return self._infos, [chunk.tobytes()]
        infos, buffers = self._served.tensors(chunk)
        if sys.byteorder == "little" and chunk.dtype.isnative:  # then the array already has the wire's bytes
            self._kind, self._infos = kind, infos
        return infos, buffers

    def _steps(self, steps: int) -> int:
        """Check a number of time steps without input. Raises ChunkError, StreamClosedError."""
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


class InFlight:
    """The chunks of one `feed_many`: results in the order given, and requests in flight."""

    def __init__(self, chunks: int) -> None:
        self.results: list[Any] = [None] * chunks
        self.waiting: deque[tuple[int, RemoteStreamBase, PendingRequest, bool]] = deque()
        self.silent: TimeoutError | None = None  # after a time-out: nothing more is sent or awaited

    def held_back(self, stream: RemoteStreamBase) -> bool:
        """Whether a result must be taken before the stream's next chunk is sent."""
        return bool(self.waiting) and (
            len(self.waiting) >= IN_FLIGHT or len(stream._client_stream.unanswered) >= stream._window
        )

    def take_oldest(self) -> None:
        """Take the oldest request, which is settled."""
        at, _, pending, bare = self.waiting.popleft()
        try:
            self.results[at] = outputs(pending, bare)
        except RunnelError as error:
            self.results[at] = error
            if isinstance(error, TimeoutError):
                self.silent = error


def full_window(stream: RemoteStreamBase) -> LimitError:
    """The error of a stream with too many results to receive."""
    return LimitError(
        f"stream {stream.id!r}: {stream.outstanding} results are outstanding, which is its window: "
        "receive some before sending more"
    )


def outputs(pending: PendingRequest, bare: bool) -> Out:
    """Unpack the reply of an answered request; `bare`: a single output as an array."""
    arrays = unpack(pending.answer().outputs, pending.payload)
    if bare and len(arrays) == 1:
        return next(iter(arrays.values()))
    return arrays


def snapshot_of(pending: PendingRequest) -> bytes:
    """The snapshot in the answer to `snapshot`."""
    reply = pending.answer()
    if [info.name for info in reply.outputs] != [SNAPSHOT]:
        raise RunnelError("the daemon's answer to 'snapshot' lacks what was asked for")
    return bytes(pending.payload[0])


def check_client(address: str, timeout: float, window: int, keyed: bool = False) -> str:
    """Check the address, the time-out and the window, and return the address. Raises UsageError."""
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
    """Check a stream's name; the daemon would replace an empty one. Raises StreamError."""
    if not isinstance(name, str) or not 1 <= len(name) <= messages.MAX_ID or not name.isprintable():
        raise StreamError(f"a stream's id is 1 to {messages.MAX_ID} printable characters, not {name!r:.80}")
    return name


def random_epoch() -> int:
    """A random epoch of 63 bits, the highest set: never 0, nor one that a daemon counts up to."""
    return secrets.randbits(62) | 1 << 62


def silence(address: str, timeout: float) -> TimeoutError:
    """The error of a request that timed out."""
    return TimeoutError(
        f"no reply from {address} within {timeout:g} s: is the daemon running there "
        f"(runnel serve PIPELINE --bind {address}), and is it not overloaded? "
        "One that has keys answers those on its list alone, and only if `server` is its key (runnel keys)"
    )


def closed(address: str) -> UsageError:
    return UsageError(f"this client of {address} is closed: make another")
