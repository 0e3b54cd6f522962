"""Watch this machine's own sensors live, and plant a burst of load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runnel.errors import RunnelError
from runnel.spec import Array

GRACE = 30.0  # further seconds that the run may take to start and to end
MOST_CORES = 256

_BUSY = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"


@dataclass(frozen=True)
class Plan:
    rate: float  # Hz
    warm_up: int  # rows for learning only, without alarms
    quiet: int  # rows between the warm-up and the burst
    burst: float  # seconds
    seconds: float  # duration of the whole run


@dataclass(frozen=True)
class Seen:
    """Output of `runnel run`, one row per tick.

    `time` (n,): seconds since 1970. `load` (n, 2), percent, and `unusual` (n, 2), bool: processor and memory.
    The burst was from `begin` to `end`.
    """

    time: Array
    load: Array
    unusual: Array
    begin: float
    end: float
    tick: float

    @property
    def during(self) -> Array:
        """Return (n,) bool: the ticks that measure some of the burst, and one tick more.

        A tick measures the load since the tick before. The busy loops start and end a little late.
        """
        during: Array = (self.time > self.begin) & (self.time - 2 * self.tick < self.end)
        return during

    @property
    def delay(self) -> float | None:
        """Seconds from the begin of the burst to the first row with an alarm for the processor."""
        at = self.time[self.during & self.unusual[:, 0]]
        return float(at[0] - self.begin) if len(at) else None

    @property
    def elsewhere(self) -> int:
        """Number of rows outside the burst that have an alarm."""
        return int(self.unusual[~self.during].any(axis=1).sum())


def watch(pipeline: Path, plan: Plan) -> Seen:
    """Run the pipeline by `runnel run`. After its warm-up, keep all processors busy for a while."""
    command = [sys.executable, "-m", "runnel.cli.main", "run", str(pipeline)]
    command += ["-o", "jsonl:", "--quiet", "--for", f"{plan.seconds:g}s"]
    rows: list[dict[str, object]] = []
    busy: list[subprocess.Popen[bytes]] = []
    begin = end = float("nan")
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        ) as process,
        killed_after(process, plan.seconds + GRACE),
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                rows.append(json.loads(line))
                if len(rows) == plan.warm_up + plan.quiet:
                    begin = time.time()
                    end = begin + plan.burst
                    busy = load(plan.burst)
            told = process.stderr.read()
        except BaseException:
            process.kill()
            for other in busy:
                other.kill()
            raise
        finally:
            for other in busy:
                other.wait()
    if process.returncode or len(rows) <= plan.warm_up + plan.quiet:
        raise RunnelError(f"{pipeline}: the live run ended with status {process.returncode}: {told.strip()}")
    arrays = {name: np.array([row[name] for row in rows]) for name in ("time", "load", "anomaly")}
    return Seen(arrays["time"], arrays["load"], arrays["anomaly"].astype(bool), begin, end, 1 / plan.rate)


def load(seconds: float) -> list[subprocess.Popen[bytes]]:
    """Start one busy loop for each processor. Each ends by itself."""
    cores = min(os.cpu_count() or 1, MOST_CORES)
    command = [sys.executable, "-S", "-c", _BUSY, str(seconds)]
    return [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(cores)]  # silent on Ctrl-C


@contextmanager
def killed_after(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """Kill the process after `seconds`, so that a run that hangs does not block the recipe."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
