"""Cached replies, their bounds, and the digest by which a repeat is recognised.

Rules of this file: pure. The cache itself is part of `streamtable`, which evicts replies by these bounds.

Theory: a cached reply lets a client repeat a request whose reply was lost: the request is answered again but
not done again. Clients repeat their latest requests, so above the bound the oldest reply is evicted, from the
user who holds the most: no user loses a reply to another who holds more (see `shares`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from msgspec import Struct

from ...wire.messages import TensorInfo
from .transitions import Event

CACHED_REPLIES: Final = 64  # replies per stream: as many requests as a client may have in flight for it
CACHED_SECONDS: Final = 60.0  # longer than a connection takes to come back while its client still waits
MAX_CACHED_BYTES: Final = 64 * 2**20  # bytes, for all streams
CACHED_OVERHEAD: Final = 640  # bytes: Python's objects around a reply's buffers (seen: 610)


class CachedReply(Struct, eq=False, gc=False):
    """A cached reply.

    The garbage collector does not track it, which saves repeated scans. So it must not refer to anything that
    could refer back to it.
    """

    key: str  # of its `StreamRecord`
    user: str
    digest: int
    infos: list[TensorInfo]
    buffers: Sequence[bytes]
    nbytes: int
    at: float


def digest_of(event: Event, inputs: Sequence[TensorInfo], buffers: Sequence[bytes], steps: int = 0) -> int:
    """Hash of a request's event, tensors, bytes, and steps without input, to recognise a repeat.

    Python's keyed 64-bit hash: it never leaves the process, and two requests collide once in 2**64.
    """
    if not inputs:
        return _bare_digest(event, steps)
    if len(inputs) == 1:
        info = inputs[0]
        return hash((event, info.name, info.datatype, *info.shape, buffers[0]))
    return hash((event, steps, *((t.name, t.datatype, *t.shape) for t in inputs), *buffers))


@lru_cache(maxsize=64)
def _bare_digest(event: Event, steps: int) -> int:
    """Share one number between all streams that were opened alike, to save memory."""
    return hash((event, steps))
