"""Fresh processes: how fast it starts, how much memory it takes at its peak."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from .kit import LARGE, Kit
from .measure import Spread
from .report import Measured, Row, SkipRow

CHILDREN = Path(__file__).parent / "children"


def child(script: str, *arguments: str | Path) -> str:
    """What the script prints in a fresh interpreter; RuntimeError with its last words where it fails."""
    done = subprocess.run(
        [sys.executable, str(CHILDREN / script), *map(str, arguments)], capture_output=True, text=True
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"{script} ended with {done.returncode}: {last[0]}")
    return done.stdout


def _imports(kit: Kit) -> Measured:
    path = kit.large.path
    child("imports.py", path)  # writes the byte code
    runs = [json.loads(child("imports.py", path)) for _ in range(2 * kit.effort.children)]
    spent = {
        part: Spread.of([run[part] * 1e3 for run in runs]) for part in ("numpy", "runnel", "engine", "load")
    }
    names = {
        "numpy": "`import numpy`, before",
        "engine": "`from runnel import Engine`, after",
        "load": f"`Engine.load`, {LARGE}, after, onnxruntime's own import included",
    }
    beside = [
        (what, f"{spent[k].median:.1f} ms ({spent[k].low:.1f}–{spent[k].high:.1f})")
        for k, what in names.items()
    ]
    return Measured(spent["runnel"], beside)


def _memory(kit: Kit) -> Measured:
    if not Path("/proc/self/status").exists():
        raise SkipRow("peak memory is read from /proc/self/status, which this system does not have")
    file = kit.large
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(max(3, kit.effort.children // 2)):
        for script, peaks in (("engine_steps.py", ours), ("bare_steps.py", bare)):
            peaks.append(int(child(script, file.path, str(file.features))) / 1024)
    peak_ours, peak_bare = Spread.of(ours), Spread.of(bare)
    ratio = Spread.of([a / b for a, b in zip(ours, bare, strict=True)])
    return Measured(
        ratio, [("the engine", f"{peak_ours.median:.1f} MiB"), ("bare", f"{peak_bare.median:.1f} MiB")]
    )


ROWS = (
    Row(
        "import",
        "`import runnel` beyond importing numpy",
        "In fresh interpreters with warm caches, after numpy; the clock is read around each statement.",
        _imports,
        30,
        "ms",
        digits=2,
    ),
    Row(
        "memory",
        f"peak memory of a process that loads and runs {LARGE} ÷ bare numpy and onnxruntime",
        "VmHWM of fresh processes after 1000 steps (ru_maxrss would inherit the parent's peak).",
        _memory,
        1.2,
    ),
)
