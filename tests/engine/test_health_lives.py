"""Health checks have no side effects and leave no counts behind; errors in [health]."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Engine, Notice
from runnel.errors import ChunkError, NonFiniteError, PipelineError, RunnelError
from runnel.grouping import Framing
from runnel.insight import health
from runnel.insight.health import PATIENCE, VARIED

from .test_health import WELL, CheckedEngine, net, noise, relu_sum

# Side effects


@pytest.mark.parametrize("every", [0, 1, 5])
def test_health_checks_change_no_output_state_or_snapshot(tmp_path: Path, every: int) -> None:
    path = tmp_path / "p.toml"
    hand = net(tmp_path / "m.onnx", WELL, ("Relu", 1.0, 1.02, 0.0))
    path.write_text(f'[model]\npath = "m.onnx"\n[health]\nevery = {every}\n')
    with Engine.load(hand.path, trust=True) as plain, Engine.load(path, trust=True) as checked:
        assert plain.health.every == health.EVERY
        assert checked.health.every == every
        pairs = [(plain.open(id), checked.open(id)) for id in "abc"]
        chunks = noise(60)
        for i, chunk in enumerate(chunks):
            longer = np.concatenate(chunks[: 1 + i % 3])
            for a, b in pairs[:1]:
                np.testing.assert_array_equal(a.feed(longer), b.feed(longer))
            ours, theirs = ([(pair[k], chunk) for pair in pairs] for k in (0, 1))
            for x, y in zip(plain.feed_many(ours), checked.feed_many(theirs), strict=True):
                np.testing.assert_array_equal(x, y)
        for a, b in pairs:
            for name, array in a.state.items():
                assert array.tobytes() == b.state[name].tobytes()
        assert checked.health.checks == (0 if every == 0 else pytest.approx(4 * 60 / every, abs=4))
    silent = tmp_path / "silent.toml"
    silent.write_text('[model]\npath = "m.onnx"\n')
    with Engine.load(path, trust=True) as one, Engine.load(silent, trust=True) as other:
        stream, twin = one.open("a"), other.open("a")
        for chunk in chunks:
            stream.feed(chunk)
            twin.feed(chunk)
        assert stream.snapshot() == twin.snapshot()


def test_failing_health_check_fails_no_chunk_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checked = CheckedEngine(net(tmp_path / "m.onnx", WELL).path)
    stream, other = checked.engine.open("a"), checked.engine.open("b")

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(checked.engine.health, "_judge", broken)
    with caplog.at_level(logging.ERROR):
        for chunk in noise(5):
            stream.feed(chunk)
            checked.engine.feed_many([(stream, chunk), (other, chunk)])
    assert (stream.seq, other.seq) == (10, 5)
    assert checked.count("look_failures") == 15
    assert [r.getMessage() for r in caplog.records] == [
        "a look at stream 'a' failed: ZeroDivisionError: a fault"
    ]


def test_no_input_of_a_stream_is_stored(tmp_path: Path) -> None:
    checked = CheckedEngine(net(tmp_path / "m.onnx", WELL).path)
    stream, other = checked.engine.open("a"), checked.engine.open("b")
    stream.feed(noise(1)[0])
    checked.engine.feed_many([(stream, noise(1)[0]), (other, noise(1)[0])])
    [stage] = checked.engine.pipeline.stages
    assert stage.last_input is None  # type: ignore[attr-defined]
    for bad in (np.full((1, 3), np.nan, np.float32), np.ones((1, 4), np.float32)):
        with pytest.raises(ChunkError):
            stream.feed(bad)
        assert (stage.last_input, stage.records_input) == (None, False)  # type: ignore[attr-defined]
        checked.engine.feed_many([(stream, bad), (other, bad)])
        assert (stage.last_input, stage.records_input) == (None, False)  # type: ignore[attr-defined]


@pytest.mark.parametrize("batched", [False, True])
def test_listener_may_close_or_reset_the_stream_of_the_notice(tmp_path: Path, batched: bool) -> None:
    checked = CheckedEngine(relu_sum(tmp_path / "m.onnx").path)
    engine = checked.engine

    def feed(value: float) -> None:
        pairs = [(s, np.full((1, 1), value, np.float32)) for s in engine.streams.values()]
        for some in [pairs] if batched else [[pair] for pair in pairs if not pair[0].closed]:
            engine.feed_many([pair for pair in some if not pair[0].closed])

    def act(notice: Notice) -> None:
        if notice.event == "failed":
            engine.streams[notice.stream].close()
        elif notice.event == "blown_up" and notice.stream == "a":
            engine.streams["b"].close()
        elif notice.event == "blown_up":
            engine.streams[notice.stream].reset()

    checked.act = act
    for id in "abc":
        engine.open(id)
    feed(2e38)
    assert {id: (s.seq, s.condition) for id, s in engine.streams.items()} == {
        "a": (1, "blown_up"),
        "c": (0, ""),
    }
    feed(3e38)
    assert list(engine.streams) == ["c"]
    assert checked.count("non_finite") == {"m.s": 1}
    assert checked.count("unhealthy") == {"died": 0, "blown_up": 0}
    assert checked.count("look_failures") == 0


def test_a_listener_may_feed_another_stream(tmp_path: Path) -> None:
    checked = CheckedEngine(relu_sum(tmp_path / "m.onnx", framing=Framing(2, 2)).path)
    a, b, c, d = (checked.engine.open(id) for id in "abcd")
    d._due = -1  # no check for this one

    def act(notice: Notice) -> None:
        if notice.event == "died":
            d.feed(np.full(2, 1, np.float32))

    checked.act = act
    for s in (b, c):  # their hops are full when a's is not
        s.feed(np.full(1, -1, np.float32))
    for i in range(2 * PATIENCE + 2):
        checked.engine.feed_many([(s, np.full(1, -1.0 - i, np.float32)) for s in (a, b, c)])
    assert [s.condition for s in (a, b, c, d)] == ["died", "died", "died", ""]
    assert (d.seq, checked.count("look_failures")) == (3, 0)


# Events in a stream's life


def test_rewound_stream_is_checked_anew(tmp_path: Path) -> None:
    checked = CheckedEngine(relu_sum(tmp_path / "m.onnx").path)
    stream = checked.engine.open("a")
    well = stream.snapshot()
    stream.feed(np.full((1, 1), 1e5, np.float32))
    ill = stream.snapshot()
    stream.rewind(ill)
    assert checked.of("a") == ["blown_up"]
    stream.rewind(well)
    assert checked.of("a") == ["blown_up", "recovered"]
    for x in (-1, -2e3, -3):
        stream.feed(np.full((1, 1), x, np.float32))
    dead = stream.snapshot()
    stream.rewind(dead)
    assert (stream.condition, checked.of("a")[2:]) == ("died", ["died"])
    copy = checked.engine.restore(ill, "b")
    assert copy.condition == "", "it was not looked at yet"
    copy.feed(np.full((1, 1), -1, np.float32))
    assert checked.of("b") == ["blown_up"]
    checked.engine.close()
    assert checked.count("unhealthy") == {"died": 0, "blown_up": 0}


def test_in_a_loop_the_inner_models_states_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    relu_sum(tmp_path / "m.onnx")
    path.write_text(
        '[model]\npath = "m.onnx"\n[feedback]\nx = { output = "y", initial = [1] }\n[health]\nevery = 1\n'
    )
    with Engine.load(path, trust=True) as engine:
        stream, other = engine.open("a"), engine.open("b")
        stream.generate(5)  # 1, 2, 4 …
        engine.generate_many([(stream, 9), (other, 3)])
        assert stream.health["m.s"].peak == 2.0**13
        assert stream.health["m.s"].rms == other.health["m.s"].rms * 2**11
        assert (stream.condition, other.condition) == ("", "")
        stream.generate(1)
        assert stream.condition == "blown_up"
        with pytest.raises(NonFiniteError, match="in time step"):
            other.generate(200)
        assert engine.health.document()["non_finite"] == {"m.s": 1}
        assert engine.health.failures == 0


@pytest.mark.parametrize("ticks", [1, 2, 5])
def test_in_a_loop_a_state_that_no_input_moves_has_died(tmp_path: Path, ticks: int) -> None:
    path = tmp_path / "p.toml"
    relu_sum(tmp_path / "m.onnx", looped=True)
    path.write_text('[model]\npath = "m.onnx"\n[feedback]\nu = { output = "y" }\n[health]\nevery = 1\n')
    with Engine.load(path, trust=True) as engine:
        streams = [engine.open("a"), engine.open("b")]
        for i in range(PATIENCE):
            assert [s.condition for s in streams] == ["", ""]
            engine.feed_many([(s, np.full((ticks, 1), -1 - i, np.float32)) for s in streams])
        assert [s.condition for s in streams] == ["died", "died"]


class Plain:
    """The expected events of one stream of `relu_sum`, from its full history."""

    def __init__(self) -> None:
        self.s = np.float32(0)
        self.looks: list[tuple[float, float, float]] = []
        self.condition = ""
        self.events: list[str] = []

    def feed(self, x: float, largest: float) -> None:
        before, self.s = self.s, np.maximum(self.s + np.float32(x), np.float32(0))
        self.looks.append((float(before), float(self.s), x))
        run: list[tuple[float, float, float]] = []
        for look in reversed(self.looks):
            if look[0] != look[1] or look[1] != float(self.s):
                break
            run.append(look)
        xs = [x for _, _, x in run]
        now = ""
        if self.s > (5e3 if self.condition == "blown_up" else 1e4):
            now = "blown_up"
        elif len(run) >= PATIENCE and max(xs) - min(xs) > VARIED * largest:
            now = "died"
        if now != self.condition:
            self.events.append(now or "recovered")
        self.condition = now

    def reset(self) -> None:
        self.s, self.looks, self.condition = np.float32(0), [], ""


values = st.sampled_from([0.0, 0.0, -1.0, -2.0, -2.0, 3.0, 1e-9, 4e3, 1.5e4, -9e3])
acts = st.lists(st.tuples(st.sampled_from("ab"), st.one_of(values, values, st.just("reset"))), max_size=60)


@pytest.fixture(scope="module")
def summing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return relu_sum(tmp_path_factory.mktemp("sum") / "m.onnx").path


@given(acts)
def test_events_equal_those_of_a_plain_model(summing: Path, acts: list[tuple[str, Any]]) -> None:
    checked = CheckedEngine(summing)
    streams = {id: checked.engine.open(id) for id in "ab"}
    plain = {id: Plain() for id in "ab"}
    largest = 0.0
    for id, act in acts:
        if act == "reset":
            streams[id].reset()
            plain[id].reset()
            continue
        largest = max(largest, abs(act))
        streams[id].feed(np.full((1, 1), act, np.float32))
        plain[id].feed(act, largest)
        assert streams[id].condition == plain[id].condition
    for id in "ab":
        assert checked.of(id) == plain[id].events
    now = Counter(p.condition for p in plain.values())
    assert checked.count("unhealthy") == {"died": now["died"], "blown_up": now["blown_up"]}
    events = Counter(event for p in plain.values() for event in p.events)
    assert checked.count("state_events") == {name: events[name] for name in health.EVENTS}


fed = st.dictionaries(st.sampled_from("abcd"), st.tuples(values, st.integers(1, 5)), min_size=1)
lives = st.lists(
    st.tuples(
        st.sampled_from(
            ["feed", "feed", "feed", "fail", "reset", "keep", "rewind", "restore", "flush", "close"]
        ),
        st.sampled_from("abcd"),
        fed,
    ),
    max_size=50,
)


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return relu_sum(tmp_path_factory.mktemp("framed") / "m.onnx", framing=Framing(2, 2)).path


@given(lives, st.integers(1, 3))
def test_count_of_unhealthy_streams_is_right_after_any_events(framed: Path, acts: Any, every: int) -> None:
    """The same streams fed together and one by one have the same events, and no count is left at the end.

    Chunks differ in length from the hop, so some reach the model and some do not.
    """
    both = CheckedEngine(framed, every), CheckedEngine(framed, every)
    for checked in both:
        engine = checked.engine

        def act(notice: Notice, engine: Engine = engine) -> None:  # the listener changes two of the streams
            if notice.event == "died" and notice.stream == "c":
                engine.streams["c"].close()
            if notice.event == "blown_up" and notice.stream == "d":
                engine.streams["d"].reset()

        checked.act = act
        kept = ""
        blob = b""
        for what, id, chunks in acts:
            for name in {id, *chunks} - engine.streams.keys():
                engine.open(name)
            stream = engine.streams[id]
            if what == "feed":
                pairs = [
                    (engine.streams[name], np.full(length, value, np.float32))
                    for name, (value, length) in chunks.items()
                ]
                for some in [pairs] if checked is both[0] else [[pair] for pair in pairs]:
                    engine.feed_many(some)
            elif what == "fail":
                with suppress(RunnelError):
                    stream.feed(np.full(4, 3e38, np.float32))
            elif what == "reset":
                stream.reset()
            elif what == "keep":
                blob, kept = stream.snapshot(), id
            elif what == "rewind" and kept:
                stream.rewind(blob)
            elif what == "restore" and kept:
                stream.close()
                engine.restore(blob, id)
            elif what == "flush" and not stream.ended:
                stream.flush()
            elif what == "close":
                stream.close()
            now = Counter(stream.condition for stream in engine.streams.values())
            assert checked.count("unhealthy") == {"died": now["died"], "blown_up": now["blown_up"]}
            assert checked.count("look_failures") == 0
    together, apart = ([checked.of(id) for id in "abcd"] for checked in both)
    assert together == apart
    for checked in both:
        checked.engine.close()
        assert checked.count("unhealthy") == {"died": 0, "blown_up": 0}


# [health]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("evry = 3", r"p.toml: \[health\]: unknown key 'evry' \(did you mean 'every'\?\)"),
        ("every = -1", "every must be a whole number of chunks, 0 for never, not -1"),
        ("every = true", "not True"),
        ("blown_up = 0", "blown_up must be a number above 0, not 0"),
        ("blown_up = inf", "not inf"),
        ('ignore = "m.s"', r"ignore must be a list of states"),
        ('ignore = ["m.z"]', r"p.toml: \[health\] ignore: no model has a state 'm.z'"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, says: str) -> None:
    relu_sum(tmp_path / "m.onnx")
    (tmp_path / "p.toml").write_text(f'[model]\npath = "m.onnx"\n[health]\n{text}\n')
    with pytest.raises(PipelineError, match=says):
        Engine.load(tmp_path / "p.toml", trust=True)


def test_pipeline_without_a_model_has_no_health_checks(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[input]\nrate = 8000\n[[before]]\nuse = "gain"\nfactor = 2.0\n')
    with Engine.load(tmp_path / "p.toml") as engine:
        stream = engine.open()
        for _ in range(3):
            stream.feed(np.ones(1, np.float32))
        assert (engine.health.every, engine.health.checks, dict(stream.health)) == (0, 0, {})


def test_stream_that_ends_before_its_first_check_is_checked_at_the_end(tmp_path: Path) -> None:
    """A file of a few large chunks has no check within 251 chunks."""
    relu_sum(tmp_path / "m.onnx")
    for every, events in ((10**6, ["blown_up"]), (0, [])):
        checked = CheckedEngine(tmp_path / "m.onnx", every=every)
        stream = checked.engine.open("a")
        stream.feed(np.full((3, 1), 1e4, np.float32))
        assert checked.of("a") == []
        stream.flush()
        assert checked.of("a") == events
