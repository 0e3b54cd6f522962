"""Ticks to blocks and back: the definition, the laws of a stage, and an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from runnel import Engine
from runnel.checks import LAWS, check_stage
from runnel.errors import ModelError, NonFiniteError, SnapshotError
from runnel.grouping import Blocks
from runnel.loading import container
from runnel.model.blocks import Gather, Spread, outer
from runnel.spec import ModelSpec, ModelState, ModelTensor, Signal, TensorSpec, from_document, to_document
from tests import laws


def gather(ticks: int, lookahead: int, shape: tuple[int, ...] = ()) -> Gather:
    blocks = Blocks(ticks, lookahead)
    windows = Signal(
        (
            TensorSpec("x", "float32", (blocks.window, *shape)),
            TensorSpec("id", "int64", (blocks.window,)),
            TensorSpec("present", "int32"),
        ),
        50.0 / ticks,
    )
    return Gather(windows, blocks, "present", 50.0)


def spread(ticks: int) -> Spread:
    blocked = Signal((TensorSpec("y", "float32", (ticks, 2)), TensorSpec("kept", "int32")))
    return Spread(blocked, Blocks(ticks, 0), "kept", None)


@given(
    ticks=st.integers(1, 9),
    lookahead=st.integers(0, 20),
    length=st.integers(0, 60),
    width=st.integers(0, 2),
    data=st.data(),
)
def test_equals_the_definition(
    ticks: int, lookahead: int, length: int, width: int, data: st.DataObject
) -> None:
    """Step k sees ticks [k*ticks, k*ticks + window); `present` is the number of real ones."""
    shape = (width,) if width else ()
    stage = gather(ticks, lookahead, shape)
    x = np.random.default_rng(length).standard_normal((length, *shape)).astype(np.float32)
    chunk = {"x": x, "id": np.arange(length)}
    state, made, at = stage.open(), [], 0
    while at < length:
        size = data.draw(st.integers(0, 25))
        state, out = stage.step(state, {n: a[at : at + size] for n, a in chunk.items()})
        at += size
        assert len(state["x"]) < ticks + lookahead
        made.append(out)
    made.append(stage.flush(state)[1])
    found = {n: np.concatenate([m[n] for m in made]) for n in stage.outputs.names}
    assert len(found["x"]) == -(-length // ticks)
    for k, present in enumerate(found["present"]):
        window = chunk["id"][k * ticks : k * ticks + ticks + lookahead]
        assert present == len(window)
        np.testing.assert_array_equal(found["id"][k, :present], window)
        np.testing.assert_array_equal(found["x"][k, :present], x[window])


@pytest.mark.parametrize(("ticks", "lookahead"), [(1, 0), (1, 5), (4, 0), (4, 3), (3, 16)])
def test_the_laws_of_a_stage(ticks: int, lookahead: int) -> None:
    check_stage(lambda: gather(ticks, lookahead, (2,)))
    rows = {
        "y": np.random.default_rng(1).standard_normal((40, ticks, 2)).astype(np.float32),
        "kept": np.full(40, ticks, np.int32),
    }
    check_stage(lambda: spread(ticks), rows)


def test_wrong_latency_breaks_the_law() -> None:
    def early() -> Gather:
        stage = gather(4, 6)
        stage.latency = 5
        return stage

    with pytest.raises(AssertionError, match="law of latency"):
        check_stage(early)
    assert "latency" in LAWS


def test_padding_rows_are_left_out() -> None:
    y = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    _, out = spread(2).step({}, {"y": y, "kept": np.array([2, 1, 0], np.int32)})
    np.testing.assert_array_equal(out["y"], [[0, 1], [2, 3], [4, 5]])


def test_nan_is_refused_before_it_is_stored() -> None:
    stage = gather(2, 2)
    with pytest.raises(NonFiniteError, match="time step 1"):
        stage.step(stage.open(), {"x": np.array([0, np.nan], np.float32), "id": np.zeros(2, np.int64)})


@pytest.mark.parametrize(("x", "ids"), [((4,), (4,)), ((3,), (2,)), ((3, 1), (3,)), ((10**6,), (10**6,))])
def test_impossible_ticks_are_not_restored(x: tuple[int, ...], ids: tuple[int, ...]) -> None:
    stage = gather(2, 2)
    stage.load(stage.open(), {"x": np.zeros(3, np.float32), "id": np.zeros(3, np.int64)})
    with pytest.raises(SnapshotError, match="fewer than 4"):
        stage.load(stage.open(), {"x": np.zeros(x, np.float32), "id": np.zeros(ids, np.int64)})


@pytest.mark.parametrize(("ticks", "lookahead"), [(0, 4), (-1, 4), (2, -1), (2**16, 1)])
def test_bounds(ticks: int, lookahead: int) -> None:
    with pytest.raises(ModelError, match="blocks: a block has at least 1 tick"):
        Blocks(ticks, lookahead)


# ------------------------------------------------------------------ in a model's document, and in an engine


def spec(blocks: Blocks, **changed: Any) -> ModelSpec:
    """Return the document of `model`, with some parts changed."""
    parts: dict[str, Any] = {
        "inputs": (
            ModelTensor("x", "float32", (blocks.window, "slot", 1)),
            ModelTensor("present", "int32", ("slot",)),
        ),
        "outputs": (
            ModelTensor("y", "float32", (blocks.ticks, "slot", 1)),
            ModelTensor("kept", "int32", ("slot",)),
        ),
        "states": (ModelState("s", "s.next", "float32", (1, "slot", 1), np.zeros((1, 1), np.float32)),),
        "rate": 50.0,
        "latency": blocks.latency,
        "any_ticks": False,
        "blocks": blocks,
    }
    return ModelSpec(**{**parts, **changed})


def model(blocks: Blocks) -> bytes:
    """y[t]: the sum of x up to t, a state, plus the sum of its block's window: exact, and known by hand."""
    n, w = blocks.ticks, blocks.window
    ints, floats = TensorProto.INT32, TensorProto.FLOAT
    stored = [
        helper.make_tensor("axis", TensorProto.INT64, [], [0]),
        *(
            helper.make_tensor(name, TensorProto.INT64, [1], [value])
            for name, value in (("zero", 0), ("n", n), ("last", n - 1), ("inner", 2))
        ),
        helper.make_tensor("places", ints, [w, 1], list(range(w))),
        helper.make_tensor("most", ints, [], [n]),
    ]
    nodes = [
        helper.make_node("Less", ["places", "present"], ["there"]),
        helper.make_node("Unsqueeze", ["there", "inner"], ["mask"]),
        helper.make_node("Cast", ["mask"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "ones"], ["own"]),
        helper.make_node("Slice", ["own", "zero", "n", "zero"], ["block"]),
        helper.make_node("CumSum", ["block", "axis"], ["sums"]),
        helper.make_node("Add", ["sums", "s"], ["past"]),
        helper.make_node("Slice", ["past", "last", "n", "zero"], ["s.next"]),
        helper.make_node("ReduceSum", ["own", "zero"], ["all"], keepdims=1),
        helper.make_node("Add", ["past", "all"], ["y"]),
        helper.make_node("Min", ["present", "most"], ["kept"]),
    ]

    def info(name: str, kind: int, dims: tuple[Any, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, list(dims))

    window, state = info("x", floats, (w, "slot", 1)), (1, "slot", 1)
    block = info("y", floats, (n, "slot", 1))
    graph = helper.make_graph(
        nodes,
        "sums",
        [window, info("present", ints, ("slot",)), info("s", floats, state)],
        [block, info("kept", ints, ("slot",)), info("s.next", floats, state)],
        stored,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def expected(x: np.ndarray, blocks: Blocks) -> np.ndarray:
    sums = np.cumsum(x, axis=0)
    rows = []
    for t in range(len(x)):
        k = t // blocks.ticks * blocks.ticks
        rows.append(sums[t] + x[k : k + blocks.window].sum(0))
    return np.array(rows, np.float32).reshape(-1, 1)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    blocks = Blocks(4, 6)
    path = tmp_path / "sums.onnx"
    path.write_bytes(container.seal(model(blocks), to_document(spec(blocks))))
    return Engine.load(path, max_streams=32, trust=True)


def numbers(ticks: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).integers(-9, 9, (ticks, 1)).astype(np.float32)}


def test_the_engine_gives_each_tick_once_and_in_time(engine: Engine) -> None:
    """At most `latency` ticks late, at least the lookahead; the rest at the flush."""
    blocks, chunk = Blocks(4, 6), numbers(31)
    assert engine.pipeline.latency == 9
    assert str(engine.pipeline.inputs) == "x: float32 (T, 1) at 50 Hz"
    assert str(engine.pipeline.outputs) == "y: float32 (T, 1) at 50 Hz"
    rows, delays = [], []
    with engine.open() as stream:
        for t in range(31):
            out = stream.feed(chunk["x"][t : t + 1])
            delays += [t - (len(rows) + i) for i in range(len(out))]
            rows += list(out)
        assert (max(delays), min(delays)) == (9, 6)
        rows += list(stream.flush())
    np.testing.assert_array_equal(rows, expected(chunk["x"], blocks))


@pytest.mark.parametrize("ticks", [1, 3, 4, 5, 9, 10, 11, 14, 27])
def test_a_stream_of_any_length_comes_out_whole(engine: Engine, ticks: int) -> None:
    found = laws.whole(engine, numbers(ticks))
    np.testing.assert_array_equal(found["y"], expected(numbers(ticks)["x"], Blocks(4, 6)))


@settings(max_examples=10, deadline=None)
@given(where=laws.cuts, ticks=st.integers(1, 40), others=st.lists(laws.cuts, min_size=1, max_size=5))
def test_the_laws_of_a_stream(
    where: list[int], ticks: int, others: list[list[int]], tmp_path_factory: Any
) -> None:
    blocks = Blocks(3, 5)
    path = tmp_path_factory.mktemp("blocks") / "sums.onnx"
    path.write_bytes(container.seal(model(blocks), to_document(spec(blocks))))
    with Engine.load(path, max_streams=32, trust=True) as engine:
        laws.chunking(engine, numbers(ticks), where, 0)
        laws.isolation(engine, [numbers(ticks + i, i) for i in range(len(others))], others, 0)
        laws.returning(engine, numbers(ticks + 1), ticks // 2)
        bad = numbers(8)
        bad["x"][5] = np.nan
        laws.commit(engine, numbers(12), bad, NonFiniteError, numbers(9))


def test_a_document_is_read_as_it_was_written() -> None:
    written = spec(Blocks(4, 6))
    found = from_document(to_document(written), "here")
    assert (found.blocks, found.latency, found.hop) == (written.blocks, 9, 4)
    assert found.fed == (TensorSpec("x", "float32", (1,)),)
    assert found.given == (TensorSpec("y", "float32", (1,)),)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"latency": 0}, "latency is 0, but a block of 4 ticks with a lookahead of 6 has 9"),
        ({"any_ticks": True}, "takes one block a call|'time' axis"),
        ({"outputs": (ModelTensor("y", "float32", (4, "slot", 1)),)}, "'kept'"),
        ({"inputs": (ModelTensor("present", "int32", ("slot",)),)}, "'present'"),
        (
            {
                "inputs": (
                    ModelTensor("x", "float32", (9, "slot", 1)),
                    ModelTensor("present", "int32", ("slot",)),
                )
            },
            "10 ticks first",
        ),
    ],
)  # fmt: skip
def test_a_document_that_contradicts_itself_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_document(to_document(spec(Blocks(4, 6), **changed)), "here")


def test_unknown_words_are_refused() -> None:
    document = to_document(spec(Blocks(4, 6)))
    document["blocks"]["lookahead"] = -1
    with pytest.raises(ModelError, match="lookahead must be a whole number of at least 0"):
        from_document(document, "here")


def test_inputs_of_a_stream() -> None:
    windows = Signal((TensorSpec("x", "float32", (7, 2)), TensorSpec("n", "int32")), 3.0)
    assert outer(windows, "n", 21.0) == Signal((TensorSpec("x", "float32", (2,)),), 21.0)
