"""A chunk in slices equals the whole chunk, however it is cut, batched, dropped or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import errors
from runnel.engine import Engine
from runnel.pipeline.passage import Passage
from runnel.spec import Array
from runnel.stage import MAX_PASSAGES, Steps
from tests import models

WIDTH = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("passages")
    models.lstm(at / "g.onnx")
    (at / "row.toml").write_text(
        '[input]\nrate = 100\n[model]\npath = "g.onnx"\n'
        '[[before]]\nuse = "smooth"\nweight = 0.5\n[[after]]\nuse = "difference"\nlag = 3\n'
    )
    return at


@pytest.fixture(scope="module", params=["g.onnx", "row.toml"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Engine:
    return Engine.load(folder / request.param, max_streams=256)


def numbers(seed: int, steps: int) -> Array:
    return np.random.default_rng(seed).standard_normal((steps, WIDTH)).astype(np.float32)


def run(engine: Engine, passages: list[Passage], lengths: list[int]) -> list[Array]:
    """Advance all passages together, by these lengths in turn, to their ends."""
    made: list[list[Array]] = [[] for _ in passages]
    at = 0
    while any(passage.left for passage in passages):
        parts = [(i, p) for i, p in enumerate(passages) if p.left]
        steps = lengths[at % len(lengths)]
        at += 1
        results = engine.advance([(p, min(steps, p.left)) for _, p in parts])
        for (i, _), out in zip(parts, results, strict=True):
            assert not isinstance(out, errors.RunnelError), out
            made[i].append(next(iter(out.values())))
    return [np.concatenate(parts) for parts in made]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    counts=st.lists(st.integers(1, 90), min_size=1, max_size=5),
)
def test_slices_equal_the_chunk(engine: Engine, lengths: list[int], counts: list[int]) -> None:
    chunks = [numbers(i, count) for i, count in enumerate(counts)]
    before = [numbers(50 + i, 5) for i in range(len(counts))]
    whole, sliced = [], []
    for chunk, warm in zip(chunks, before, strict=True):
        with engine.open() as stream:
            stream.feed(warm)
            whole.append((stream.feed(chunk), stream.feed(warm), stream.seq))
    streams = [engine.open() for _ in chunks]
    for stream, warm in zip(streams, before, strict=True):
        stream.feed(warm)
    passages = [engine.begin(s, c) for s, c in zip(streams, chunks, strict=True)]
    states = [dict(stream.state) for stream in streams]
    outs = run(engine, passages, lengths)
    for stream, state, passage in zip(streams, states, passages, strict=True):
        assert stream.seq == 1
        for name, array in stream.state.items():
            assert np.array_equal(array, state[name]), "the stream is as it was until the passage lands"
        passage.land()
    for stream, out, warm in zip(streams, outs, before, strict=True):
        sliced.append((out, stream.feed(warm), stream.seq))
        stream.close()
    for (out, more, seq), (slices, after, counted) in zip(whole, sliced, strict=True):
        assert seq == counted
        np.testing.assert_allclose(slices, out, atol=2e-6)
        np.testing.assert_allclose(after, more, atol=2e-6)


@given(at=st.integers(0, 60), interrupted=st.booleans())
def test_a_dropped_passage_leaves_nothing(engine: Engine, at: int, interrupted: bool) -> None:
    used = engine.pipeline.state_bytes
    stream = engine.open()
    stream.feed(numbers(1, 7))
    blob = stream.snapshot()
    for _ in range(3 * MAX_PASSAGES):  # each frees its storage
        passage = engine.begin(stream, numbers(2, 60))
        if at:
            engine.advance([(passage, at)])
        passage.drop(errors.StageError("no reason") if interrupted else None)
        passage.drop()
    assert stream.snapshot() == blob
    assert engine.pipeline.state_bytes == used
    stream.close()


def test_failed_slice_has_its_position_and_leaves_the_stream_unchanged(engine: Engine) -> None:
    stream = engine.open()
    chunk = numbers(3, 50)
    chunk[33, 1] = np.nan
    blob = stream.snapshot()
    passage = engine.begin(stream, chunk)
    [first] = engine.advance([(passage, 20)])
    assert not isinstance(first, errors.RunnelError)
    [second] = engine.advance([(passage, 20)])
    assert isinstance(second, errors.NonFiniteError)
    assert "time steps 20 to 39 of 50" in second.message
    passage.drop(second)
    assert stream.snapshot() == blob
    stream.close()


@pytest.mark.parametrize("change", ["feed", "reset", "close"])
def test_a_passage_of_a_stream_that_moved_on_cannot_land(engine: Engine, change: str) -> None:
    stream = engine.open()
    passage = engine.begin(stream, numbers(4, 8))
    engine.advance([(passage, 8)])
    getattr(stream, change)(*([numbers(5, 1)] if change == "feed" else []))
    seq = stream.seq
    with pytest.raises(errors.StreamError, match="changed"):
        passage.land()
    passage.drop()
    assert stream.seq == seq
    stream.close()


def test_passages_are_bounded(folder: Path) -> None:
    engine = Engine.load(folder / "g.onnx", max_streams=2 * MAX_PASSAGES)
    streams = [engine.open() for _ in range(MAX_PASSAGES + 1)]
    passages = [engine.begin(stream, numbers(6, 3)) for stream in streams[:-1]]
    with pytest.raises(errors.LimitError):
        engine.begin(streams[-1], numbers(6, 3))
    passages[0].drop()
    engine.begin(streams[-1], numbers(6, 3)).drop()


def test_passage_refuses_what_a_stream_refuses(engine: Engine) -> None:
    stream = engine.open()
    bad: list[Any] = [numbers(0, 2).astype(np.float64), np.zeros((0, WIDTH), np.float32), [1.0], Steps(2)]
    for chunk in bad:
        with pytest.raises(errors.ChunkError):
            engine.begin(stream, chunk)
    stream.close()
    with pytest.raises(errors.StreamClosedError):
        engine.begin(stream, numbers(0, 2))
