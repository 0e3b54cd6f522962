"""The laws of a stream, over random pipelines of the stages that come with Runnel (`compositions`).

Each stage has its own tests. These test the interaction of stages: chunks that give no output for the next
stage, batches that are split in the middle, and the flush of one stage passed to later ones.
`HYPOTHESIS_PROFILE=soak` tries far more.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from runnel import Engine
from runnel.errors import RunnelError
from runnel.laws.trial import play
from runnel.loading import registry as plugins
from runnel.pipeline.pipeline import Pipeline
from tests import laws
from tests.plugins.compositions import Drawn, a_generator, a_loop, a_pipeline

Chunk = dict[str, np.ndarray]


MANY = range(2000 if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else 150)
pytestmark = pytest.mark.parametrize("seed", MANY)


@pytest.fixture(scope="module", autouse=True)
def found_once() -> Iterator[None]:
    """Cache the look-up of plugins, which would take longer than the rest of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "load", functools.cache(plugins.load))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compositions")


def load(folder: Path, drawn: Drawn) -> Engine:
    print(drawn.text)  # pytest shows it if a test fails
    path = folder / "pipeline.toml"
    path.write_text(drawn.text, "utf-8")
    return Engine.load(path, max_streams=20)


def same(one: Chunk, other: Chunk) -> None:
    """Compare floats within the rounding of their peak, all else exactly."""
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


def by_hand(pipeline: Pipeline, chunk: Chunk) -> Chunk:
    """Run a pipeline by definition: each stage gets the whole output of the one before it in one chunk."""
    for stage in pipeline.stages:
        state = stage.open()
        chunk = dict(play(stage, [chunk] if laws.length(chunk) else [], state))
        stage.close(state)
    return chunk


@pytest.fixture
def random(request: pytest.FixtureRequest, seed: int) -> Random:
    """A generator of its own for each test, so that the tests try different pipelines."""
    return Random(f"{request.function.__name__} {seed}")


def any_of(random: Random, folder: Path) -> Drawn:
    """Draw a sequence of stages, or sometimes a loop: each law holds for both."""
    return random.choice((a_pipeline, a_pipeline, a_pipeline, a_pipeline, a_loop, a_generator))(
        random, folder
    )


def steps(random: Random) -> int:
    return random.choice((random.randint(2, 20), random.randint(2, 160)))


def cuts(random: Random) -> list[int]:
    return [random.randrange(10_000) for _ in range(random.randint(0, 12))]


def test_chunking(folder: Path, random: Random) -> None:
    drawn = any_of(random, folder)
    with load(folder, drawn) as engine:
        chunk = drawn.data(steps(random), random.randrange(100))
        whole = laws.whole(engine, chunk)
        same(whole, by_hand(engine.pipeline, chunk))
        with engine.open() as stream:
            outs = [stream.feed(piece) for piece in laws.pieces(chunk, cuts(random))]
            same(laws.joined([*outs, laws.flushed(stream)]), whole)


def test_isolation(folder: Path, random: Random) -> None:
    """Up to eight streams in batches as they come: some of other lengths, some without chunks."""
    drawn = any_of(random, folder)
    with load(folder, drawn) as engine:
        count, first = random.randint(1, 8), random.randrange(100)
        chunks = [drawn.data(steps(random), first + i) for i in range(count)]
        even = random.random() < 0.5  # chunks of one size, as live ones are: whole batches
        queues = []
        for chunk in chunks:
            start = random.choice((7, 7, 3))  # so that the streams are at different points of a cycle
            where = list(range(start, laws.length(chunk), 7)) if even else cuts(random)
            queues.append(laws.pieces(chunk, where))
        streams, sizes = [engine.open() for _ in chunks], [len(queue) for queue in queues]
        outs: list[list[Chunk]] = [[] for _ in chunks]
        while any(queues):
            ready = [i for i, queue in enumerate(queues) if queue]
            if not even:
                random.shuffle(ready)
            done = engine.feed_many([(streams[i], queues[i].pop(0)) for i in ready])
            for i, out in zip(ready, done, strict=True):
                assert not isinstance(out, RunnelError), out
                outs[i].append(out)
        assert [stream.seq for stream in streams] == sizes
        for stream, mine, chunk in zip(streams, outs, chunks, strict=True):
            same(laws.joined([*mine, laws.flushed(stream)]), laws.whole(engine, chunk))
            stream.close()


