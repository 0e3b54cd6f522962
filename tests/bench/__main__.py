"""`python -m tests.bench`: measure every row and write RESULTS.md beside this file.

A row that fails is reported as failed, the others go on, and the exit status is 1. A bar that is missed
is a result, not a failure.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch start their pools

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import machine
from .kit import Kit
from .measure import FULL, QUICK
from .report import Outcome, Row, page
from .rows import ROWS
from .run import run

RESULTS = Path(__file__).with_name("RESULTS.md")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", choices=[r.name for r in ROWS])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the time, for development")
    parser.add_argument(
        "--output", type=Path, help="where to write (partial and quick runs: standard output)"
    )
    asked = parser.parse_args(arguments)
    rows: list[Row] = [r for r in ROWS if not asked.only or r.name in asked.only]
    head = machine.describe()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kit = Kit(Path(folder), QUICK if asked.quick else FULL, _say)
        outcomes: list[Outcome] = []
        for row in rows:
            _say(f"{row.name}: {row.what}")
            outcomes.append(run(row, kit))
            _say(f"  {_summary(outcomes[-1])}")
    _say(f"{len(rows)} rows in {time.monotonic() - began:.0f} s")
    text = page(head, outcomes)
    output = asked.output or (None if asked.quick or asked.only else RESULTS)
    if output:
        output.write_text(text)
        _say(f"written to {output}")
    else:
        print(text)
    return 1 if any(o.failed for o in outcomes) else 0


def _summary(outcome: Outcome) -> str:
    bar = f", bar {outcome.bar}: {outcome.verdict}" if outcome.bar else ""
    return (
        f"{outcome.figure}{bar}"
        if outcome.measured
        else f"{outcome.verdict}: {outcome.skipped or outcome.failed}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
