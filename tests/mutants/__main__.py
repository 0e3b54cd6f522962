"""Take each bound and promise of the table out of a copy of the code: the tests that it names must fail.

    python -m tests.mutants                 all of them: minutes
    python -m tests.mutants MAX_PENDING     those whose promise or file contains one of the words

Exit status 1 if a mutant was not noticed, if it no longer applies, or if its tests fail without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from .table import ROOT, Mutant, read

JOBS: Final = 2  # as `make test`: some tests use a core each
SECONDS: Final = 600.0  # for the tests of one mutant: far more than they take; a mutant may make them hang
PARTS: Final = ("engine", "plugins", "export", "tests", "deploy", "locks")  # folders that tests read
_PASSED, _FAILED = 0, 1  # pytest's exit status; any other says that the tests did not run


def main(words: Sequence[str]) -> int:
    mutants = [
        mutant for mutant in read() if not words or any(w in mutant.promise + mutant.file for w in words)
    ]
    if not mutants:
        print(f"no mutant has any of {', '.join(words)} in its promise or its file", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="runnel-mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for job in range(JOBS):
            copies.put(_copy(Path(folder, str(job))))

        def judge(mutant: Mutant | tuple[str, ...]) -> str:
            copy = copies.get()
            try:
                return _unmutated(copy, mutant) if isinstance(mutant, tuple) else _noticed(copy, mutant)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(JOBS) as pool:
            # Without a change all the tests pass: else a mutant would be noticed for another reason.
            wrong = [why for why in pool.map(judge, _files(mutants)) if why]
            if not wrong:
                for mutant, why in zip(mutants, pool.map(judge, mutants), strict=True):
                    print(
                        f"{'NOT OK ' if why else 'noticed'}  {mutant.promise}{why and ': '}{why}", flush=True
                    )
                    wrong += [f"{mutant.promise}: {why}"] if why else []
    if wrong:
        print(f"\n{len(wrong)} of {len(mutants)} mutants:", *wrong, sep="\n  ", file=sys.stderr)
        return 1
    print(f"{len(mutants)} mutants, all noticed")
    return 0


def _files(mutants: Iterable[Mutant]) -> list[tuple[str, ...]]:
    """All tests that are named, each once."""
    return [(name,) for name in sorted({name for mutant in mutants for name in mutant.tests})]


def _copy(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, folder)
    return folder


def _unmutated(copy: Path, tests: tuple[str, ...]) -> str:
    """Why the tests say nothing: they do not pass as the code is; "" if they do."""
    status, output = _pytest(copy, tests)
    return "" if status == _PASSED else f"{' '.join(tests)}: without a mutant, status {status}:\n{output}"


def _noticed(copy: Path, mutant: Mutant) -> str:
    """What is wrong with a mutant: the tests did not notice it, or did not run; "" if nothing."""
    file = copy / mutant.file
    whole = file.read_text()
    try:
        file.write_text(mutant.applied(copy))
        status, output = _pytest(copy, mutant.tests)
    except ValueError as error:
        return f"no longer applies: {error}"
    finally:
        file.write_text(whole)
    if status == _PASSED:
        return f"not noticed by {' '.join(mutant.tests)}"
    return "" if status in (_FAILED, None) else f"pytest ended with status {status}:\n{output}"


def _pytest(copy: Path, tests: Iterable[str]) -> tuple[int | None, str]:
    """The exit status, None if the time was up, and the end of the output."""
    # The copy comes before the installed Runnel, also in the processes that tests start. Without bytecode: a
    # file that changes twice within a second, and not in length, would pass for the one before.
    paths = os.pathsep.join(map(str, (copy / "engine", copy / "plugins", copy / "export", copy)))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, timeout=SECONDS,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout[-2000:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
