"""Which of a daemon's workers a stream lives at: the same answer in the daemon and in every client.

Rules of this file: pure, and fixed: a client in any language has CRC-32, and a placement that changed
would send a stream's chunks to a worker that does not know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32


def worker_of(name: str, workers: int) -> int:
    """The index of the worker that streams of this name live at: CRC-32 (IEEE 802.3) of its UTF-8."""
    return crc32(name.encode()) % workers if workers > 1 else 0


@dataclass(frozen=True, slots=True)
class Place:
    """One worker among all: its index and every worker's address, in order."""

    index: int = 0
    addresses: Sequence[str] = ("",)

    def owns(self, name: str) -> bool:
        return worker_of(name, len(self.addresses)) == self.index
