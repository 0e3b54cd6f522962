"""deploy/sizing.md: its memory formula against a daemon's resident memory, its example against both."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from runnel.loadgen.inputs import random_chunks
from runnel.loadgen.remote import MAX_CONNECTIONS, STREAMS_PER_CONNECTION, RemoteTarget, hello
from runnel.wire.tensors import undescribe
from tests import models
from tests.growth import resident

from . import sizing

TOO_LITTLE = 0.1  # of what is measured, at most: a machine sized by the page must not run short
TOO_MUCH = 0.3  # of what is measured, at most: the constants are rounded up


@pytest.mark.parametrize(("hidden", "streams"), [(16, 100), (16, 20_000), (512, 5_000)])
def test_the_memory_formula_says_what_a_daemon_takes(hidden: int, streams: int, tmp_path: Path) -> None:
    model = models.lstm(tmp_path / "m.onnx", hidden=hidden)
    row = sum(math.ceil(state.row_bytes / 64) * 64 for state in model.spec.states)
    address = f"ipc://{tmp_path}/d.sock"
    command = [sys.executable, "-m", "runnel.cli.main", "serve", str(model.path), "--bind", address]
    daemon = subprocess.Popen([*command, "--max-streams", "50000"], stderr=subprocess.DEVNULL)
    try:
        about = hello(address, 60.0)
        chunks = random_chunks(undescribe(about.inputs, about.input_rate), 1)
        with RemoteTarget(address, about, chunks, streams, 60.0):
            measured = resident(daemon.pid)
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)
    clients = min(MAX_CONNECTIONS, math.ceil(streams / STREAMS_PER_CONNECTION))
    predicted = sizing.memory(model.path.stat().st_size, row, streams, clients)
    assert predicted > (1 - TOO_LITTLE) * measured
    assert predicted < (1 + TOO_MUCH) * measured


def test_the_worked_example_follows_from_the_formulas() -> None:
    text = sizing.PAGE.read_text("utf-8")
    memory = sizing.memory(model=2_300_000, row=1024, streams=300, clients=300)
    assert f"{round(memory / 2**20)} MiB, and" in " ".join(text.split())
    message, pipeline = sizing.constant("message") * 1e6, 1e6 / (31.25 * 800)
    held = sizing.streams(31.25, 800)
    assert f"1 / (31.25 × ({message:g} + {pipeline:g}) µs) = {held:.0f}" in text
