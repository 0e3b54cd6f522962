"""Faulty stages: a typed error names the stage and its position, and no state changes.

Also the time that each stage takes.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from runnel import RowStage, Signal, StackedStage, Stage, TensorSpec
from runnel.batch import Batch, BatchResult, stack
from runnel.engine import Engine
from runnel.errors import ChunkError, NonFiniteError, RunnelError, SlowStageError, StageError
from runnel.pipeline import stage_runner
from runnel.pipeline.pipeline import Pipeline
from runnel.pipeline.stage_runner import MAX_STATE_BYTES

X = Signal((TensorSpec("x", "float32", (2,)),), 10.0)


class Sum(StackedStage):
    """The running sum: a correct neighbour whose state shows every chunk that was applied."""

    name = "sum"

    def __init__(self) -> None:
        self.inputs = self.outputs = X

    def initial(self):
        return {"sum": np.zeros(2, np.float32)}

    def advance(self, state, chunk):
        made = state["sum"][:, None] + np.cumsum(chunk["x"], axis=1)
        last = made[:, -1].copy() if made.shape[1] else state["sum"].copy()
        return {"sum": last}, {"x": made}


class Odd(Stage):
    """Misbehaves if a chunk begins with a negative number; otherwise passes its input on."""

    name = "odd"

    def __init__(self) -> None:
        self.inputs = self.outputs = X

    def initial(self):
        return {"seen": np.zeros(1, np.int64)}

    def step(self, state, chunk):
        if len(chunk["x"]) and chunk["x"][0, 0] < 0:
            return self.mischief(state, chunk)
        return {"seen": state["seen"] + len(chunk["x"])}, {"x": chunk["x"] * 1}


class Raises(Odd):
    def mischief(self, state, chunk):
        return 1 // 0


class RaisesOurs(Odd):
    def mischief(self, state, chunk):
        raise NonFiniteError("odd: 'x' has nan at time step 0")


class WrongShape(Odd):
    def mischief(self, state, chunk):
        return state, {"x": chunk["x"][:, :1]}


class WrongDtype(Odd):
    def mischief(self, state, chunk):
        return state, {"x": chunk["x"].astype(np.float64)}


class WrongName(Odd):
    def mischief(self, state, chunk):
        return state, {"y": chunk["x"]}


class NotAPair(Odd):
    def mischief(self, state, chunk):
        return chunk


class NoState(Odd):
    def mischief(self, state, chunk):
        return None, {"x": chunk["x"]}


class NumberAsState(Odd):
    def mischief(self, state, chunk):
        return {"seen": state["seen"].sum()}, chunk


class ChangesItsChunk(Odd):
    def mischief(self, state, chunk):
        chunk["x"] *= 2
        return state, chunk


class ChangesItsState(Odd):
    def mischief(self, state, chunk):
        state["seen"] += 1
        return state, chunk


class Grows(Odd):
    def mischief(self, state, chunk):
        return {"seen": np.zeros(MAX_STATE_BYTES // 8 + 1, np.int64)}, chunk


class OpensItself(WrongShape):
    """A stage that makes its first state itself is checked like any other."""

    def open(self):
        return self.initial()


class DriftsInDtype(Odd):
    """For example, a Python number times a float32 in numpy 2."""

    def mischief(self, state, chunk):
        return {"seen": state["seen"] * np.float32(0.5)}, {"x": chunk["x"] * 1}


class DriftsInRank(Odd):
    def mischief(self, state, chunk):
        return {"seen": np.zeros((), np.int64)}, {"x": chunk["x"] * 1}


class DriftsInNames(Odd):
    def mischief(self, state, chunk):
        return {**state, "more": np.zeros(1)}, {"x": chunk["x"] * 1}


class Forgets(Odd):
    def mischief(self, state, chunk):
        return {}, {"x": chunk["x"] * 1}


class Sleeps(Odd):
    now = 0.0

    def mischief(self, state, chunk):
        Sleeps.now += 0.12
        return state, {"x": chunk["x"] * 1}


MISCHIEF = {
    Raises: (StageError, "ZeroDivisionError"),
    RaisesOurs: (NonFiniteError, "'x' has nan at time step 0"),
    WrongShape: (StageError, r"made x: float32 \(1, 1\), declared x: float32 \(T, 2\)"),
    DriftsInDtype: (
        StageError,
        r"next state is not as its `initial` makes it.*'seen' is float64 of rank 1, expected int64 of rank 1"
        r"\. Was it computed from a Python number .* np\.asarray\(value, np\.int64\)",
    ),
    DriftsInRank: (StageError, r"'seen' is int64 of rank 0, expected int64 of rank 1$"),
    DriftsInNames: (StageError, r"the state holds \['more', 'seen'\], expected \['seen'\]"),
    Forgets: (StageError, r"the state holds \[\], expected \['seen'\]"),
    WrongDtype: (StageError, r"made x: float64"),
    OpensItself: (StageError, r"made x: float32 \(1, 1\), declared x: float32 \(T, 2\)"),
    WrongName: (StageError, "made y: float32"),
    NotAPair: (StageError, r"not \(state, chunk\)"),
    NoState: (StageError, "a state that is not a dict of arrays"),
    NumberAsState: (StageError, "of a number, np.asarray makes one"),
    ChangesItsChunk: (StageError, "may change neither its chunk nor its state"),
    ChangesItsState: (StageError, "may change neither its chunk nor its state"),
    Grows: (StageError, r"its state grew to \d+ bytes"),
    Sleeps: (SlowStageError, r"took 0.\d+ s for one chunk; \[limits\] stage_seconds allows 0.1"),
}


class Batched(Stage):
    """The same stage with its own `step_many`, so that it gets whole batches."""

    def __init__(self, inner: Stage) -> None:
        self.inner, self.name = inner, inner.name
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def initial(self):
        return self.inner.initial()

    def step(self, state, chunk):
        return self.inner.step(state, chunk)

    def step_many(self, states, chunks):
        return [self.inner.step(state, chunk) for state, chunk in zip(states, chunks, strict=True)]


def tick(value: float) -> np.ndarray:
    return np.full((1, 2), value, np.float32)


class NeverOpens(Odd):
    def initial(self):
        return 1 // 0


class OpensWithNumbers(Odd):
    def initial(self):
        return {"seen": 0}


@pytest.mark.parametrize(("kind", "says"), [(NeverOpens, "ZeroDivision"), (OpensWithNumbers, "setflags")])
def test_a_stage_that_cannot_begin_is_named_and_no_stream_is_opened(kind, says):
    engine = Engine(Pipeline([Sum(), kind()], None, {}))
    with pytest.raises(StageError, match=rf"stage '1: odd' failed.*{says}"):
        engine.open()
    assert not engine.streams


@pytest.fixture
def _made_up_time(monkeypatch):
    """Where only `Sleeps` takes long: on a busy machine any stage may take longer than the limit."""

    def now():
        Sleeps.now += 1e-6
        return Sleeps.now

    monkeypatch.setattr(stage_runner, "perf_counter", now)


@pytest.mark.usefixtures("_made_up_time")
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", MISCHIEF)
def test_faults_are_typed_errors_with_name_and_position_and_change_nothing(kind, batched):
    error, says = MISCHIEF[kind]
    odd = Batched(kind()) if batched else kind()
    engine = Engine(Pipeline([Sum(), odd, Sum()], None, {}, stage_seconds=0.1))
    good, bad, other = engine.open("good"), engine.open("bad"), engine.open("other")
    for stream in (good, bad, other):
        stream.feed(tick(1))
    before = {name: array.copy() for name, array in bad.state.items()}
    alone = tick(-5)
    with pytest.raises(error, match=rf"stage '1: odd'.*{says}"):
        bad.feed(alone)
    assert (alone == -5).all()
    results = engine.feed_many([(good, tick(1)), (bad, tick(-5)), (other, tick(3))])
    assert isinstance(results[1], error)
    assert "stage '1: odd'" in str(results[1])
    np.testing.assert_array_equal(results[0], tick(3))  # 1, then 1 + 1; summed twice
    np.testing.assert_array_equal(results[2], tick(5))
    assert bad.seq == 1
    for name, array in bad.state.items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(bad.feed(tick(1)), tick(3))  # it continues as if nothing had happened


@pytest.mark.usefixtures("_made_up_time")
@pytest.mark.parametrize("kind", [Raises, WrongShape, NotAPair, Sleeps])
def test_fault_in_a_flush_leaves_the_stream_open(kind):
    class AtTheEnd(kind):
        def flush(self, state):
            return self.mischief(state, {"x": tick(-1)})

    stream = Engine(Pipeline([AtTheEnd()], None, {}, stage_seconds=0.1)).open()
    stream.feed(tick(1))
    with pytest.raises(MISCHIEF[kind][0], match="stage '0: odd'"):
        stream.flush()
    assert not stream.ended
    stream.feed(tick(1))


class Twice(RowStage):
    name = "twice"

    def __init__(self) -> None:
        self.inputs = self.outputs = X

    def rows(self, arrays):
        return {"x": arrays["x"] * 2}


class BadBatch(Twice):
    """Correct alone, wrong in a batch: detected, and each stream is stepped alone instead."""

    def step_many(self, states, chunks):
        made = stack(chunks)
        return BatchResult(states, Batch({"x": made.arrays["x"][:-1] * 2}))


class TooMany(Twice):
    def step_many(self, states, chunks):
        return [*super().step_many(states, chunks), (states[0], chunks[0])]


@pytest.mark.parametrize("kind", [Twice, BadBatch, TooMany])
def test_invalid_batch_is_stepped_stream_by_stream(kind):
    engine = Engine(Pipeline([Sum(), kind(), Sum()], None, {}))
    streams = [engine.open() for _ in range(5)]
    outs = engine.feed_many([(stream, tick(i)) for i, stream in enumerate(streams)])
    for i, out in enumerate(outs):
        np.testing.assert_array_equal(out, tick(2 * i))


def test_chunks_of_unequal_lengths_and_empty_results_meet_in_one_batch():
    class EverySecond(Stage):
        name = "second"
        ratio = (1, 2)

        def __init__(self) -> None:
            self.inputs = self.outputs = Signal(X.tensors)

        def initial(self):
            return {"at": np.zeros((), np.int64)}

        def step(self, state, chunk):
            at = int(state["at"])
            return {"at": np.asarray(at + len(chunk["x"]))}, {"x": chunk["x"][at % 2 :: 2].copy()}

    rng = np.random.default_rng(1)
    lengths = [1, 1, 2, 3, 5, 1, 2]
    chunks = [rng.standard_normal((n, 2)).astype(np.float32) for n in lengths]
    many, one = (Engine(Pipeline([Sum(), EverySecond(), Twice()], None, {})) for _ in range(2))
    streams = [many.open() for _ in lengths]
    alone = [one.open() for _ in lengths]
    for _ in range(3):
        outs = many.feed_many(list(zip(streams, chunks, strict=True)))
        for stream, chunk, out in zip(alone, chunks, outs, strict=True):
            np.testing.assert_array_equal(out, stream.feed(chunk))


def test_output_is_the_callers_to_write_to():
    class Same(Odd):
        def step(self, state, chunk):
            return state, dict(chunk)

    engine = Engine(Pipeline([Sum(), Same()], None, {}))
    a, b = engine.open(), engine.open()
    outs = [a.feed(tick(1)), *engine.feed_many([(a, tick(1)), (b, tick(1))]), a.flush()]
    for out in outs:
        out += 7
    np.testing.assert_array_equal(a.state["sum.sum"], [2, 2])


@pytest.mark.usefixtures("_made_up_time")
def test_the_time_of_each_stage_is_counted():
    engine = Engine(Pipeline([Sum(), Sleeps()], None, {}))
    stream = engine.open()
    stream.feed(tick(1))
    stream.feed(tick(-5))
    engine.feed_many([(stream, tick(1)), (engine.open(), tick(-1))])
    quick, slow = engine.pipeline.runners
    assert (quick.calls, slow.calls) == (4, 4)
    assert slow.seconds >= 0.36 > 0.1 > quick.seconds > 0


def test_error_names_the_position_of_a_stage_that_occurs_twice():
    engine = Engine(Pipeline([Raises(), Raises()], None, {}))
    with pytest.raises(RunnelError, match="'0: odd'"):
        engine.open().feed(tick(-1))


class Held(Stage):
    """Its output shares memory with its state in various ways; `kept` is 3 rows of running sums."""

    name = "held"

    def __init__(self) -> None:
        self.inputs = self.outputs = X

    def initial(self):
        return {"kept": np.zeros((3, 2), np.float32)}

    def both(self, state, chunk):
        """Return (kept, made), each with its own memory."""
        kept = state["kept"] + chunk["x"].sum()
        return kept, kept[:1].copy()

    def step(self, state, chunk):
        kept, made = self.both(state, chunk)
        return {"kept": kept}, {"x": made}


class GivesAViewOfItsState(Held):
    def both(self, state, chunk):
        kept, _ = super().both(state, chunk)
        return kept, kept[:1]


class KeepsAViewOfWhatItGives(Held):
    def both(self, state, chunk):
        kept, _ = super().both(state, chunk)
        made = np.concatenate([kept[:1], kept])
        return made[:3], made[:1]


class KeepsPartsOfOneBatch(Held):
    def step_many(self, states, chunks):
        kept = np.stack([self.both(s, c)[0] for s, c in zip(states, chunks, strict=True)])
        return BatchResult([{"kept": each} for each in kept], Batch({"x": kept[:, :1]}))


@pytest.mark.parametrize("kind", [Held, GivesAViewOfItsState, KeepsAViewOfWhatItGives, KeepsPartsOfOneBatch])
def test_writing_to_an_output_changes_no_state(kind):
    engine = Engine(Pipeline([Sum(), kind()], None, {}))
    a, b = engine.open(), engine.open()
    outs = [a.feed(tick(1)), b.feed(tick(1)), *engine.feed_many([(a, tick(1)), (b, tick(1))])]
    before = a.snapshot(), b.snapshot()
    for out in outs:
        out[...] = 99
    assert (a.snapshot(), b.snapshot()) == before
    np.testing.assert_array_equal(a.feed(tick(1)), tick(12))


def test_state_holds_only_its_own_memory():
    class KeepsALittleOfMuch(Held):
        def both(self, state, chunk):
            much = np.zeros((100_000, 2), np.float32)
            return much[:3], much[:1].copy()

    for kind in (KeepsALittleOfMuch, KeepsPartsOfOneBatch):
        engine = Engine(Pipeline([kind()], None, {}))
        streams = [engine.open() for _ in range(3)]
        streams[0].feed(tick(1))
        engine.feed_many([(stream, tick(1)) for stream in streams])
        for stream in streams:
            assert stream._states[0]["kept"].base is None


def test_state_with_new_arrays_is_refused():
    """The first array that `initial` does not make is refused; the error's text is bounded."""

    class Collects(Odd):
        def step(self, state, chunk):
            return {**state, **{f"{len(state)}.{i}": np.zeros(0) for i in range(2**16)}}, dict(chunk)

    engine = Engine(Pipeline([Collects()], None, {}))
    stream = engine.open()
    [refused] = engine.feed_many([(stream, tick(1))])
    assert isinstance(refused, StageError)
    assert "not as its `initial` makes it" in refused.message
    assert len(refused.message) <= 2000
    assert stream.seq == 0


