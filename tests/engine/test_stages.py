"""Plugin stages that break the contract: the stream is unchanged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel import Engine, errors
from runnel.loading.loader import load_pipeline
from runnel.pipeline.pipeline import Pipeline
from runnel.spec import Signal, TensorSpec
from runnel.stage import Stage
from tests import laws, models

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
BAD = 5  # a chunk of this many time steps makes the stage misbehave


class Odd(Stage):
    """Passes chunks on and counts them; for a bad chunk it returns the result of `wrong`."""

    name = "odd"

    def __init__(self, signal: Signal, wrong: Callable[[Any, dict[str, Any]], Any]) -> None:
        self.inputs = self.outputs = signal
        self.wrong = wrong

    def initial(self) -> dict[str, Any]:
        return {"n": np.zeros(1, np.int64)}

    def step(self, state: Any, chunk: Any) -> Any:
        if len(next(iter(chunk.values()))) == BAD:
            return self.wrong(state, dict(chunk))
        return {"n": state["n"] + 1}, {k: v * 1 for k, v in chunk.items()}


WRONG: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "nothing": lambda s, c: None,
    "no chunk": lambda s, c: (s, None),
    "an empty dict": lambda s, c: (s, {}),
    "a bare array": lambda s, c: (s, next(iter(c.values()))),
    "another name": lambda s, c: (s, {"q": next(iter(c.values()))}),
    "one name more": lambda s, c: (s, {**c, "q": next(iter(c.values()))}),
    "another dtype": lambda s, c: (s, {k: v.astype(np.float64) for k, v in c.items()}),
    "a narrower array": lambda s, c: (s, {k: v[:, :1] for k, v in c.items()}),
    "no time axis": lambda s, c: (s, {k: v[0] for k, v in c.items()}),
    "a list": lambda s, c: (s, {k: v.tolist() for k, v in c.items()}),
    "a state that is no array": lambda s, c: ({"n": 1}, c),
    "an exception": lambda s, c: 1 / 0,
    "a change of its state": lambda s, c: (s, c, s["n"].__iadd__(1)),
}


@pytest.fixture(params=["before", "after"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Engine]:
    model = load_pipeline(models.lstm(tmp_path / "m.onnx").path, 20, None, 1, False, False).stages[0]

    def make(wrong: Any) -> Engine:
        if request.param == "before":
            return Engine(Pipeline([Odd(model.inputs, wrong), model], None, {}), 20)
        return Engine(Pipeline([model, Odd(model.outputs, wrong)], None, {}), 20)

    return make


@pytest.mark.parametrize("wrong", WRONG)
def test_stage_that_breaks_the_contract(engine: Callable[[Any], Engine], wrong: str) -> None:
    loaded = engine(WRONG[wrong])
    bad = {"x": np.ones((BAD, 3), np.float32)}
    laws.commit(loaded, {"x": X}, bad, errors.StageError, {"x": X})
    with pytest.raises(errors.StageError, match="odd"):
        loaded.open().feed(bad["x"])


def test_a_stage_that_keeps_the_callers_array(tmp_path: Path) -> None:
    """The stream's state must not change if the caller reuses its buffer."""

    class StoresInput(Odd):
        def initial(self) -> dict[str, Any]:
            return {"last": np.zeros((0, 3), np.float32)}

        def step(self, state: Any, chunk: Any) -> Any:
            return {"last": chunk["x"]}, chunk

    signal = Signal((TensorSpec("x", "float32", (3,)),))
    engine = Engine(Pipeline([StoresInput(signal, print)], None, {}))
    stream = engine.open()
    buffer = X.copy()
    for feed in (lambda: stream.feed(buffer), lambda: engine.feed_many([(stream, buffer)])[0]):
        out = feed()
        before = stream.state
        buffer[...] = 9
        laws.same_state(before, stream.state)
        np.testing.assert_array_equal(out, X)
        buffer[...] = X


def test_a_non_finite_number_from_a_stage_is_not_hidden_by_the_cast(tmp_path: Path) -> None:
    """The model's input is checked where it is bound."""
    model = load_pipeline(models.lstm(tmp_path / "m.onnx").path, 4, None, 1, False, False).stages[0]
    row = model.open()
    with pytest.raises(errors.NonFiniteError), np.errstate(over="ignore"):
        model.step(row, {"x": np.full((1, 3), 1e300)})


def test_failing_close_still_frees_the_other_stages(tmp_path: Path) -> None:
    model = load_pipeline(models.lstm(tmp_path / "m.onnx").path, 1, None, 1, False, False).stages[0]

    class Sticky(Odd):
        def close(self, state: Any) -> None:
            raise OSError("stuck")

    engine = Engine(Pipeline([Sticky(model.inputs, print), model], None, {}), 1)
    for _ in range(3):
        with pytest.raises(errors.StageError, match="stuck"):
            engine.open("a").close()
    assert not engine.streams


def test_a_stage_whose_initial_state_fails(tmp_path: Path) -> None:
    class Moody(Odd):
        calls = 0

        def initial(self) -> dict[str, Any]:
            self.calls += 1
            if self.calls > 1:
                raise OSError("not today")
            return {"n": np.zeros(1, np.int64)}

    signal = Signal((TensorSpec("x", "float32", (3,)),))
    stream = Engine(Pipeline([Moody(signal, print)], None, {})).open()
    stream.feed(X)
    before = stream.state
    with pytest.raises(errors.StageError, match="not today"):
        stream.reset()
    laws.same_state(before, stream.state)
    assert stream.seq == 1
