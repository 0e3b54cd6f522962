"""`runnel serve` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from runnel.daemon.settings import Settings

from .logfmt import parsed


def command(*words: str) -> AbstractContextManager[subprocess.Popen[str]]:
    return _started([sys.executable, "-m", "runnel.cli.main", "serve", *words])


def limited(files: int, *words: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """The same, with a limit of open files."""
    shell = f'ulimit -n {files}; exec "$0" -m runnel.cli.main serve "$@"'
    return _started(["sh", "-c", shell, sys.executable, *words])


@contextmanager
def _started(words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ready(process: subprocess.Popen[str], workers: int = 1) -> str:
    """Wait for the log line that says that it serves; return the address."""
    assert process.stderr
    for line in process.stderr:
        told = parsed(line) if line.startswith("ts=") else {"event": line}
        if told["event"] == ("serving" if workers == 1 else "all workers serve"):
            return told["address"]
    raise AssertionError("it did not serve")


def children(process: subprocess.Popen[str]) -> list[int]:
    """Its child processes, in the order of their starts."""
    return sorted(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def observe_nothing(settings: Settings, addresses: Sequence[str]) -> AbstractContextManager[None]:
    return nullcontext()
