"""A process that is a daemon: its engine, how its garbage is collected, what the system says it uses."""

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

MOST_FILES: Final = 2**20  # descriptors: what Linux allows a process unless it is told otherwise

_PROC: Final = Path("/proc/self")

# Objects made before the collector looks, and looks of each kind before it looks deeper. A chunk's way makes
# no cycles; an error does, of a few hundred objects.
_COLLECT: Final = (50_000, 20, 20)


def load(pipeline: str, settings: Settings, trust: bool) -> Engine:
    """The engine of this process, which is the daemon's own from now on. Raises as `Engine.load`."""
    from ..engine import Engine

    engine = Engine.load(
        pipeline,
        max_streams=settings.max_streams,
        providers=settings.providers or None,
        threads=settings.threads,
        trust=trust,
        flush_denormals=True,
    )
    _settle()
    return engine


def _settle() -> None:
    """Once all is loaded: keep the collector from looking at that again, and from looking often.

    Else it stops the loop for tens of milliseconds (seen: 40) to look through every library's objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)


def hold_standard_files() -> None:
    """Open what is closed of standard input, output and error, so that no socket gets its number.

    Libraries write to standard error whatever it is.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def max_files() -> int:
    """File descriptors that this process may have open; `MOST_FILES` if there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_FILES if limit == resource.RLIM_INFINITY else min(limit, MOST_FILES)


def most_files() -> int:
    """The same once the process has raised its limit as far as it may."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MOST_FILES if limit == resource.RLIM_INFINITY else min(limit, MOST_FILES)


def raise_files() -> None:
    """Raise the limit of open files as far as this process may: each client takes one or two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_files() -> int:
    """File descriptors that are open. 0 where the system does not tell."""
    folder = _PROC / "fd"
    try:
        return folder.stat().st_size or len(os.listdir(folder))  # Linux 6.2 tells the number as the size
    except OSError:
        return 0


def gauges() -> dict[str, float]:
    """Bytes, processor seconds, descriptors, log lines lost. What this system does not tell is left out."""
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
        # The 22nd field of stat, in clock ticks since the machine was started; the name before it, in
        # brackets, may hold anything.
        ticks = int((_PROC / "stat").read_text().rpartition(")")[2].split()[19])
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        found["started"] = booted + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        pass  # no /proc as Linux has it
    return found