def test_state_in_another_mapping_is_read_only_too():
    """A stream could change an array that the stage shares among its streams."""
    shared = np.zeros(1, np.int64)

    class Counts(Odd):
        def initial(self):
            return OrderedDict(seen=shared)

        def step(self, state, chunk):
            state["seen"] += 1
            return state, dict(chunk)

    with pytest.raises(StageError, match="may change neither its chunk nor its state"):
        Engine(Pipeline([Counts()], None, {})).open().feed(tick(1))
    assert shared == 0


class Endless(Odd):
    def mischief(self, state, chunk):
        return state, {"x": np.broadcast_to(chunk["x"], (10**12, 2))}


class Speechless(Odd):
    def mischief(self, state, chunk):
        class WordlessError(Exception):
            def __str__(self):
                raise ValueError("no words")

        raise WordlessError


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("kind", "says"), [(Endless, "made 1000000000000 time steps"), (Speechless, "WordlessError")]
)
def test_extreme_faults_do_not_affect_a_neighbour(kind, says, batched):
    odd = Batched(kind()) if batched else kind()
    engine = Engine(Pipeline([odd], None, {}))
    a, b = engine.open(), engine.open()
    with pytest.raises(StageError, match=says):
        a.feed(tick(-1))
    bad, good = engine.feed_many([(a, tick(-1)), (b, tick(1))])
    assert isinstance(bad, StageError)
    assert says in str(bad)
    np.testing.assert_array_equal(good, tick(1))