def spoilt(chunk: Chunk, how: str) -> Chunk:
    """Return the chunk with one fault; unchanged if that fault is not possible."""
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


def test_commit(folder: Path, random: Random) -> None:
    """A failing chunk changes no byte of the snapshot, alone or in a batch, and no neighbour."""
    how = random.choice(("nan", "nan", "inf", "huge", "dtype", "shape", "length"))
    drawn = any_of(random, folder)
    with load(folder, drawn) as engine, np.errstate(all="ignore"):
        chunk = drawn.data(steps(random), random.randrange(100))
        at = random.randint(1, laws.length(chunk) - 1)
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


def test_return(folder: Path, random: Random) -> None:
    """After restore, rewind or reset, a stream gives exactly the same numbers again."""
    drawn = any_of(random, folder)
    with load(folder, drawn) as engine:
        chunk = drawn.data(steps(random), random.randrange(100))
        at = random.randint(1, laws.length(chunk) - 1)
        first, second = laws.cut(chunk, 0, at), laws.cut(chunk, at)
        stream, fresh = engine.open(), engine.open().snapshot()
        begun = stream.feed(first)
        blob = stream.snapshot()
        rest, end = stream.feed(second), laws.flushed(stream)
        ended = stream.snapshot()
        copy = engine.restore(blob)
        assert copy.snapshot() == blob
        for again in (copy, stream):  # the stream itself is rewound, even from its end
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


def test_latency_and_rate(folder: Path, random: Random) -> None:
    """The pipeline's latency is the delay of its output, to within a time step; its rate is their number."""
    drawn = a_pipeline(random, folder)
    with load(folder, drawn) as engine, engine.open() as stream:
        pipeline = engine.pipeline
        per_step, slack, told = Fraction(1), Fraction(0), True  # input steps per time step at this stage
        for stage in pipeline.stages:
            if stage.ratio is None:
                return  # its output is irregular
            up, down = stage.ratio
            # A time step that stands for several comes with the last of them.
            slack += per_step * (max(1, math.ceil(Fraction(down, up))) - 1)
            per_step *= Fraction(down, up)
            told = told and stage.name != "smooth"  # a median is late without holding output back
        if pipeline.inputs.rate is not None:
            assert pipeline.outputs.rate == pytest.approx(pipeline.inputs.rate / float(per_step))
        count = random.randint(40, 160)
        chunk, rows, held = drawn.data(count, 0), 0, Fraction(0)
        for t in range(count):
            made = laws.length(stream.feed(laws.cut(chunk, t, t + 1)))
            assert (rows + made - 1) * per_step < t + slack + per_step or not made, "a row came too early"
            held = max([held, *(t - (rows + i) * per_step for i in range(made))])
            rows += made
            assert rows * per_step > t - pipeline.latency - slack, "a row came too late"
        if rows and told:
            assert pipeline.latency < held + slack + per_step + len(pipeline.stages), "no row is so late"


def test_generate(folder: Path, random: Random) -> None:
    """Steps in one call or several, alone or in a batch, after a prompt in one piece or several."""
    drawn = a_generator(random, folder)
    with load(folder, drawn) as engine:
        streams = [engine.open() for _ in range(random.randint(1, 4))]
        twins = [engine.open() for _ in streams]
        counts = [random.randint(1, 12) for _ in streams]
        for i, (stream, twin) in enumerate(zip(streams, twins, strict=True)):
            if random.random() < 0.5:
                prompt = drawn.data(steps(random), i)
                stream.feed(prompt)
                for piece in laws.pieces(prompt, cuts(random)):
                    twin.feed(piece)
        for _ in range(2):  # and on from there
            wholes = engine.generate_many(list(zip(streams, counts, strict=True)))
            for twin, count, whole in zip(twins, counts, wholes, strict=True):
                same(laws.joined([twin.generate(1) for _ in range(count)]), whole)
        for stream, twin in zip(streams, twins, strict=True):
            same(dict(stream.state), dict(twin.state))
