"""Memory does not grow as streams and clients come and go; the same check would see a leak.

Tested through the server without sockets and the real engine, in a process of its own with made-up time; and
through a daemon, more coarsely.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Client
from tests import models
from tests.growth import ALLOWED, LEAST, grown, grows, resident

from .churning import SAMPLES, watched_apart

QUICK_STEPS = 40_000
SOAK_STEPS = 5_000_000
WARM_CLIENTS = 400  # of 16 streams: more than the closed streams that are remembered
CLIENTS = 2000


def test_memory_does_not_grow_as_streams_come_and_go(tmp_path: Path) -> None:
    assert not grows(watched_apart(models.lstm(tmp_path / "m.onnx").path, QUICK_STEPS))


def test_a_stage_that_leaks_is_seen_by_the_same_check() -> None:
    assert grows(watched_apart(None, QUICK_STEPS))


@pytest.mark.soak
def test_memory_does_not_grow_over_five_million_steps(tmp_path: Path) -> None:
    assert not grows(watched_apart(models.lstm(tmp_path / "m.onnx").path, SOAK_STEPS))


@pytest.mark.soak
def test_a_daemons_memory_does_not_grow_as_clients_come_and_go(tmp_path: Path) -> None:
    """Each client opens streams, feeds them and closes them.

    Replies are cached for thousands of closed streams, and their memory is reused in ever new ways. So the
    memory of the process varies more than with made-up time.
    """
    model, address = models.lstm(tmp_path / "m.onnx"), f"ipc://{tmp_path}/d.sock"
    command = [sys.executable, "-m", "runnel.cli.main", "serve", str(model.path), "--bind", address]
    daemon = subprocess.Popen([*command, "--max-streams", "64"], stderr=subprocess.DEVNULL)
    chunk = np.ones((1, 3), np.float32)
    samples: list[float] = []
    try:
        for number in range(WARM_CLIENTS + CLIENTS):
            with Client(address, timeout=60.0) as client:
                streams = [client.open() for _ in range(16)]
                for _ in range(16):
                    outs = client.feed_many([(stream, chunk) for stream in streams])
                    assert all(isinstance(out, np.ndarray) for out in outs)
                for stream in streams:
                    stream.close()
            if number >= WARM_CLIENTS and number % (CLIENTS // SAMPLES) == 0:
                samples.append(resident(daemon.pid))
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)
    assert not grows(samples, 8 * ALLOWED)


@given(st.lists(st.floats(0, ALLOWED / 4), min_size=LEAST), st.floats(2, 1000), st.data())
def test_a_slope_is_growth_but_noise_and_single_peaks_are_not(
    noise: list[float], slope: float, data: st.DataObject
) -> None:
    assert not grows(noise)
    peak = data.draw(st.integers(0, len(noise) - 1))
    if len(noise) >= 3 * 4:  # one sample cannot move the median of a quarter of three
        assert not grows([n + (100 * ALLOWED if i == peak else 0) for i, n in enumerate(noise)])
    climbing = [n + slope * ALLOWED * i / (LEAST / 2) for i, n in enumerate(noise)]
    assert grows(climbing)
    assert grown(climbing) > ALLOWED


def test_too_few_samples_show_nothing() -> None:
    with pytest.raises(ValueError, match="7 samples; at least 8"):
        grown([0.0] * (LEAST - 1))