@pytest.mark.parametrize("batched", [False, True])
def test_chunk_with_too_large_output_is_refused_before_the_step(batched, monkeypatch):
    class Widens(Odd):
        """Each time step becomes two of 1000 numbers."""

        ratio = (2, 1)
        asked = 0

        def __init__(self) -> None:
            super().__init__()
            self.outputs = Signal((TensorSpec("x", "float32", (1000,)),))

        def step(self, state, chunk):
            type(self).asked = max(self.asked, len(chunk["x"]))
            return state, {"x": np.zeros((2 * len(chunk["x"]), 1000), np.float32)}

    monkeypatch.setattr(stage_runner, "MAX_MADE_BYTES", 10 * 8000)
    odd = Batched(Widens()) if batched else Widens()
    odd.ratio = (2, 1)
    engine = Engine(Pipeline([odd], None, {}))
    a, b = engine.open(), engine.open()
    assert len(a.feed(np.zeros((10, 2), np.float32))) == 20
    says = r"stage '0: odd': 11 time steps would become 88000 bytes.*send at most 10 at a time"
    with pytest.raises(ChunkError, match=says):
        a.feed(np.zeros((11, 2), np.float32))
    for lengths in ((11, 11), (11, 3)):
        chunks = [np.zeros((n, 2), np.float32) for n in lengths]
        outs = engine.feed_many(list(zip((a, b), chunks, strict=True)))
        assert [isinstance(out, ChunkError) for out in outs] == [n > 10 for n in lengths]
    assert Widens.asked == 10


