"""A live client beside one that asks for as much as it may."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np

from runnel import Client

from . import serving
from .kit import LARGE, Kit
from .measure import Spread
from .report import Measured, Row, SkipRow
from .rows_process import CHILDREN

HZ = 50
ASKED = (
    "one chunk of 16 MiB", "256 chunks of 1 MiB", "snapshots", "resets", "restores", "questions", "repeats"
)  # fmt: skip
MEMORY = 512  # MiB more than at rest: what one client may cost


def _neighbour(kit: Kit) -> Measured:
    """The worst of all that the greedy client asks for is the figure."""
    if not Path("/proc/self/status").exists():
        raise SkipRow("memory is read from /proc, which this system does not have")
    seconds = min(12.0, kit.effort.messages / 150)
    beside, worst = [], Spread(0.0, 0.0, 0.0)
    for what in ASKED:
        waits, peak, healthy, answered = _beside(kit, what, seconds)
        p50, p99, most = (float(np.percentile(waits, q)) * 1e3 for q in (50, 99, 100))
        if p99 > worst.median:
            worst = Spread(p99, p50, most)
        over = "" if peak <= MEMORY else f", over the bar of {MEMORY}"
        beside.append(
            (
                f"beside {what} ({answered})",
                f"p50 {p50:.1f}, p99 {p99:.1f}, longest {most:.1f} ms; memory + {peak:.0f} MiB{over}; "
                f"{healthy}",
            )
        )
    return Measured(worst, beside)


def _beside(kit: Kit, what: str, seconds: float) -> tuple[list[float], float, str, str]:
    port = serving.free_port()
    with (
        serving.serving(kit, kit.large.path, "--metrics", str(port)) as (address, pid),
        Client(address, timeout=60) as client,
        client.open("live") as stream,
    ):
        tick = np.zeros((1, kit.large.features), np.float32)
        for _ in range(50):
            stream.feed(tick)
        rest = _peak(pid)
        command = [sys.executable, str(CHILDREN / "greedy.py"), what, address, str(seconds)]
        greedy = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(1.0)  # until it has started
        waits, healthy, probes = [], 0, 0
        began = time.monotonic()
        due = began
        while due < began + seconds - 1:
            due += 1 / HZ
            time.sleep(max(0.0, due - time.monotonic()))
            at = max(due, time.monotonic() - 1 / HZ)  # late by its own doing: not the daemon's
            stream.feed(tick)
            waits.append(time.monotonic() - at)
            if len(waits) % HZ == 0:
                probes += 1
                healthy += _healthy(port)
                due = time.monotonic()
        out, err = greedy.communicate(timeout=300)
        if greedy.returncode:
            last = err.strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(f"the greedy client ended with {greedy.returncode}: {last[0]}")
        found = json.loads(out)
        told = ", ".join(f"{count} {code}" for code, count in sorted(found["errors"].items()))
        return waits, _peak(pid) - rest, f"healthy {healthy} of {probes}", told


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _peak(pid: int) -> float:
    """The most memory that the process has had, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


ROWS = (
    Row(
        "neighbour",
        f"one tick at {HZ} Hz beside one client that asks for as much as it may: the worst p99, {LARGE}",
        "`runnel serve` over ipc. In brackets: p50 and the longest wait of that worst case. Memory: the "
        f"daemon's peak above what it had at rest, at most {MEMORY} MiB. `/healthz` is asked once a second.",
        _neighbour,
        20,
        "ms",
        digits=1,
    ),
)
