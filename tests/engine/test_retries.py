"""Steps whose results are discarded and repeated: no stream is affected, alone, in a batch or in a loop.

The oracle is an engine of the same stages without any failure, its streams fed one after the other. The
numbers are sums of small integers, so that both must agree bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Engine, Signal, TensorSpec, errors
from runnel.batch import Batch, BatchResult, StackedStage
from runnel.loading.loader import load_pipeline
from runnel.model.arena import Arena
from runnel.model.session import ModelStage
from runnel.pipeline import stage_runner
from runnel.pipeline.feedback import Feedback, LoopInput
from runnel.pipeline.pipeline import Pipeline
from runnel.stage import MAX_PASSAGES, Stage, Steps
from tests import laws, models

X = Signal((TensorSpec("y", "float32"),))
STREAMS = 12


class Trouble:
    """Decides at which of the numbered points a step fails. `None`: never."""

    def __init__(self) -> None:
        self.at: dict[int, str] = {}
        self.count = 0
        self.clock = 0.0

    def here(self, kind: str) -> bool:
        self.count += 1
        return self.at.get(self.count) == kind

    def now(self) -> float:
        return self.clock


class Sum(StackedStage):
    """Passes numbers on and sums them, so its state shows each step. Fails in a batch on request."""

    name = "sum"

    def __init__(self, trouble: Trouble) -> None:
        self.inputs = self.outputs = X
        self.trouble = trouble

    def initial(self) -> Any:
        return {"sum": np.zeros((), np.float64)}

    def advance(self, state: Any, chunk: Any) -> Any:
        return {"sum": state["sum"] + chunk["y"].sum(1, dtype=np.float64)}, {"y": chunk["y"] * 1}

    def step(self, state: Any, chunk: Any) -> Any:
        if self.trouble.here("alone"):
            raise ValueError("trouble, alone")
        return super().step(state, chunk)

    def step_many(self, states: Any, chunks: Any) -> Any:
        if self.trouble.here("slow"):
            self.trouble.clock += 1
        if self.trouble.here("batch"):
            raise ValueError("trouble, in a batch")
        done = super().step_many(states, chunks)
        if self.trouble.here("count"):
            return (
                done[:-1]
                if isinstance(done, list)
                else BatchResult(done.states[:-1], Batch(done.batch.arrays))
            )
        return done


KINDS = ("alone", "slow", "batch", "count", "memory", "copy")


class World:
    """A loop around a model and two stages: the output is the input, so that each step doubles the state."""

    def __init__(self, folder: Path, trouble: Trouble) -> None:
        hand = models.accumulator(folder / "m.onnx")
        model = load_pipeline(hand.path, STREAMS, None, 1, False, False).stages[0]
        assert isinstance(model, ModelStage)
        inner = Pipeline([model, Sum(trouble), Sum(trouble)], None, {}, 0.5)
        loop = Feedback(inner, [LoopInput(model.inputs.tensors[0], "y", np.array(1, np.float32))])
        self.engine = Engine(Pipeline([loop], None, {}), STREAMS)
        self.model, self.trouble = model, trouble


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, World]:
    folder = tmp_path_factory.mktemp("loop")
    return World(folder, Trouble()), World(folder, Trouble())


def make_trouble(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock, the model's memory and the arena's copies fail on request, too."""
    run, copy = world.model._run_rows, Arena.copy

    def run_rows(*args: Any) -> None:
        run(*args)
        if world.trouble.here("slow"):
            world.trouble.clock += 1
        if world.trouble.here("memory"):
            raise MemoryError("after the rows were written")

    def copied(arena: Arena, source: int, target: int) -> None:
        if arena is world.model.arena and world.trouble.here("copy"):
            raise MemoryError("a copy")
        copy(arena, source, target)

    monkeypatch.setattr(stage_runner, "perf_counter", world.trouble.now)
    monkeypatch.setattr(world.model, "_run_rows", run_rows)
    monkeypatch.setattr(Arena, "copy", copied)


def compare(world: World, quiet: World, rounds: list[list[int]], trouble: dict[int, str]) -> int:
    """Run the rounds with failures; repeat the chunks that succeeded alone. Return the number of failures."""
    streams = [world.engine.open() for _ in range(STREAMS)]
    twins = [quiet.engine.open() for _ in range(STREAMS)]
    failed = 0
    world.trouble.at, world.trouble.count = trouble, 0
    try:
        for counts in rounds:
            before = [(s.state, s.seq) for s in streams]
            group = [(s, n) for s, n in zip(streams, counts, strict=True) if n]
            chunks = [Steps(n) if n > 1 else np.ones(1, np.float32) for _, n in group]
            done = iter(world.engine.feed_many([(s, c) for (s, _), c in zip(group, chunks, strict=True)]))
            for i, n in enumerate(counts):
                if not n:
                    continue
                made, (state, seq) = next(done), before[i]
                if isinstance(made, errors.RunnelError):
                    failed += 1
                    laws.same_state(state, streams[i].state)
                    assert streams[i].seq == seq
                    continue
                alone = twins[i].feed(Steps(n) if n > 1 else np.ones(1, np.float32))
                made = made["y"] if isinstance(made, dict) else made
                alone = alone["y"] if isinstance(alone, dict) else alone
                np.testing.assert_array_equal(made, alone)
                laws.same_state(twins[i].state, streams[i].state)
                assert streams[i].seq == seq + 1
            assert (world.model.arena.forked, world.model.arena.used) == (0, STREAMS)
    finally:
        world.trouble.at = {}
        for stream in (*streams, *twins):
            stream.close()
    return failed


ROUNDS = [[3] * STREAMS, [1 + i % 4 for i in range(STREAMS)]]


