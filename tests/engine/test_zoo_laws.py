"""The four laws, as properties, over every exported model of the zoo; torch in float64 is the oracle."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel import Engine
from runnel.errors import NonFiniteError
from tests import laws
from tests.export.zoo import ZOO, Case, exported

FEW = settings(max_examples=4 if settings().max_examples < 100 else 100)
TOLERANCE = 2e-5  # between two batches: float32 sums in another order, carried through a state


@pytest.fixture(scope="module", params=ZOO)
def animal(request: pytest.FixtureRequest) -> Iterator[tuple[Case, Engine]]:
    with Engine.load(exported(request.param), max_streams=40) as engine:
        yield ZOO[request.param], engine
        assert not engine.streams


def test_equals_torch(animal: tuple[Case, Engine]) -> None:
    case, engine = animal
    chunk = case.chunk(24)
    wanted = case.reference(chunk)
    found = laws.whole(engine, chunk)
    for name, array in wanted.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(found[name], array, atol=1e-4 * max(1.0, float(np.abs(array).max())))
        else:
            np.testing.assert_array_equal(found[name], array)


@FEW
@given(where=laws.cuts, ticks=st.integers(1, 40), seed=st.integers(0, 99))
def test_chunking(animal: tuple[Case, Engine], where: list[int], ticks: int, seed: int) -> None:
    case, engine = animal
    laws.chunking(engine, case.chunk(ticks, seed), where, TOLERANCE)


@FEW
@given(data=st.data(), streams=st.integers(2, 9))
def test_isolation(animal: tuple[Case, Engine], data: st.DataObject, streams: int) -> None:
    case, engine = animal
    chunks = [case.chunk(data.draw(st.integers(1, 20)), i) for i in range(streams)]
    laws.isolation(engine, chunks, [data.draw(laws.cuts) for _ in chunks], TOLERANCE)


@FEW
@given(at=st.integers(0, 10_000), seed=st.integers(0, 99))
def test_return(animal: tuple[Case, Engine], at: int, seed: int) -> None:
    case, engine = animal
    laws.returning(engine, case.chunk(12, seed), at)


@FEW
@given(tick=st.integers(0, 10_000), value=st.sampled_from([np.nan, np.inf]))
def test_commit(animal: tuple[Case, Engine], tick: int, value: float) -> None:
    case, engine = animal
    good = case.chunk(8)
    floats = [name for name, array in good.items() if array.dtype.kind == "f"]
    if not floats:
        pytest.skip("tokens have no NaN; an index out of range is tested in test_stream")
    bad = {name: array.copy() for name, array in good.items()}
    bad[floats[0]].reshape(-1)[tick % bad[floats[0]].size] = value
    laws.commit(engine, good, bad, NonFiniteError, case.chunk(8, 5))
