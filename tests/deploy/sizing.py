"""The formulas of deploy/sizing.md with the constants that the page states."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "deploy" / "sizing.md"
_UNITS = {"MiB": 2**20, "KiB": 2**10, "bytes": 1, "µs": 1e-6}


def constant(name: str) -> float:
    """A constant of the page's tables, in bytes or seconds."""
    [(value, unit)] = re.findall(rf"^\| {name} \| ([\d.]+) (\S+) \|", PAGE.read_text("utf-8"), re.M)
    return float(value) * _UNITS[unit]


def memory(model: int, row: int, streams: int, clients: int) -> float:
    """Bytes of a worker without kept replies and waiting requests; `model`: bytes of its file."""
    return (
        constant("process")
        + 3 * model
        + clients * constant("client")
        + streams * (2 * row + constant("stream"))
    )


def streams(rate: float, in_process: float) -> float:
    """Streams that a worker holds, from those that the pipeline holds in process."""
    return 1 / (rate * (constant("message") + 1 / (rate * in_process)))