@pytest.mark.parametrize("kind", KINDS)
def test_failure_at_every_step(
    worlds: tuple[World, World], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One failure, at each point where its kind is possible."""
    world, quiet = worlds
    make_trouble(world, monkeypatch)
    assert compare(world, quiet, ROUNDS, {}) == 0
    count = world.trouble.count
    assert count > 40
    failed = [compare(world, quiet, ROUNDS, {at: kind}) for at in range(1, count + 1)]
    if kind in ("batch", "count", "memory"):
        assert not any(failed), "trouble in a batch is nobody's: each stream was stepped again, alone"


@given(
    rounds=st.lists(st.lists(st.integers(0, 5), min_size=STREAMS, max_size=STREAMS), min_size=1, max_size=3),
    trouble=st.dictionaries(st.integers(1, 150), st.sampled_from(KINDS), max_size=8),
)
def test_any_failures(worlds: tuple[World, World], rounds: list[list[int]], trouble: dict[int, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        make_trouble(worlds[0], patch)
        compare(*worlds, rounds, trouble)


# Forks


def test_a_fork_is_stepped_while_the_stream_is_fed(worlds: tuple[World, World]) -> None:
    """As a server runs a long chunk in slices: in a loop each slice forks the fork again."""
    world, quiet = worlds
    pipeline, arena = world.engine.pipeline, world.model.arena
    stream, twin = world.engine.open(), quiet.engine.open()
    stream.generate(3)
    before = stream.state
    forked = pipeline.fork(stream._states)
    outs = []
    for n in (1, 4, 2):
        forked, out = pipeline.step(forked, Steps(n))
        outs.append(out["y"])
        laws.same_state(before, stream.state)
    assert arena.forked == 1
    landed = pipeline.land(stream._states, forked)
    laws.same_state(before, stream.state)
    assert arena.forked == 0
    twin.generate(3)
    np.testing.assert_array_equal(np.concatenate(outs), twin.generate(7))
    stream._states = landed
    laws.same_state(twin.state, stream.state)
    dropped = pipeline.fork(stream._states)
    pipeline.step(dropped, Steps(2))
    pipeline.drop(dropped)
    laws.same_state(twin.state, stream.state)
    assert arena.forked == 0
    for s in (stream, twin):
        s.close()


def test_no_slot_left_for_a_fork(tmp_path: Path) -> None:
    """The stream that needs a fork gets an error; it and the running passages are unchanged."""
    world = World(tmp_path, Trouble())
    pipeline = world.engine.pipeline
    streams = [world.engine.open() for _ in range(2)]
    held = [pipeline.fork(streams[0]._states) for _ in range(MAX_PASSAGES)]
    before = streams[1].state
    one, two = world.engine.generate_many([(streams[0], 2), (streams[1], 1)])
    assert isinstance(one, errors.LimitError)
    assert f"all {MAX_PASSAGES} places" in one.message
    np.testing.assert_array_equal(two, [1])
    with pytest.raises(errors.LimitError):
        pipeline.fork(streams[0]._states)
    assert not any(before[name].any() for name in before if "fed" not in name)
    for forked in held:
        pipeline.drop(forked)
    assert world.model.arena.forked == 0
    assert len(world.engine.generate_many([(streams[0], 2)])[0]) == 2


def test_a_loop_has_room_for_all_its_streams_and_the_passages(tmp_path: Path) -> None:
    models.accumulator(tmp_path / "m.onnx")
    (tmp_path / "p.toml").write_text(
        '[model]\npath = "m.onnx"\n[feedback]\nx = { output = "y", initial = 1 }\n'
    )
    for file, spares in (("p.toml", 5 + MAX_PASSAGES), ("m.onnx", MAX_PASSAGES)):
        [model] = Engine.load(tmp_path / file, max_streams=5).pipeline.unrolled.stages
        assert isinstance(model, ModelStage)
        assert (model.arena.slots, model.arena.spares) == (5, spares)


class Failing(Stage):
    """A stage with its own storage; one of its methods raises."""

    name = "failing"

    def __init__(self, method: str) -> None:
        self.inputs = self.outputs = X
        self.method = method
        self.forks = 0

    def initial(self) -> Any:
        return {}

    def step(self, state: Any, chunk: Any) -> Any:
        return state, dict(chunk)

    def fork(self, state: Any) -> Any:
        self._raise("fork")
        self.forks += 1
        return state

    def land(self, state: Any, forked: Any) -> Any:
        self._raise("land")
        self.forks -= 1
        return forked

    def drop(self, forked: Any) -> None:
        self.forks -= 1
        self._raise("drop")

    def _raise(self, method: str) -> None:
        if method == self.method:
            raise ValueError(method)


@pytest.mark.parametrize("method", ["fork", "land", "drop"])
def test_a_failure_in_the_middle_leaks_no_fork(tmp_path: Path, method: str) -> None:
    hand = models.accumulator(tmp_path / "m.onnx")
    model: Any = load_pipeline(hand.path, 2, None, 1, False, False).stages[0]
    first, odd, last = Failing(""), Failing(method), Failing("")
    first.inputs = first.outputs = model.inputs
    pipeline = Pipeline([first, model, odd, last], None, {})
    states = pipeline.open()
    if method == "fork":
        with pytest.raises(errors.StageError, match=r"'2: failing'.*fork"):
            pipeline.fork(states)
    else:
        forked, _ = pipeline.step(pipeline.fork(states), {"x": np.ones(1, np.float32)})
        with pytest.raises(errors.StageError, match=rf"'2: failing'.*{method}"):
            pipeline.land(states, forked) if method == "land" else pipeline.drop(forked)
    assert [first.forks, model.arena.forked, odd.forks, last.forks] == [0, 0, 0, 0]
    assert model.dump(states[1])["s"] == 0
