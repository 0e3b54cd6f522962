"""Long requests, done piece by piece so that other streams run in between.

Rules of this file: pure; each piece takes a millisecond or two; nothing is committed before the last piece.

Theory: a long request is a generator. After a piece it yields None, or a `Passage` of which it needs one more
slice stepped; the scheduler sends the slice's output into the generator, or throws its error. The generator
returns the reply's body. To abandon a request, close its generator, which then releases what it holds.
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
MAX_REPLY_BYTES: Final = 48 * 2**20  # three tensors of a request's size; the reply is cached too

Job = Generator[Passage | None, Chunk, Body]


def digest_in_blocks(
    event: Event, inputs: Sequence[TensorInfo], buffers: Sequence[bytes]
) -> Generator[None, None, int]:
    """Digest of a large request, made piece by piece; see `replycache.digest_of`."""
    parts: list[int] = []
    for buffer in buffers:
        view = memoryview(buffer)
        for at in range(0, len(view), BLOCK):
            parts.append(hash(bytes(view[at : at + BLOCK])))
            yield None
    return hash((event, *((t.name, t.datatype, *t.shape) for t in inputs), *parts))


def check_in_blocks(buffers: Sequence[bytes]) -> Generator[None, None, None]:
    """Verify the checksum of a large snapshot. Raises SnapshotError."""
    check = Checksum()
    for buffer in buffers:
        view = memoryview(buffer)
        for at in range(0, len(view), BLOCK):
            check.update(view[at : at + BLOCK])
            yield None
    check.end()


class ReplyBuffer:
    """Output of a feed, gathered slice by slice in one growing buffer per tensor."""

    def __init__(self, outputs: Signal) -> None:
        self._outputs = outputs
        self._buffers = [bytearray() for _ in outputs.tensors]
        self._rows = 0
        self.nbytes = 0

    def add(self, chunk: Chunk) -> None:
        """Add the output of one slice. Raises TooLargeError if the reply would exceed MAX_REPLY_BYTES."""
        infos, parts = pack({t.name: chunk[t.name] for t in self._outputs.tensors})
        self.nbytes += sum(map(len, parts))
        if self.nbytes > MAX_REPLY_BYTES:
            raise too_large(self.nbytes)
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer += part  # grows in place, or by remapping pages: never a copy of everything
        self._rows += infos[0].shape[0]

    def body(self) -> Body:
        infos = [
            TensorInfo(t.name, DATATYPES[np.dtype(t.dtype).name], [self._rows, *t.shape])
            for t in self._outputs.tensors
        ]
        return infos, self._buffers  # type: ignore[return-value]  # never written again


def too_large(nbytes: int, steps: int = 0, most: int = 0) -> TooLargeError:
    """Error for a reply of `nbytes`. `steps`: of the chunk; `most`: time steps that would fit."""
    if steps and most:
        return TooLargeError(
            f"{steps} time steps make {nbytes} bytes, and at most {MAX_REPLY_BYTES} go in a reply: "
            f"send at most {most} time steps at a time"
        )
    return TooLargeError(
        f"the chunk makes {nbytes} bytes or more, and at most {MAX_REPLY_BYTES} go in a reply: "
        "send smaller chunks"
    )
