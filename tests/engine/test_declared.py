"""Foreign models: Silero's three files, each against its own plain loop."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel import Engine
from runnel.errors import NonFiniteError
from tests import laws, silero


def speechlike(samples: int, seed: int = 0) -> np.ndarray:
    """Return noise with a slow envelope, which varies the model's state."""
    rng = np.random.default_rng(seed)
    envelope = np.abs(np.sin(np.arange(samples) / 3000 + seed))
    return (rng.standard_normal(samples) * 0.2 * envelope).astype(np.float32)


@pytest.fixture(scope="module", params=silero.FILES)
def foreign(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Engine]]:
    path = silero.pipeline(tmp_path_factory.mktemp("silero"), request.param)
    with Engine.load(path, max_streams=30) as engine:
        yield request.param, engine


def test_equals_the_plain_loop(foreign: tuple[str, Engine]) -> None:
    name, engine = foreign
    samples = speechlike(40_000)
    found = laws.whole(engine, {"samples": samples})["probability"]
    np.testing.assert_allclose(found, silero.plain_loop(name, samples), atol=1e-6)


def test_the_three_files_differ(tmp_path: object) -> None:
    """So each needs its own oracle."""
    samples = speechlike(20_000)
    a, b, c = (silero.plain_loop(name, samples) for name in silero.FILES)
    assert np.abs(a - c).max() > 1e-4 or np.abs(b - c).max() > 1e-4


def test_signal(foreign: tuple[str, Engine]) -> None:
    _, engine = foreign
    assert str(engine.pipeline.inputs) == "samples: float32 (T) at 16000 Hz"
    assert str(engine.pipeline.outputs) == "probability: float32 (T, 1) at 31.25 Hz"


@settings(max_examples=8)
@given(where=laws.cuts, samples=st.integers(1, 8000))
def test_chunking(foreign: tuple[str, Engine], where: list[int], samples: int) -> None:
    laws.chunking(foreign[1], {"samples": speechlike(samples)}, where, 1e-5)


@settings(max_examples=6)
@given(data=st.data())
def test_isolation(foreign: tuple[str, Engine], data: st.DataObject) -> None:
    chunks = [{"samples": speechlike(data.draw(st.integers(1, 6000)), i)} for i in range(7)]
    laws.isolation(foreign[1], chunks, [data.draw(laws.cuts) for _ in chunks], 1e-5)


@settings(max_examples=8)
@given(at=st.integers(0, 5000))
def test_return(foreign: tuple[str, Engine], at: int) -> None:
    laws.returning(foreign[1], {"samples": speechlike(5000)}, at)


def test_commit(foreign: tuple[str, Engine]) -> None:
    good = {"samples": speechlike(3000)}
    for where in (0, 100, 2999):  # in a window that is run, and in an incomplete one
        bad = {"samples": good["samples"].copy()}
        bad["samples"][where] = np.nan
        laws.commit(foreign[1], good, bad, NonFiniteError, {"samples": speechlike(3000, 3)})
