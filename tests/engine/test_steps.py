"""Ticks to steps and rows out of them: the definition, the laws of a stage, bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.checks import check_stage
from runnel.errors import ModelError, NonFiniteError, SnapshotError
from runnel.grouping import Steps
from runnel.model.steps import Collect, Deliver
from runnel.spec import Signal, TensorSpec


def collect(ticks: int, after: int = 0, delay: int = 0) -> Collect:
    inner = Signal(
        (
            TensorSpec("x", "float32", (ticks, 2)),
            TensorSpec("id", "int64", (ticks,)),
            TensorSpec("present", "int32"),
        ),
        50.0 / ticks,
    )
    return Collect(inner, Steps(ticks, 1, delay, after), "present", 50.0)


def deliver(ticks: int, rows: int) -> Deliver:
    inner = Signal(
        (TensorSpec("y", "float32", (rows, 2)), TensorSpec("begun", "int32"), TensorSpec("kept", "int32"))
    )
    return Deliver(inner, Steps(ticks, rows, 0, 0), "begun", "kept", 50.0)


@given(ticks=st.integers(1, 9), after=st.integers(0, 3), length=st.integers(0, 60), data=st.data())
def test_equals_the_definition(ticks: int, after: int, length: int, data: st.DataObject) -> None:
    """Step k has ticks [k*ticks, (k + 1)*ticks); `present` counts those from its first one to the end."""
    stage = collect(ticks, after)
    x = np.random.default_rng(length).standard_normal((length, 2)).astype(np.float32)
    chunk = {"x": x, "id": np.arange(1, length + 1)}
    state, made, at = stage.open(), [], 0
    while at < length:
        size = data.draw(st.integers(0, 25))
        state, out = stage.step(state, {n: a[at : at + size] for n, a in chunk.items()})
        at += size
        assert len(state["x"]) < ticks
        made.append(out)
    made.append(stage.flush(state)[1])
    found = {n: np.concatenate([m[n] for m in made]) for n in stage.outputs.names}
    steps = -(-length // ticks) + after
    filled = np.zeros((steps * ticks, 2), np.float32)
    filled[:length] = x
    np.testing.assert_array_equal(found["x"].reshape(-1, 2), filled)
    np.testing.assert_array_equal(found["id"].ravel()[:length], chunk["id"])
    np.testing.assert_array_equal(found["present"], np.minimum(ticks, length - ticks * np.arange(steps)))


@pytest.mark.parametrize(("ticks", "after"), [(1, 0), (1, 2), (4, 0), (4, 3)])
def test_the_laws_of_a_stage(ticks: int, after: int) -> None:
    check_stage(lambda: collect(ticks, after))
    rows = {
        "y": np.random.default_rng(1).standard_normal((40, ticks, 2)).astype(np.float32),
        "begun": np.zeros(40, np.int32),
        "kept": np.full(40, ticks, np.int32),
    }
    check_stage(lambda: deliver(ticks, ticks), rows)


def test_rows_before_and_after_the_sequence_are_left_out() -> None:
    y = np.arange(16, dtype=np.float32).reshape(4, 2, 2)
    begun, kept = np.array([2, 1, 0, 0], np.int32), np.array([2, 2, 2, 0], np.int32)
    _, out = deliver(4, 2).step({}, {"y": y, "begun": begun, "kept": kept})
    np.testing.assert_array_equal(out["y"], [[6, 7], [8, 9], [10, 11]])


def test_the_rate_behind_it_is_that_of_its_rows() -> None:
    assert deliver(4, 2).outputs.rate == 25.0
    assert deliver(1, 3).outputs.rate == 150.0
    assert collect(4, 1, delay=7).latency == 10


def test_nan_is_refused_before_it_is_held() -> None:
    stage = collect(4)
    with pytest.raises(NonFiniteError, match="time step 1"):
        stage.step(
            stage.open(), {"x": np.array([[0, 0], [np.nan, 0]], np.float32), "id": np.zeros(2, np.int64)}
        )


@pytest.mark.parametrize(("x", "ids"), [((4, 2), (4,)), ((3, 2), (2,)), ((3,), (3,)), ((10**6, 2), (10**6,))])
def test_impossible_ticks_are_not_restored(x: tuple[int, ...], ids: tuple[int, ...]) -> None:
    stage = collect(4)
    stage.load(stage.open(), {"x": np.zeros((3, 2), np.float32), "id": np.zeros(3, np.int64)})
    with pytest.raises(SnapshotError, match="fewer than 4"):
        stage.load(stage.open(), {"x": np.zeros(x, np.float32), "id": np.zeros(ids, np.int64)})


@pytest.mark.parametrize(
    "values", [(0, 1, 0, 0), (1, 0, 0, 0), (1, 1, -1, 0), (1, 1, 0, -1), (2**17, 1, 0, 0)]
)
def test_bounds(values: tuple[int, int, int, int]) -> None:
    with pytest.raises(ModelError, match="steps: "):
        Steps(*values)
