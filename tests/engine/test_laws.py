"""The four laws, as properties, over models written by hand; the oracle is a loop of session.run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Engine
from runnel.errors import NonFiniteError
from tests import laws, models

MODELS = {
    "lstm": models.lstm,
    "counter": models.counter,
    "embedding": models.embedding,
    "stateless": models.stateless,
    "accumulator": models.accumulator,
}


@pytest.fixture(scope="module", params=MODELS)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[models.Hand, Engine]]:
    path: Path = tmp_path_factory.mktemp("laws") / f"{request.param}.onnx"
    hand = MODELS[request.param](path)
    with Engine.load(path, max_streams=40) as engine:
        yield hand, engine
        assert not engine.streams


def test_equals_a_plain_loop(loaded: tuple[models.Hand, Engine]) -> None:
    hand, engine = loaded
    chunk = models.data(hand, 300)
    laws.close(laws.whole(engine, chunk), hand.loop(chunk), 1e-6)


@given(where=laws.cuts, ticks=st.integers(1, 80), seed=st.integers(0, 99))
def test_chunking(loaded: tuple[models.Hand, Engine], where: list[int], ticks: int, seed: int) -> None:
    hand, engine = loaded
    laws.chunking(engine, models.data(hand, ticks, seed), where, 1e-6)


@given(data=st.data(), streams=st.integers(2, 12))
def test_isolation(loaded: tuple[models.Hand, Engine], data: st.DataObject, streams: int) -> None:
    hand, engine = loaded
    chunks = [models.data(hand, data.draw(st.integers(1, 40)), i) for i in range(streams)]
    laws.isolation(engine, chunks, [data.draw(laws.cuts) for _ in chunks], 1e-6)


@given(at=st.integers(0, 100), seed=st.integers(0, 99))
def test_return(loaded: tuple[models.Hand, Engine], at: int, seed: int) -> None:
    hand, engine = loaded
    laws.returning(engine, models.data(hand, 30, seed), at)


@given(tick=st.integers(0, 19), value=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_commit(loaded: tuple[models.Hand, Engine], tick: int, value: float) -> None:
    hand, engine = loaded
    good = models.data(hand, 20)
    bad = {name: array.copy() for name, array in good.items()}
    name = hand.spec.inputs[-1].name
    if bad[name].dtype.kind != "f":
        pytest.skip("tokens have no NaN: see test_stream")
    bad[name][tick] = value
    laws.commit(engine, good, bad, NonFiniteError, models.data(hand, 20, 5))


def test_more_streams_than_have_bindings_of_their_own(tmp_path: Path) -> None:
    """One tick at a time, round robin: the bound rows and the copied rows are the same model."""
    hand = models.lstm(tmp_path / "m.onnx")
    with Engine.load(hand.path, max_streams=20) as engine:
        chunks = [models.data(hand, 6, i) for i in range(20)]
        streams = [engine.open() for _ in chunks]
        outs: list[list[np.ndarray]] = [[] for _ in chunks]
        for tick in range(6):
            for i, stream in enumerate(streams):
                outs[i].append(stream.feed(chunks[i]["x"][tick : tick + 1]))
        for mine, chunk in zip(outs, chunks, strict=True):
            np.testing.assert_allclose(np.concatenate(mine), hand.loop(chunk)["y"], atol=1e-6)
