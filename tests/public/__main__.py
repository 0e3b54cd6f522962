"""`python -m tests.public`: export every case, and write RESULTS.md beside this file.

It runs in the environment that `make public` makes. A case that is refused or faulty is a result, not a
failure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.bench import machine

from .case import GROUPS, Case
from .families import CASES
from .left_out import LEFT_OUT
from .outcome import Outcome, installed
from .report import page, row, rows_of

RESULTS = Path(__file__).with_name("RESULTS.md")
SECONDS = 300.0  # of one case, with its check and its timing


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.public", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", choices=CASES, help="these cases")
    parser.add_argument("--needs", choices=GROUPS, help="the cases of this group")
    parser.add_argument("--no-timing", action="store_true", help="leave out the time a step")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one case")
    parser.add_argument("--update", action="store_true", help="keep the other rows of RESULTS.md")
    parser.add_argument("--output", type=Path, help="where to write (a part of the cases: standard output)")
    asked = parser.parse_args(arguments)
    part = bool(asked.only or asked.needs)
    chosen = [
        case
        for name, case in CASES.items()
        if (not asked.only or name in asked.only) and asked.needs in (None, case.needs)
    ]
    rows = {}
    for number, case in enumerate(chosen, 1):
        outcome = run(case, asked.seconds, timed=not asked.no_timing)
        rows[case.name] = row(case, outcome)
        took = "" if outcome.seconds is None else f" ({outcome.seconds:.1f} s)"
        _say(f"{number}/{len(chosen)} {case.name}: {outcome.result} {outcome.reason[:120]}{took}")
    if asked.update and RESULTS.exists():
        rows = {**rows_of(RESULTS.read_text()), **rows}
    rows = {name: rows[name] for name in CASES if name in rows}
    text = page(machine.describe(), CASES, rows, LEFT_OUT)
    output = asked.output or (None if part and not asked.update else RESULTS)
    if output:
        output.write_text(text)
        _say(f"written to {output}")
    else:
        print(text)
    return 0


def run(case: Case, seconds: float, *, timed: bool) -> Outcome:
    """One case in a process of its own, which is ended after `seconds`."""
    failed = Outcome(case.name, installed(case.package), "fault")
    command = [sys.executable, "-m", "tests.public.child", case.name, *([] if timed else ["--no-timing"])]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            out, err = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return replace(failed, reason=f"took more than {seconds:.0f} s")
    last = (out.strip().splitlines() or [""])[-1]
    if child.returncode or not last.startswith("{"):
        said = (err.strip().splitlines() or ["nothing on standard error"])[-1]
        return replace(failed, reason=f"the process ended with {child.returncode}: {said}")
    return Outcome(**json.loads(last))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
