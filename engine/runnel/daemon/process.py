"""The daemon's process: its engine, its garbage collector, its resource use."""

from __future__ import annotations

import gc
import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import logs

if TYPE_CHECKING:
    from ..engine import Engine
    from .settings import Settings

MOST_FILES: Final = 2**20  # descriptors: Linux' default maximum for a process

_PROC: Final = Path("/proc/self")

# Allocations before a collection, and collections of each generation before the next. Handling a chunk makes
# no reference cycles; an error makes one, of a few hundred objects.
_COLLECT: Final = (50_000, 20, 20)


def load(pipeline: str, settings: Settings, trust: bool) -> Engine:
    """Load the engine, for a process that does nothing but serve it. Raises as `Engine.load`."""
    from ..engine import Engine

    engine = Engine.load(
        pipeline,
        max_streams=settings.max_streams,
        providers=settings.providers or None,
        threads=settings.threads,
        trust=trust,
        flush_denormals=True,
    )
    _freeze_garbage_collector()
    return engine


def _freeze_garbage_collector() -> None:
    """Exclude all objects loaded so far from garbage collection, and make collections rare.

    Otherwise a collection stops the loop for tens of milliseconds (seen: 40) to scan every library's objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)


def hold_standard_files() -> None:
    """Open standard input, output and error if they are closed.

    Otherwise a socket may get their numbers, and libraries write to descriptor 2 even if it is a socket.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def max_files() -> int:
    """The soft limit of open file descriptors; `MOST_FILES` if there is none."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_FILES if limit == resource.RLIM_INFINITY else min(limit, MOST_FILES)


def most_files() -> int:
    """The hard limit of open file descriptors; `MOST_FILES` if there is none."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MOST_FILES if limit == resource.RLIM_INFINITY else min(limit, MOST_FILES)


def raise_files() -> None:
    """Raise the limit of open files as far as allowed: each client takes one or two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_files() -> int:
    """Number of open file descriptors; 0 if the system does not report it."""
    folder = _PROC / "fd"
    try:
        return folder.stat().st_size or len(os.listdir(folder))  # Linux 6.2 reports the number as the size
    except OSError:
        return 0


def gauges() -> dict[str, float]:
    """Memory, processor time, descriptors, lost log lines. What the system does not report is missing."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    found: dict[str, float] = {
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "log_lost": logs.lost_lines(),
        "max_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
    try:
        virtual, resident = (_PROC / "statm").read_text().split()[:2]
        found["virtual_bytes"] = int(virtual) * resource.getpagesize()
        found["resident_bytes"] = int(resident) * resource.getpagesize()
        found["open_files"] = open_files()
        # Field 22 of stat, in clock ticks since the machine started. Search from the end: the name in
        # brackets may contain anything.
        ticks = int((_PROC / "stat").read_text().rpartition(")")[2].split()[19])
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        found["started"] = booted + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        pass  # no /proc, or not that of Linux
    return found
