"""Memory does not grow as streams come and go, and the check that says so would see a leak.

Through the sans-IO server and the real engine, so that what grows is ours: `make bench` has the same for
the daemon with its sockets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.engine import Engine
from runnel.pipeline import Pipeline
from runnel.stage import Chunk
from tests import models
from tests.growth import ALLOWED, LEAST, grown, grows

from .churning import Leaking, watched

QUICK_STEPS = 40_000
SOAK_STEPS = 5_000_000


def model(folder: Path) -> tuple[Engine, list[Chunk]]:
    rng = np.random.default_rng(0)
    chunks: list[Chunk] = [{"x": rng.standard_normal((1, 3)).astype(np.float32)} for _ in range(7)]
    return Engine.load(models.lstm(folder / "m.onnx").path, max_streams=20_000), chunks


def test_memory_does_not_grow_as_streams_come_and_go(tmp_path: Path) -> None:
    engine, chunks = model(tmp_path)
    with engine:
        assert not grows(watched(engine, chunks, QUICK_STEPS))


def test_a_stage_that_leaks_is_seen_by_the_same_check() -> None:
    engine = Engine(Pipeline([Leaking()], None, {}), max_streams=20_000)
    assert grows(watched(engine, [{"x": np.ones((1, 2), np.float32)}], QUICK_STEPS))


@pytest.mark.soak
def test_memory_does_not_grow_over_five_million_steps(tmp_path: Path) -> None:
    engine, chunks = model(tmp_path)
    with engine:
        assert not grows(watched(engine, chunks, SOAK_STEPS))


@given(st.lists(st.floats(0, ALLOWED / 4), min_size=LEAST), st.floats(2, 1000), st.data())
def test_a_slope_is_growth_and_noise_and_single_peaks_are_not(
    noise: list[float], slope: float, data: st.DataObject
) -> None:
    assert not grows(noise)
    peak = data.draw(st.integers(0, len(noise) - 1))
    if len(noise) >= 3 * 4:  # a quarter of three samples has a median that one cannot move
        assert not grows([n + (100 * ALLOWED if i == peak else 0) for i, n in enumerate(noise)])
    climbing = [n + slope * ALLOWED * i / (LEAST / 2) for i, n in enumerate(noise)]
    assert grows(climbing)
    assert grown(climbing) > ALLOWED


def test_too_few_samples_say_nothing() -> None:
    with pytest.raises(ValueError, match="7 samples; at least 8"):
        grown([0.0] * (LEAST - 1))
