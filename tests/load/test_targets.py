"""Both targets, real: an engine's chunks, a stall, and a daemon that refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runnel.daemon.loop import Daemon
from runnel.engine import Engine
from runnel.errors import LimitError, TimeoutError, UsageError
from runnel.loadgen.local import LocalTarget
from runnel.loadgen.remote import OPENING, STREAMS_PER_CONNECTION, RemoteTarget, hello
from runnel.loadgen.trial import Plan, run
from runnel.pipeline.pipeline import Pipeline
from runnel.spec import Array
from runnel.stage import Chunk, State
from tests.serve.recorder import recording
from tests.serve.support import UNLUCKY, Tally, rows

CHUNKS: list[Chunk] = [{"x": rows(float(i), 1.0)} for i in range(5)]


class Watched(Tally):
    """Records the first number of every chunk; stalls once, at a given chunk."""

    def __init__(self, stall_at: int = -1, seconds: float = 0.0) -> None:
        super().__init__()
        self.seen: list[float] = []
        self.stall_at, self.seconds = stall_at, seconds

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        if len(self.seen) == self.stall_at:
            time.sleep(self.seconds)
        self.seen.append(float(chunk["x"][0, 0]))
        return super().step(state, chunk)


def engine_of(stage: Tally, max_streams: int = 1024) -> Engine:
    return Engine(Pipeline([stage], None, {}), max_streams)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Daemon, Engine]]:
    engine = engine_of(Watched(), max_streams=OPENING + 50)
    daemon = Daemon(engine, f"ipc://{tmp_path}/d.sock")
    thread = threading.Thread(target=daemon.serve)
    thread.start()
    assert daemon.started.wait(10)
    yield daemon, engine
    daemon.stop()
    thread.join(15)
    assert not thread.is_alive()


def test_in_process_each_stream_gets_its_chunks_in_order() -> None:
    stage = Watched()
    engine = engine_of(stage)
    with LocalTarget(engine, CHUNKS, 1) as target:
        for n in range(7):
            target.send(0, float(n))
        answered = [answer for _ in range(7) for answer in target.poll(0.0)]
        assert target.poll(0.0) == []
    assert answered == [(float(n), None) for n in range(7)]
    assert stage.seen == [0, 1, 2, 3, 4, 0, 1]
    assert not engine.streams


def test_in_process_a_batch_has_every_stream_once() -> None:
    with LocalTarget(engine_of(Tally()), CHUNKS, 3) as target:
        for due, stream in enumerate((0, 1, 0, 2)):
            target.send(stream, float(due))
        assert sorted(due for due, _ in target.poll(0.0)) == [0.0, 1.0, 3.0]
        assert [due for due, _ in target.poll(0.0)] == [2.0]


def test_in_process_too_many_streams_leave_none_open() -> None:
    engine = engine_of(Tally(), max_streams=2)
    with pytest.raises(LimitError):
        LocalTarget(engine, CHUNKS, 3)
    assert not engine.streams


def test_a_single_stall_delays_every_chunk_due_meanwhile() -> None:
    """300 ms of three seconds. In a closed loop, only a single chunk would be late."""
    with LocalTarget(engine_of(Watched(stall_at=100, seconds=0.3)), CHUNKS, 10) as target:
        result = run(Plan(10, 10.0, seconds=3.0, warm_up=0.0), target)
    assert result.due == 300
    assert result.failed == 0
    assert result.latencies.percentile(99) > 0.2
    assert sum(n for upper, n in result.latencies.spread() if upper > 0.07) >= 20


def test_a_daemon_applies_every_chunk_once(served: tuple[Daemon, Engine]) -> None:
    daemon, engine = served
    about = hello(daemon.address, 10.0)
    stage = engine.pipeline.stages[0]
    assert isinstance(stage, Watched)
    with RemoteTarget(daemon.address, about, CHUNKS, 2 * STREAMS_PER_CONNECTION + 1, 10.0) as target:
        assert len(engine.streams) == 2 * STREAMS_PER_CONNECTION + 1
        result = run(Plan(2 * STREAMS_PER_CONNECTION + 1, 2.0, seconds=1.0, patience=20.0), target)
    assert not result.failed
    assert not result.behind
    assert result.due == result.latencies.count
    assert len(stage.seen) == 3 * (2 * STREAMS_PER_CONNECTION + 1)  # 1.5 s at 2 Hz
    assert not engine.streams


def test_chunks_due_at_once_share_one_message_per_connection(tmp_path: Path) -> None:
    streams = STREAMS_PER_CONNECTION + 10  # on two connections
    with recording(tmp_path) as recorder:
        about = hello(recorder.address, 10.0)
        with RemoteTarget(recorder.address, about, CHUNKS, streams, 10.0) as target:
            for due in range(3):
                for stream in range(streams if due else 1):
                    target.send(stream, float(due))
                assert drained(target, sent=streams if due else 1) == [""] * (streams if due else 1)
    assert recorder.sizes("feed") == [1, *[streams // 2] * 4]


def test_after_a_chunk_that_failed_the_stream_goes_on(served: tuple[Daemon, Engine]) -> None:
    daemon, _ = served
    chunks: list[Chunk] = [{"x": rows(1.0)}, {"x": rows(UNLUCKY)}, {"x": rows(2.0)}]
    with RemoteTarget(daemon.address, hello(daemon.address, 10.0), chunks, 1, 10.0) as target:
        codes = []
        for n in range(9):
            target.send(0, float(n))
            if n % 2 or n > 6:  # some alone, some with another in flight behind them
                codes += drained(target, sent=n + 1 - len(codes))
    assert codes[:2] == ["", "STAGE_FAILED"]
    assert codes[-1] == ""
    assert len(codes) == 9
    assert set(codes) == {"", "STAGE_FAILED", "GAP"}


def drained(target: RemoteTarget, sent: int) -> list[str]:
    """The codes of `sent` answers, empty for success."""
    codes: list[str] = []
    deadline = time.monotonic() + 10
    while len(codes) < sent and time.monotonic() < deadline:
        codes += [error.code if error else "" for _, error in target.poll(0.5)]
    return codes


def test_streams_that_a_daemon_refuses_leave_none_open(served: tuple[Daemon, Engine]) -> None:
    daemon, engine = served
    about = hello(daemon.address, 10.0)
    with pytest.raises(LimitError, match="streams are open"):
        RemoteTarget(daemon.address, about, CHUNKS, engine.max_streams + 1, 10.0)
    assert not engine.streams


def test_no_answer(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="is the daemon running there"):
        hello(f"ipc://{tmp_path}/none.sock", 0.1)
    with pytest.raises(UsageError, match="needs the port"):
        hello("tcp://127.0.0.1:*", 0.1)


def test_outputs_are_right_under_load() -> None:
    """The measured work is done: the sums are compared with numpy's."""
    engine = engine_of(Tally())
    sums: dict[str, list[Array]] = {}
    feed_many = engine.feed_many

    def spy(pairs: list[tuple[object, Chunk]]) -> list[dict[str, Array]]:
        outs = feed_many(pairs)  # type: ignore[arg-type]
        for (stream, _), out in zip(pairs, outs, strict=True):
            sums.setdefault(stream.id, []).append(out["y"])  # type: ignore[attr-defined]
        return outs

    engine.feed_many = spy  # type: ignore[assignment, method-assign]
    with LocalTarget(engine, CHUNKS, 5) as target:
        assert not run(Plan(5, 40.0, seconds=0.5, warm_up=0.0), target).failed
    for number, outs in enumerate(sums.values()):
        fed = np.concatenate([CHUNKS[(number + k) % 5]["x"] for k in range(len(outs))])
        np.testing.assert_array_equal(np.concatenate(outs), np.cumsum(fed, axis=0)[:-1])
