"""Calls at the wrong moment: from listeners, other threads, stages, interrupts; and copies."""

from __future__ import annotations

import copy
import dis
import os
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

from runnel import Engine, Notice, Signal, Stage, Stream, TensorSpec, errors, notices
from runnel.loading.loader import load_pipeline
from runnel.model.session import ModelStage
from runnel.notices import Notices
from runnel.pipeline.feedback import Feedback, LoopInput
from runnel.pipeline.pipeline import Pipeline
from runnel.stage import Steps
from tests import laws, models

ONE = np.ones(1, np.float32)
BAD = np.ones(1, np.float64)


class World:
    """An engine of a model that sums, and the notices that its listener received."""

    def __init__(self, folder: Path, act: Callable[[Engine, Notice], None] | None = None) -> None:
        hand = models.accumulator(folder / "m.onnx")
        self.heard: list[tuple[str, str, int]] = []
        self.act = act

        def listen(notice: Notice) -> None:
            self.heard.append((notice.event, notice.stream, notice.seq))
            if self.act is not None:
                self.act(self.engine, notice)

        pipeline = load_pipeline(hand.path, 8, None, 1, False, False)
        self.engine = Engine(pipeline, 8, Notices([("listener", listen)]))
        [model] = pipeline.stages
        assert isinstance(model, ModelStage)
        self.model = model

    def on(self, event: str, act: Callable[[Engine], None]) -> None:
        def once(engine: Engine, notice: Notice) -> None:
            if notice.event == event:
                self.act = None
                act(engine)

        self.act = once


def total(stream: Stream) -> float:
    [value] = stream.state.values()
    return float(value)


# Listeners


def test_a_listener_resets_another_stream(tmp_path: Path) -> None:
    """The chunks of the same call do not undo the reset."""
    world = World(tmp_path)
    a, b = (world.engine.open(name) for name in "ab")
    a.feed(ONE)
    world.on("failed", lambda engine: engine.streams["a"].reset())
    made, refused = world.engine.feed_many([(a, ONE), (b, BAD)])
    assert made == 2
    assert isinstance(refused, errors.ChunkError)
    assert (a.seq, total(a)) == (0, 0)
    assert world.heard[-2:] == [("failed", "b", 0), ("reset", "a", 0)]


def test_a_listener_replaces_another_stream(tmp_path: Path) -> None:
    world = World(tmp_path)
    a, b = (world.engine.open(name) for name in "ab")

    def replace(engine: Engine) -> None:
        engine.streams["a"].close()
        engine.open("c")

    world.on("failed", replace)
    made, _ = world.engine.feed_many([(a, ONE), (b, BAD)])
    assert made == 1
    c = world.engine.streams["c"]
    assert (a.closed, c.seq, total(c)) == (True, 0, 0)
    assert world.model.arena.used == 2
    assert [event for event, _, _ in world.heard[2:]] == ["failed", "closed", "opened"]


@pytest.mark.parametrize("event", ["opened", "failed", "reset", "closed"])
def test_a_listener_feeds_within_any_call(tmp_path: Path, event: str) -> None:
    world = World(tmp_path)
    witness = world.engine.open("witness")
    world.on(event, lambda engine: engine.streams["witness"].feed(ONE) and None)
    stream = world.engine.open("s")
    with pytest.raises(errors.ChunkError):
        stream.feed(BAD)
    stream.reset()
    stream.close()
    assert (witness.seq, total(witness)) == (1, 1)


def test_notices_come_when_the_call_has_committed(tmp_path: Path) -> None:
    world = World(tmp_path)
    seen: list[tuple[int, float]] = []
    a, b = (world.engine.open(name) for name in "ab")
    world.on("failed", lambda engine: seen.append((a.seq, total(a))))
    world.engine.feed_many([(b, BAD), (a, ONE)])
    assert seen == [(1, 1)]


