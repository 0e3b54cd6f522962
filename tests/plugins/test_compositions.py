"""The laws of a stream, over random pipelines of the stages that come with Runnel (`compositions`).

Each stage is checked alone by its own tests. What these see is what stages do to each other: rows of one
chunk that are none for the next stage, batches that fall apart in the middle, what the flush of one stage
gives to those behind it. `HYPOTHESIS_PROFILE=soak` tries far more.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from runnel import Engine
from runnel.errors import RunnelError
from tests import laws
from tests.plugins.compositions import Drawn, generators, loops, pipelines

Chunk = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compositions")


def load(folder: Path, drawn: Drawn) -> Engine:
    note(drawn.text)
    path = folder / "pipeline.toml"
    path.write_text(drawn.text, "utf-8")
    return Engine.load(path, max_streams=20)


def same(one: Chunk, other: Chunk) -> None:
    """Floats within the rounding of their peak, all else equal."""
    assert one.keys() == other.keys()
    for name, a in one.items():
        b = other[name]
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        if a.dtype.kind != "f":
            np.testing.assert_array_equal(a, b, err_msg=name)
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        peak = np.max(np.abs(a), initial=1e-6, where=np.isfinite(a))
        tolerance = peak * (2e-5 if one[name].itemsize > 2 else 2e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)


def identical(one: Any, other: Any) -> None:
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


steps = st.integers(2, 160)
seeds = st.integers(0, 99)


def drawn_from(folder: Path) -> st.SearchStrategy[Drawn]:
    """Mostly rows, sometimes loops: each of the laws holds for both."""
    plain = pipelines(folder)
    return st.one_of(plain, plain, plain, loops(), generators(folder))


@given(data=st.data())
def test_chunking(folder: Path, data: st.DataObject) -> None:
    drawn = data.draw(drawn_from(folder))
    with load(folder, drawn) as engine:
        chunk = drawn.data(data.draw(steps), data.draw(seeds))
        whole = laws.whole(engine, chunk)
        with engine.open() as stream:
            outs = [stream.feed(piece) for piece in laws.pieces(chunk, data.draw(laws.cuts))]
            same(laws.joined([*outs, laws.flushed(stream)]), whole)


@given(data=st.data())
def test_isolation(folder: Path, data: st.DataObject) -> None:
    """Up to eight streams in batches as they come: some with other lengths, some with nothing to say."""
    drawn = data.draw(drawn_from(folder))
    with load(folder, drawn) as engine:
        count, seed = data.draw(st.integers(1, 8)), data.draw(seeds)
        chunks = [drawn.data(data.draw(steps), seed + i) for i in range(count)]
        even = data.draw(st.booleans())  # chunks of one size, as live ones are: whole batches
        queues = [
            laws.pieces(chunk, list(range(7, laws.length(chunk), 7)) if even else data.draw(laws.cuts))
            for chunk in chunks
        ]
        streams = [engine.open() for _ in chunks]
        outs: list[list[Chunk]] = [[] for _ in chunks]
        while any(queues):
            ready = [i for i, queue in enumerate(queues) if queue]
            if not even:
                ready = data.draw(st.permutations(ready))
            done = engine.feed_many([(streams[i], queues[i].pop(0)) for i in ready])
            for i, out in zip(ready, done, strict=True):
                assert not isinstance(out, RunnelError), out
                outs[i].append(out)
        for stream, mine, chunk in zip(streams, outs, chunks, strict=True):
            same(laws.joined([*mine, laws.flushed(stream)]), laws.whole(engine, chunk))
            stream.close()


def spoilt(chunk: Chunk, how: str) -> Chunk:
    """The chunk with one fault; the same, where it has nothing that could have it."""
    bad = {name: array.copy() for name, array in chunk.items()}
    name = next(iter(bad))
    if how == "dtype":
        bad[name] = bad[name].astype(np.complex64)
    elif how == "shape":
        bad[name] = bad[name][:, None]
    elif how == "length":
        bad = {name: array[:0] for name, array in bad.items()}
    else:
        for array in bad.values():
            if array.dtype.kind == "f":
                array[-1] = {"nan": np.nan, "inf": np.inf, "huge": np.finfo(array.dtype).max}[how]
            elif array.dtype.kind in "iu":
                array[-1] = np.iinfo(array.dtype).max
    return bad


@given(data=st.data(), how=st.sampled_from(["nan", "nan", "inf", "huge", "dtype", "shape", "length"]))
def test_commit(folder: Path, data: st.DataObject, how: str) -> None:
    """A chunk that fails leaves every byte of the snapshot, alone and among others, who notice nothing."""
    drawn = data.draw(drawn_from(folder))
    with load(folder, drawn) as engine, np.errstate(all="ignore"):
        chunk = drawn.data(data.draw(steps), data.draw(seeds))
        at = data.draw(st.integers(1, laws.length(chunk) - 1))
        stream, other, twin = engine.open(), engine.open(), engine.open()
        first = stream.feed(laws.cut(chunk, 0, at))
        before = stream.snapshot()
        bad = spoilt(laws.cut(chunk, at), how)
        failed = None
        try:
            stream.feed(bad)
        except RunnelError as error:
            failed = type(error)
            assert stream.snapshot() == before
        assert failed or how in ("nan", "inf", "huge")
        stream.rewind(before)
        neighbour = drawn.data(at, 100)
        result, fine = engine.feed_many([(stream, bad), (other, neighbour)])
        if failed:
            assert type(result) is failed
            assert stream.snapshot() == before
        else:
            stream.rewind(before)
        assert not isinstance(fine, RunnelError), fine
        same(fine, twin.feed(neighbour))
        same(laws.flushed(other), laws.flushed(twin))
        outs = [first, stream.feed(laws.cut(chunk, at)), laws.flushed(stream)]
        same(laws.joined(outs), laws.whole(engine, chunk))
        for one in (stream, other, twin):
            one.close()


@given(data=st.data())
def test_return(folder: Path, data: st.DataObject) -> None:
    """Restored, taken back or reset, a stream gives the very same numbers again."""
    drawn = data.draw(drawn_from(folder))
    with load(folder, drawn) as engine:
        chunk = drawn.data(data.draw(steps), data.draw(seeds))
        at = data.draw(st.integers(1, laws.length(chunk) - 1))
        first, second = laws.cut(chunk, 0, at), laws.cut(chunk, at)
        stream, fresh = engine.open(), engine.open().snapshot()
        begun = stream.feed(first)
        blob = stream.snapshot()
        rest, end = stream.feed(second), laws.flushed(stream)
        ended = stream.snapshot()
        copy = engine.restore(blob)
        assert copy.snapshot() == blob
        for again in (copy, stream):  # the stream itself goes back, even from its end
            again.rewind(blob)
            assert again.snapshot() == blob
            identical(rest, again.feed(second))
            identical(end, laws.flushed(again))
            assert again.snapshot() == ended
        again = engine.restore(ended)
        assert again.ended
        for one in (stream, copy, again):
            one.reset()
            assert one.snapshot() == fresh
            identical(begun, one.feed(first))
            assert one.snapshot() == blob


@given(data=st.data())
def test_latency_and_rate(folder: Path, data: st.DataObject) -> None:
    """The pipeline's latency is when rows come out, to a row of its stages; its rate is their number."""
    drawn = data.draw(pipelines(folder))
    with load(folder, drawn) as engine, engine.open() as stream:
        pipeline = engine.pipeline
        per_step, slack, told = Fraction(1), Fraction(0), True  # input steps a row, by now
        for stage in pipeline.stages:
            if stage.ratio is None:
                return  # its rows come when they come
            up, down = stage.ratio
            slack += per_step * max(1, math.ceil(Fraction(down, up)))
            per_step *= Fraction(down, up)
            told = told and stage.name != "smooth"  # a median is late without holding anything back
        if pipeline.inputs.rate is not None:
            assert pipeline.outputs.rate == pytest.approx(pipeline.inputs.rate / float(per_step))
        count = data.draw(st.integers(40, 160))
        chunk, rows, held = drawn.data(count, 0), 0, Fraction(0)
        for t in range(count):
            made = laws.length(stream.feed(laws.cut(chunk, t, t + 1)))
            assert (rows + made - 1) * per_step <= t + slack or not made, "a row came too early"
            held = max([held, *(t - (rows + i) * per_step for i in range(made))])
            rows += made
            assert rows * per_step > t - pipeline.latency - slack or t == count - 1, "a row came too late"
        if rows and told:
            assert pipeline.latency <= held + slack, "no row is so late"


@given(data=st.data())
def test_generate(folder: Path, data: st.DataObject) -> None:
    """Many steps at once or one by one, alone or beside others, from any point on: the same."""
    drawn = data.draw(generators(folder))
    with load(folder, drawn) as engine:
        streams = [engine.open() for _ in range(data.draw(st.integers(1, 4)))]
        counts = [data.draw(st.integers(1, 12)) for _ in streams]
        for i, stream in enumerate(streams):
            if data.draw(st.booleans()):
                stream.feed(drawn.data(data.draw(steps), i))
        blobs = [stream.snapshot() for stream in streams]
        wholes = engine.generate_many(list(zip(streams, counts, strict=True)))
        for stream, blob, count, whole in zip(streams, blobs, counts, wholes, strict=True):
            stream.rewind(blob)
            parts = [stream.generate(1) for _ in range(count)]
            same(laws.joined(parts), whole)
