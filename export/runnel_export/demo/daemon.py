"""Run `runnel serve` as a child process."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runnel import Client
from runnel.errors import RunnelError

_START_WITHIN = 30.0  # seconds to start; the machine may be busy with training
_STOP_WITHIN = 10.0  # seconds to answer what has arrived


@contextmanager
def daemon(pipeline: Path, *flags: str) -> Iterator[str]:
    """Serve the pipeline in this context, and yield the daemon's address. `flags`: further arguments.

    On leaving, the daemon is stopped. Raises RunnelError if it does not start, or does not stop cleanly.
    """
    with tempfile.TemporaryDirectory(prefix="runnel-") as folder:  # a socket's path has at most 107 bytes
        address = f"ipc://{folder}/d.sock"
        with _served(pipeline, address, flags):
            yield address


@contextmanager
def _served(pipeline: Path, address: str, flags: Sequence[str]) -> Iterator[None]:
    command = [sys.executable, "-m", "runnel.cli.main", "serve", str(pipeline), "--bind", address, *flags]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + _START_WITHIN
        while True:
            try:
                with Client(address, timeout=0.5) as client:
                    client.describe()
                break
            except RunnelError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RunnelError(f"the daemon did not come up: {' '.join(command)}") from None
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
    if status:
        raise RunnelError(f"the daemon ended with status {status}")
