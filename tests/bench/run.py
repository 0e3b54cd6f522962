"""One row: measured, skipped or failed, and never in the way of the others."""

from __future__ import annotations

import cProfile
import pstats
import time
from pathlib import Path

from .kit import Kit
from .measure import Loop, calls_in, undisturbed
from .report import Outcome, Row, SkipRow

HOT = 10  # functions named for a bar that was missed
PROFILED_SECONDS = 0.5


def run(row: Row, kit: Kit) -> Outcome:
    """Measure a row; whatever it raises becomes its outcome."""
    try:
        outcome = Outcome(row, row.run(kit))
        measured = outcome.measured
        if not outcome.missed or measured is None:
            return outcome
        hot = measured.hot or (hottest(measured.profile) if measured.profile else ())
        return Outcome(row, measured, hot=hot)
    except SkipRow as reason:
        return Outcome(row, skipped=str(reason))
    except Exception as error:
        lines = str(error).replace(str(kit.folder), "…").splitlines() or [""]
        return Outcome(row, failed=f"{type(error).__name__}: {lines[0]}")


def hottest(loop: Loop) -> list[str]:
    """The functions with the most time of their own, as lines of a list."""
    profiler = cProfile.Profile()
    with undisturbed():
        calls = calls_in(loop, PROFILED_SECONDS, time.perf_counter)
        profiler.runcall(loop, calls)
    stats = pstats.Stats(profiler)
    total = stats.total_tt  # type: ignore[attr-defined]
    spent = sorted(stats.stats.items(), key=lambda item: -item[1][2])  # type: ignore[attr-defined]
    return [
        f"- {own / total:4.0%} `{name}`" + ("" if file == "~" else f" in {Path(file).name}:{line}")
        + f", {count / calls:g} a call"
        for (file, line, name), (_, count, own, _, _) in spent[:HOT]
    ]  # fmt: skip