def test_endless_notices_of_a_listener_are_cut_off(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    """An endless chain of notices is cut off, and the engine continues."""
    monkeypatch.setattr(notices, "MAX_NESTED", 20)
    world = World(tmp_path)
    stream = world.engine.open("s")

    def again(engine: Engine, notice: Notice) -> None:
        if notice.event == "failed":
            with pytest.raises(errors.ChunkError):
                stream.feed(BAD)

    world.act = again
    with pytest.raises(errors.ChunkError):
        stream.feed(BAD)
    assert 20 <= len(world.heard) <= 23
    assert "more than 20 notices" in caplog.text
    world.act = None
    assert stream.feed(ONE) == 1


def test_health_reports_are_delivered_at_rest_too(tmp_path: Path) -> None:
    models.accumulator(tmp_path / "m.onnx")
    (tmp_path / "p.toml").write_text('[model]\npath = "m.onnx"\n[health]\nevery = 1\nblown_up = 10\n')
    engine = Engine.load(tmp_path / "p.toml")
    a, b = engine.open("a"), engine.open("b")
    told = []

    def tell(event: str, stream: str, reason: str) -> None:
        told.append((event, stream, b.seq))
        b.reset()

    engine.health.on_event = tell
    engine.feed_many([(a, ONE * 99), (b, ONE)])
    assert told == [("blown_up", "a", 1)]
    assert (b.seq, total(b)) == (0, 0)


# Threads, and stages that call


def test_another_thread_while_a_call_is_inside(tmp_path: Path) -> None:
    """It is refused; the running call is not affected; afterwards the other thread may take over."""
    world = World(tmp_path)
    a, b = (world.engine.open(name) for name in "ab")
    inside, go_on = threading.Event(), threading.Event()
    run = world.model._run

    def wait(*args: Any) -> None:
        inside.set()
        assert go_on.wait(60)
        run(*args)

    world.model._run = wait
    made: list[Any] = []
    other = threading.Thread(target=lambda: made.append(a.feed(ONE)))
    other.start()
    assert inside.wait(60)
    calls: list[Callable[[], Any]] = [
        lambda: b.feed(ONE),
        lambda: a.feed(ONE),
        lambda: world.engine.feed_many([(a, ONE), (b, ONE)]),
        lambda: world.engine.open(),
        lambda: world.engine.restore(b""),
        lambda: a.reset(),
        lambda: a.rewind(b""),
        lambda: b.flush(),
        lambda: b.close(),
        lambda: b.snapshot(),
        lambda: b.state,
        lambda: b.health,
    ]
    for call in calls:
        with pytest.raises(errors.StreamError, match="in the middle of another call"):
            call()
    [refused] = world.engine.feed_many([(b, ONE)])
    assert isinstance(refused, errors.StreamError)
    go_on.set()
    other.join(60)
    assert made == [1]
    assert (a.seq, total(a), b.seq, total(b)) == (1, 1, 0, 0)
    world.model._run = run
    assert b.feed(ONE) == 1


class Calling(Stage):
    """A stage that calls the engine which steps it."""

    name = "calling"

    def __init__(self) -> None:
        self.inputs = self.outputs = Signal((TensorSpec("x", "float32"),))
        self.call: Callable[[], Any] = lambda: None

    def initial(self) -> Any:
        return {}

    def step(self, state: Any, chunk: Any) -> Any:
        self.call()
        return state, {"x": chunk["x"] * 1}


def test_a_stage_that_calls_its_engine() -> None:
    stage = Calling()
    engine = Engine(Pipeline([stage], None, {}))
    a, b = engine.open("a"), engine.open("b")
    stage.call = lambda: b.feed(ONE)
    with pytest.raises(errors.StreamError, match=r"'0: calling'.*in the middle of another call"):
        a.feed(ONE)
    stage.call = lambda: None
    assert a.feed(ONE) == 1
    assert (a.seq, b.seq) == (1, 0)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies_are_refused(tmp_path: Path, how: Callable[[Any], Any]) -> None:
    engine = World(tmp_path).engine
    stream = engine.open("s")
    with pytest.raises(errors.StreamError, match=r"stream 's' cannot be copied .* snapshot\(\)"):
        how(stream)
    with pytest.raises(errors.StreamError, match="an engine cannot be copied"):
        how(engine)


# Interrupts


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt."""


class Injector:
    """Raises at the k-th instant at which CPython handles signals: a call, the end of a C call, a loop.

    Only in this project's own code: a call into other code counts as one instant.
    """

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0
        self._jumps: dict[CodeType, set[int]] = {}

    def __enter__(self) -> Injector:
        sys.setprofile(self._profile)
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        sys.setprofile(None)

    def _instant(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            sys.settrace(None)
            sys.setprofile(None)
            raise Interrupt

    def _ours(self, frame: FrameType) -> bool:
        return frame.f_globals.get("__name__", "").startswith("runnel.")

    def _profile(self, frame: FrameType, event: str, arg: object) -> None:
        if event in ("call", "c_return") and self._ours(frame):
            self._instant()

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if not self._ours(frame):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._opcode

    def _opcode(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode":
            code = frame.f_code
            if code not in self._jumps:
                self._jumps[code] = {
                    i.offset for i in dis.get_instructions(code) if i.opname.startswith("JUMP_BACKWARD")
                }
            if frame.f_lasti in self._jumps[code]:
                self._instant()
        return self._opcode


class Keeping(Stage):
    """A stage with a state of its own, beside the models'."""

    name = "keeping"

    def __init__(self, inputs: Signal) -> None:
        self.inputs = self.outputs = inputs

    def initial(self) -> Any:
        return {"sum": np.zeros((), np.float64)}

    def step(self, state: Any, chunk: Any) -> Any:
        [(name, array)] = chunk.items()
        return {"sum": np.asarray(state["sum"] + np.sum(array, dtype=np.float64))}, {name: array * 1}


class Torn:
    """Two models and a stage, in sequence or in a loop; the oracle is each stream's state by its `seq`."""

    def __init__(self, folder: Path, loop: bool) -> None:
        models.accumulator(folder / "m.onnx")
        (folder / "two.toml").write_text(
            '[model]\npath = "m.onnx"\n[[after]]\nuse = "model"\npath = "m.onnx"\n'
            '[after.inputs]\nx = "y"\n[after.outputs]\ny = "z"\n'
        )
        first, second = load_pipeline(folder / "two.toml", 4, None, 1, False, False).stages
        assert isinstance(first, ModelStage)
        assert isinstance(second, ModelStage)
        stages = [first, Keeping(first.outputs), second]
        pipeline = Pipeline(stages, None, {})
        if loop:
            loop_input = LoopInput(first.inputs.tensors[0], "z", np.array(1, np.float32))
            pipeline = Pipeline([Feedback(pipeline, [loop_input])], None, {})
        self.models = [first, second]
        self.engine = Engine(pipeline, 4)
        self.chunk: Any = Steps(3) if loop else np.ones(2, np.float32)
        self.states: list[Any] = []
        with self.engine.open() as stream:
            for _ in range(4):
                self.states.append(stream.state)
                stream.feed(self.chunk)
        with self.engine.open() as stream:
            stream.feed(self.chunk)
            stream.feed(self.chunk)
            self.blob = stream.snapshot()
            stream.flush()
            self.ended = stream.state

    def check(self) -> None:
        """Check that every stream is intact, and that no arena row is lost."""
        for stream in self.engine.streams.values():
            assert not stream.closed
            laws.same_state(self.ended if stream.ended else self.states[stream.seq], stream.state)
        for model in self.models:
            assert (model.arena.used, model.arena.forked) == (len(self.engine.streams), 0)


def acts(world: Torn, a: Stream, b: Stream) -> dict[str, Callable[[], Any]]:
    return {
        "feed": lambda: a.feed(world.chunk),
        "feed_many": lambda: world.engine.feed_many([(a, world.chunk), (b, world.chunk), (a, world.chunk)]),
        "refused": lambda: world.engine.feed_many([(a, world.chunk), (b, BAD)]),
        "reset": a.reset,
        "rewind": lambda: a.rewind(world.blob),
        "flush": b.flush,
        "close": a.close,
        "open": lambda: world.engine.open("new"),
        "restore": lambda: world.engine.restore(world.blob, "new"),
    }


SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
# Instants between two interrupts, in calls with thousands: primes, so that no loop stays in step.
STRIDES = {"feed": 3, "feed_many": 23, "refused": 13}
ACTS = ["feed", "feed_many", "refused", "reset", "rewind", "flush", "close", "open", "restore"]


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="looks at CPython's bytecode")
@pytest.mark.parametrize("loop", [False, True], ids=["row", "loop"])
@pytest.mark.parametrize("act", ACTS)
def test_an_interrupt_at_every_instant(tmp_path: Path, act: str, loop: bool) -> None:
    world = Torn(tmp_path, loop)
    at, interrupted = 1, True
    while interrupted:
        a, b = world.engine.open("a"), world.engine.open("b")
        a.feed(world.chunk)
        b.feed(world.chunk)
        b.feed(world.chunk)
        call = acts(world, a, b)[act]
        injector = Injector(at)
        try:
            with injector:
                call()
            interrupted = False
        except Interrupt:
            pass
        world.check()
        if interrupted:
            assert "new" not in world.engine.streams, "nobody has it"
        for stream in list(world.engine.streams.values()):
            stream.close()
        world.check()
        assert not world.engine.streams
        at += 1 if SOAK else STRIDES.get(act, 1)
    assert at > 20, "the injector must have met some instants"
