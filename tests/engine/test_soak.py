"""Long runs: memory must not grow after a warm-up. `make soak`."""

from pathlib import Path

import numpy as np
import pytest

from runnel import Engine
from tests import models

MIB = 2**20


def resident() -> int:
    """Return the resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def churn(engine: Engine, rounds: int, leak: list[np.ndarray] | None = None) -> None:
    """Open streams, feed them alone and in ragged batches, park, restore, fail, and close them."""
    rng = np.random.default_rng(0)
    for number in range(rounds):
        streams = [engine.open() for _ in range(int(rng.integers(1, 40)))]
        chunks = [rng.standard_normal((int(rng.integers(1, 50)), 3)).astype(np.float32) for _ in streams]
        outs = engine.feed_many(list(zip(streams, chunks, strict=True)))
        bad = chunks[0].copy()
        bad[0] = np.nan
        engine.feed_many([(streams[0], bad), *((s, c[:1]) for s, c in zip(streams, chunks, strict=True))])
        streams[0].feed(chunks[0][:1])
        restored = engine.restore(streams[-1].snapshot())
        restored.flush()
        for stream in (*streams, restored):
            stream.close()
        if leak is not None:
            leak.append(np.concatenate([o.ravel() for o in outs]))
        assert not engine.streams, number


def growth(engine: Engine, leak: list[np.ndarray] | None = None) -> int:
    churn(engine, 2500, leak)  # fills the caches of bindings
    before = resident()
    churn(engine, 2500, leak)
    return resident() - before


@pytest.mark.soak
def test_memory_does_not_grow(tmp_path: Path) -> None:
    with Engine.load(models.lstm(tmp_path / "m.onnx").path, max_streams=100) as engine:
        assert growth(engine) < 3 * MIB


@pytest.mark.soak
def test_check_detects_a_leak(tmp_path: Path) -> None:
    """The same check detects a leak made on purpose: every round's output is stored."""
    with Engine.load(models.lstm(tmp_path / "m.onnx").path, max_streams=100) as engine:
        assert growth(engine, leak=[]) > 3 * MIB