class DriftsAtTheEnd(Odd):
    def mischief(self, state, chunk):
        return state, {"x": chunk["x"] * 1}

    def flush(self, state):
        return {"seen": np.zeros(1, np.float32)}, self.outputs.empty()


def test_a_state_that_drifts_at_the_flush_is_refused():
    engine = Engine(Pipeline([DriftsAtTheEnd()], None, {}))
    stream = engine.open()
    with pytest.raises(StageError, match="'seen' is float32 of rank 1, expected int64"):
        stream.flush()
    assert not stream.ended


class DriftsInABatch(StackedStage):
    name = "batch"

    def __init__(self) -> None:
        self.inputs = self.outputs = X

    def initial(self):
        return {"sum": np.zeros(2, np.float32)}

    def advance(self, state, chunk):
        return {"sum": state["sum"] + chunk["x"].sum(1, dtype=np.float64)}, {"x": chunk["x"] * 1}


def test_a_state_that_drifts_in_a_batch_is_refused():
    engine = Engine(Pipeline([DriftsInABatch()], None, {}))
    streams = [engine.open() for _ in range(3)]
    for made in engine.feed_many([(stream, np.ones((1, 2), np.float32)) for stream in streams]):
        assert isinstance(made, StageError)
        assert "'sum' is float64 of rank 1, expected float32" in made.message
    assert [stream.seq for stream in streams] == [0, 0, 0]
