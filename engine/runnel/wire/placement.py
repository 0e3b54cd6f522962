"""Assignment of streams to workers, the same in the daemon and in every client.

Rules of this file: pure, and fixed. Clients in any language have CRC-32. If the assignment changed, a
stream's chunks would reach a worker that does not know the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32


def worker_of(name: str, workers: int) -> int:
    """Index of the worker of streams with this name: CRC-32 (IEEE 802.3) of its UTF-8."""
    return crc32(name.encode()) % workers if workers > 1 else 0


@dataclass(frozen=True, slots=True)
class Placement:
    """One worker's index, and the addresses of all workers, in order."""

    index: int = 0
    addresses: Sequence[str] = ("",)

    def owns(self, name: str) -> bool:
        return worker_of(name, len(self.addresses)) == self.index
