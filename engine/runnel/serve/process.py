"""What this process uses, as the system counts it: the gauges that a daemon adds to its stats."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc/self")


def gauges() -> dict[str, float]:
    """Bytes, processor seconds, descriptors. What this system does not tell is left out."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    found: dict[str, float] = {
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "max_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
    try:
        virtual, resident = (_PROC / "statm").read_text().split()[:2]
        found["virtual_bytes"] = int(virtual) * resource.getpagesize()
        found["resident_bytes"] = int(resident) * resource.getpagesize()
        found["open_files"] = len(os.listdir(_PROC / "fd"))
        # The 22nd field of stat, in clock ticks since the machine was started; the name before it, in
        # brackets, may hold anything.
        ticks = int((_PROC / "stat").read_text().rpartition(")")[2].split()[19])
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        found["started"] = booted + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        pass  # no /proc as Linux has it
    return found
