"""Whether a process's memory grows: one rule for the quick test, the soak and the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

MIB: Final = 2**20
ALLOWED: Final = MIB  # bytes: what an allocator's arenas come and go by
LEAST: Final = 8  # samples: below it a quarter is a single one


def grown(samples: Sequence[float]) -> float:
    """By how much the last quarter of the samples lies above the first: medians, so that a peak is none.

    Samples are of equal work, all taken after the warm-up. Raises ValueError for fewer than `LEAST`.
    """
    if len(samples) < LEAST:
        raise ValueError(f"{len(samples)} samples; at least {LEAST} tell a slope from a step")
    quarter = len(samples) // 4
    return median(samples[-quarter:]) - median(samples[:quarter])


def grows(samples: Sequence[float], allowed: float = ALLOWED) -> bool:
    """Whether memory grew past what noise explains. Samples in bytes."""
    return grown(samples) > allowed


def resident(pid: int | str = "self") -> int:
    """Bytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
