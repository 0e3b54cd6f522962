"""Requests that take long, done a piece at a time: other streams take their turns between two pieces.

Rules of this file: pure; each piece takes a millisecond or two; nothing is committed before the last one.

Theory: a long request's work is a generator. It yields None where a piece is done, or a `Passage` that it
wants to be stepped by one more slice: what that makes is sent into it, or its error thrown. It returns the
reply's body. Whoever runs it closes it where it is not to go on, and it then lets go of what it holds.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final

import numpy as np

from ...errors import TooLargeError
from ...pipeline.passage import Passage
from ...snapshot import Checksum
from ...spec import Signal
from ...stage import Chunk
from ...wire.messages import TensorInfo
from ...wire.tensors import DATATYPES, pack
from .admission import Body
from .transitions import Event

BLOCK: Final = 2**20  # bytes hashed in one piece: a millisecond
MAX_REPLY_BYTES: Final = 48 * 2**20  # of one reply: three tensors of a request's size; it is kept for repeats

Work = Generator[Passage | None, Chunk, Body]


def digest_in_blocks(
    event: Event, inputs: Sequence[TensorInfo], buffers: Sequence[bytes]
) -> Generator[None, None, int]:
    """What `sequences.digest_of` is for a request of a few kilobytes, for one of megabytes."""
    parts: list[int] = []
    for buffer in buffers:
        view = memoryview(buffer)
        for at in range(0, len(view), BLOCK):
            parts.append(hash(bytes(view[at : at + BLOCK])))
            yield None
    return hash((event, *((t.name, t.datatype, *t.shape) for t in inputs), *parts))


def check_in_blocks(buffers: Sequence[bytes]) -> Generator[None, None, None]:
    """Check the checksum of a large snapshot. Raises SnapshotError."""
    check = Checksum()
    for buffer in buffers:
        view = memoryview(buffer)
        for at in range(0, len(view), BLOCK):
            check.update(view[at : at + BLOCK])
            yield None
    check.end()


class Made:
    """The output of a feed, gathered slice by slice: one growing buffer for each tensor."""

    def __init__(self, outputs: Signal) -> None:
        self._outputs = outputs
        self._buffers = [bytearray() for _ in outputs.tensors]
        self._rows = 0
        self.nbytes = 0

    def add(self, chunk: Chunk) -> None:
        """Add what one slice made. Raises TooLargeError where the reply would pass MAX_REPLY_BYTES."""
        infos, parts = pack({t.name: chunk[t.name] for t in self._outputs.tensors})
        self.nbytes += sum(map(len, parts))
        if self.nbytes > MAX_REPLY_BYTES:
            raise too_large(self.nbytes)
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer += part  # in place, or by the system's moving of pages: never a copy of all of it
        self._rows += infos[0].shape[0]

    def body(self) -> Body:
        infos = [
            TensorInfo(t.name, DATATYPES[np.dtype(t.dtype).name], [self._rows, *t.shape])
            for t in self._outputs.tensors
        ]
        return infos, self._buffers  # type: ignore[return-value]  # nobody writes to them any more


def too_large(nbytes: int, steps: int = 0, most: int = 0) -> TooLargeError:
    """The error for a reply of so many bytes. `steps`: of the chunk; `most`: time steps that would do."""
    if steps and most:
        return TooLargeError(
            f"{steps} time steps make {nbytes} bytes, and at most {MAX_REPLY_BYTES} go in a reply: "
            f"send at most {most} time steps at a time"
        )
    return TooLargeError(
        f"the chunk makes {nbytes} bytes or more, and at most {MAX_REPLY_BYTES} go in a reply: "
        "send smaller chunks"
    )
