"""The four laws of a stream, as checks on any engine: used over hand-made, exported and foreign models.

The reference is a single stream fed in one piece, which the callers compare with an oracle of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import strategies as st

from runnel import Engine, Stream
from runnel.errors import RunnelError
from runnel.pipeline.pipeline import Pipeline

Chunk = Mapping[str, np.ndarray]


def length(chunk: Chunk) -> int:
    return len(next(iter(chunk.values())))


def cut(chunk: Chunk, start: int, stop: int | None = None) -> dict[str, np.ndarray]:
    return {name: array[start:stop] for name, array in chunk.items()}


def pieces(chunk: Chunk, cuts: list[int]) -> list[dict[str, np.ndarray]]:
    edges = sorted({0, length(chunk), *(c % length(chunk) for c in cuts)})
    return [cut(chunk, a, b) for a, b in itertools.pairwise(edges)]


cuts = st.lists(st.integers(0, 10_000), max_size=12)


def joined(outs: list[Chunk]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([o[name] for o in outs]) for name in outs[0]}


def whole(engine: Engine, chunk: Chunk) -> dict[str, np.ndarray]:
    """One stream, one feed, then the flush."""
    with engine.open() as stream:
        return joined([stream.feed(chunk), flushed(stream)])


def flushed(stream: Stream) -> dict[str, np.ndarray]:
    return as_dict(stream._pipeline, stream.flush())


def as_dict(pipeline: Pipeline, out: Chunk | np.ndarray) -> dict[str, np.ndarray]:
    return dict(out) if isinstance(out, Mapping) else {pipeline.outputs.names[0]: out}


def close(a: Chunk, b: Chunk, tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].shape == b[name].shape
        np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance)


def same_state(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), f"state {name} changed"


def chunking(engine: Engine, chunk: Chunk, where: list[int], tolerance: float) -> None:
    with engine.open() as stream:
        outs = [stream.feed(piece) for piece in pieces(chunk, where)]
        assert stream.seq == len(outs)
        close(joined([*outs, flushed(stream)]), whole(engine, chunk), tolerance)


def isolation(engine: Engine, chunks: list[Chunk], where: list[list[int]], tolerance: float) -> None:
    """Interleaved in batches as they come, each stream equals itself alone."""
    streams = [engine.open() for _ in chunks]
    queues = [pieces(c, w) for c, w in zip(chunks, where, strict=True)]
    outs: list[list[Chunk]] = [[] for _ in chunks]
    while any(queues):
        ready = [i for i, queue in enumerate(queues) if queue]
        done = engine.feed_many([(streams[i], queues[i].pop(0)) for i in ready])
        for i, out in zip(ready, done, strict=True):
            assert not isinstance(out, RunnelError), out
            outs[i].append(out)
    for stream, mine, chunk in zip(streams, outs, chunks, strict=True):
        close(joined([*mine, flushed(stream)]), whole(engine, chunk), tolerance)
        stream.close()


def commit(engine: Engine, good: Chunk, bad: Chunk, error: type[RunnelError], neighbour: Chunk) -> None:
    """A failed chunk changes nothing, alone or in a batch; the neighbours notice nothing."""
    stream, other, twin = engine.open(), engine.open(), engine.open()
    half = length(good) // 2
    stream.feed(cut(good, 0, half))
    before, seq = stream.state, stream.seq
    with pytest.raises(error):
        stream.feed(bad)
    same_state(before, stream.state)
    assert stream.seq == seq
    failed, fine = engine.feed_many([(stream, bad), (other, neighbour)])
    assert isinstance(failed, error), failed
    same_state(before, stream.state)
    assert stream.seq == seq
    close(as_dict(engine.pipeline, fine), as_dict(engine.pipeline, twin.feed(neighbour)), 1e-6)
    with engine.open() as alone:
        alone.feed(cut(good, 0, half))
        close(stream.feed(cut(good, half)), alone.feed(cut(good, half)), 0)
    for s in (stream, other, twin):
        s.close()


def returning(engine: Engine, chunk: Chunk, at: int) -> None:
    """restore(snapshot(s)) continues exactly; reset equals a new stream."""
    at = at % (length(chunk) - 1) + 1
    stream = engine.open()
    first = stream.feed(cut(chunk, 0, at))
    blob = stream.snapshot()
    copy = engine.restore(blob)
    assert copy.snapshot() == blob
    assert copy.seq == stream.seq
    rest = stream.feed(cut(chunk, at))
    for name, array in copy.feed(cut(chunk, at)).items():
        np.testing.assert_array_equal(array, rest[name])
    stream.reset()
    assert stream.seq == 0
    with engine.open() as fresh:
        same_state(stream.state, fresh.state)
    for name, array in stream.feed(cut(chunk, 0, at)).items():
        np.testing.assert_array_equal(array, first[name])
    stream.close()
    copy.close()
