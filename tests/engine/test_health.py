"""Health events: states that blow up or die are reported once, healthy or resting ones never."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from onnx import helper

from runnel import Engine, Notice, Stream
from runnel.errors import NonFiniteError
from runnel.grouping import Framing
from runnel.insight import health, statistics
from runnel.insight.health import PATIENCE, Settings
from runnel.notices import Notices
from runnel.probe import Probe, ProbeLayer
from tests import models
from tests.models import Hand, state, tensor

HIDDEN = 8
SATURATED = ("Tanh", 1.0, 0.5, 40.0)
NEVER_ON = ("Relu", 1.0, 0.5, -100.0)
WELL = ("Tanh", 0.3, 0.5, 0.1)


def net(
    path: Path, *layers: tuple[str, float, float, float], features: int = 3, framing: Framing | None = None
) -> Hand:
    """Layers of ONNX's own RNN, h' = activation(feed * U x + gain * h + bias), U random; y is the last h'."""
    rng = np.random.default_rng(3)
    nodes, weights, states = [], {"axis": np.array([1])}, []
    current, size = "x", framing.window if framing else features
    for i, (activation, feed, gain, bias) in enumerate(layers):
        weights[f"W{i}"] = (feed * rng.standard_normal((1, HIDDEN, size))).astype(np.float32)
        weights[f"R{i}"] = (gain * np.eye(HIDDEN))[None].astype(np.float32)
        weights[f"B{i}"] = np.concatenate([np.full(HIDDEN, bias), np.zeros(HIDDEN)])[None].astype(np.float32)
        given = [current, f"W{i}", f"R{i}", f"B{i}", "", f"h{i}"]
        made = [f"Y{i}", f"h{i}.next"]
        nodes.append(helper.make_node("RNN", given, made, hidden_size=HIDDEN, activations=[activation]))
        current, size = (f"s{i}" if i + 1 < len(layers) else "y"), HIDDEN
        nodes.append(helper.make_node("Squeeze", [f"Y{i}", "axis"], [current]))
        states.append(state(f"h{i}", (1, "slot", HIDDEN)))
    x = tensor("x", ("time", "slot", framing.window if framing else features))
    y = tensor("y", ("time", "slot", HIDDEN))
    return models.write(path, nodes, weights, [x], [y], states, framing=framing)


def relu_sum(path: Path, looped: bool = False, framing: Framing | None = None) -> Hand:
    """s' = max(s + x, 0) = y, of one number or of a window: the result is known by hand.

    `looped`: it has an input u too.
    """
    nodes = [
        helper.make_node("Add", ["s", "given" if looped else "x"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["s.next"]),
        helper.make_node("Relu", ["s.next"], ["y"]),
    ]
    if looped:  # x + 0 u
        nodes.insert(0, helper.make_node("Mul", ["u", "zero"], ["none"]))
        nodes.insert(1, helper.make_node("Add", ["x", "none"], ["given"]))
    weights = {"zero": np.zeros(1, np.float32)} if looped else {}
    row = ("slot", framing.window if framing else 1)
    given = [tensor(name, row) for name in ("xu" if looped else "x")]
    y, s = tensor("y", row), state("s", row)
    return models.write(path, nodes, weights, given, [y], [s], any_ticks=False, framing=framing)


class CheckedEngine:
    """An engine with a health check every few chunks, and the notices about its states."""

    def __init__(self, path: Path, every: int = 1, **settings: Any) -> None:
        self._heard: list[Notice] = []
        self.act: Callable[[Notice], None] = lambda notice: None  # the listener's action
        pipeline = Engine.load(path, max_streams=8, trust=True).pipeline
        notices = Notices([("test", self._heard.append), ("act", lambda notice: self.act(notice))])
        self.engine = Engine(pipeline, 8, notices, Settings(every, **settings))

    def of(self, id: str) -> list[str]:
        assert not self.engine.health.failures
        return [n.event for n in self._heard if n.stream == id and n.event in health.EVENTS]

    @property
    def reasons(self) -> list[str]:
        return [n.reason for n in self._heard if n.event in health.EVENTS]

    def count(self, name: str) -> Any:
        return self.engine.health.document()[name]


def noise(count: int, features: int = 3, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).standard_normal((count, 1, features)).astype(np.float32))


def refused(stream: Stream, chunks: Iterable[np.ndarray]) -> bool:
    """Whether a chunk is refused because of the state it would cause; the chunks before it are fed."""
    for chunk in chunks:
        try:
            stream.feed(chunk)
        except NonFiniteError as error:
            return "became non-finite" in error.message
    return False


# Failures


def test_exploding_relu_net_is_reported_before_its_state_is_infinite(tmp_path: Path) -> None:
    checked = CheckedEngine(net(tmp_path / "m.onnx", ("Relu", 1.0, 1.5, 0.0)).path, every=8)
    stream = checked.engine.open("a")
    chunks = iter(noise(2000))
    while not checked.of("a"):
        stream.feed(next(chunks))
    peak = np.abs(stream.state["m.h0"]).max()
    assert 1e4 < peak < 1e4 * 1.5**9, "at the first look that could see it"
    assert checked.reasons == [f"state 'm.h0' reached {peak:.3g}, beyond 10000"]
    assert refused(stream, chunks)
    with pytest.raises(NonFiniteError):
        stream.feed(noise(1)[0])
    assert checked.of("a") == ["blown_up"], "an episode is told once"
    assert stream.condition == "blown_up"
    assert checked.count("non_finite") == {"m.h0": 2}
    assert checked.count("unhealthy") == {"died": 0, "blown_up": 1}
    stream.reset()
    assert stream.condition == ""
    assert checked.count("unhealthy") == {"died": 0, "blown_up": 0}


def test_state_that_explodes_between_checks_is_found_when_its_chunk_is_refused(tmp_path: Path) -> None:
    checked = CheckedEngine(net(tmp_path / "m.onnx", ("Relu", 1.0, 3.0, 0.0)).path, every=10_007)
    stream = checked.engine.open("a")
    assert refused(stream, noise(1000))
    assert checked.of("a") == ["blown_up"]
    # One chunk that would make it infinite at once is refused, so the state stays healthy.
    with pytest.raises(NonFiniteError):
        checked.engine.open("b").feed(np.concatenate(noise(1000)))
    assert checked.of("b") == []
    assert checked.count("non_finite") == {"m.h0": 2}


@pytest.mark.parametrize("batched", [False, True])
def test_error_names_the_non_finite_model_of_two_with_one_name(tmp_path: Path, batched: bool) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        relu_sum(tmp_path / folder / "m.onnx")
    path = tmp_path / "p.toml"
    path.write_text(
        '[model]\npath = "a/m.onnx"\n[[after]]\nuse = "model"\npath = "b/m.onnx"\ninputs = { x = "y" }\n'
    )
    with Engine.load(path, trust=True) as engine:
        streams = [engine.open(id) for id in ("a", "b")]
        # The first sums to 2e38, 3e38; the second, which sums these, overflows.
        for value, expected in ((2e38, 0), (1e38, 1 + batched)):
            pairs = [(stream, np.full((1, 1), value, np.float32)) for stream in streams]
            engine.feed_many(pairs if batched else pairs[:1])
            assert engine.health.document()["non_finite"] == {"m-0.s": 0, "m-1.s": expected}


@pytest.mark.parametrize("layer", [SATURATED, NEVER_ON], ids=["saturated", "never-on"])
@pytest.mark.parametrize("batched", [False, True])
def test_state_that_no_input_moves_has_died(tmp_path: Path, layer: Any, batched: bool) -> None:
    checked = CheckedEngine(net(tmp_path / "m.onnx", layer).path)
    streams = [checked.engine.open(id) for id in ("a", "b")]
    seen = []
    for chunk in noise(8):
        if batched:
            checked.engine.feed_many([(stream, chunk) for stream in streams])
        else:
            streams[0].feed(chunk)
        seen.append(checked.of("a"))
    first = 1 if layer is SATURATED else 0  # its first chunk changes that one from 0 to 1
    assert seen == [["died"] if i >= first + PATIENCE - 1 else [] for i in range(8)]
    assert checked.reasons[0].startswith(
        "state 'm.h0' no longer changes: the same at 3 looks, 1 chunks apart"
    )
    assert checked.count("unhealthy")["died"] == (2 if batched else 1)
    streams[0].close()
    assert checked.count("unhealthy")["died"] == (1 if batched else 0)


def test_in_a_batch_each_stream_is_judged_by_its_own_input(tmp_path: Path) -> None:
    """Their hops are full at different chunks, so that a stream's index differs between the stages."""
    checked = CheckedEngine(relu_sum(tmp_path / "m.onnx", framing=Framing(2, 2)).path)
    streams = {id: checked.engine.open(id) for id in "abcde"}
    for id in "be":
        streams[id].feed(np.full(1, -1, np.float32))
    for i in range(2 * PATIENCE + 2):
        pairs = [(s, np.full(1, -1.0 if id in "ac" else -1.0 - i, np.float32)) for id, s in streams.items()]
        checked.engine.feed_many(pairs)
    assert {id: s.condition for id, s in streams.items()} == {
        id: "" if id in "ac" else "died" for id in "abcde"
    }
    assert checked.count("look_failures") == 0


def test_dead_layer_after_a_healthy_one_is_reported_unless_ignored(tmp_path: Path) -> None:
    path = net(tmp_path / "m.onnx", WELL, SATURATED).path
    for ignore, events in (((), ["died"]), (("m.h1",), [])):
        checked = CheckedEngine(path, ignore=ignore)
        stream = checked.engine.open("a")
        for chunk in noise(10):
            stream.feed(chunk)
        assert checked.of("a") == events
        assert all("state 'm.h1' no longer" in reason for reason in checked.reasons)


def test_state_that_moves_again_has_recovered(tmp_path: Path) -> None:
    checked = CheckedEngine(relu_sum(tmp_path / "m.onnx").path)
    stream = checked.engine.open("a")

    def feed(*values: float) -> list[str]:
        for value in values:
            stream.feed(np.full((1, 1), value, np.float32))
        return checked.of("a")

    assert feed(-1, -2, -3) == ["died"]
    assert feed(5) == ["died", "recovered"]
    assert checked.reasons[-1] == "it had died"
    assert feed(2e4) == ["died", "recovered", "blown_up"]
    assert feed(-1.2e4)[3:] == [], "above half of the bound it is not over"
    assert feed(-5e3)[3:] == ["recovered"]
    assert checked.reasons[-1] == "it had blown up"
    assert checked.count("state_events") == {"died": 1, "blown_up": 1, "recovered": 2}


# No failures


@pytest.mark.parametrize("what", ["silence", "constant", "tail", "dither"])
def test_a_state_at_rest_is_not_dead(tmp_path: Path, what: str) -> None:
    """After varied input, the input is constant, or constant as far as it matters."""
    checked = CheckedEngine(net(tmp_path / "m.onnx", WELL, WELL).path)
    stream = checked.engine.open("a")
    rng = np.random.default_rng(0)
    for chunk in noise(20):
        stream.feed(chunk)
    still = 0
    for i in range(300):
        before = stream.state["m.h1"]
        stream.feed(
            {
                "silence": np.zeros((1, 3), np.float32),
                "constant": np.full((1, 3), 0.5, np.float32),
                "tail": np.full((1, 3), 0.8**i, np.float32),
                "dither": (0.5 + 1e-9 * rng.standard_normal((1, 3))).astype(np.float32),
            }[what]
        )
        still += bool((stream.state["m.h1"] == before).all())
    assert still > 50, "it did come to rest"
    assert checked.of("a") == []


def test_a_stream_whose_chunks_are_shorter_than_a_hop_is_not_dead(tmp_path: Path) -> None:
    checked = CheckedEngine(net(tmp_path / "m.onnx", WELL, framing=Framing(8, 8)).path)
    stream = checked.engine.open("a")
    for sample in np.random.default_rng(0).standard_normal(200).astype(np.float32):
        stream.feed(sample[None])
    assert checked.of("a") == []
    assert checked.count("looks") == 200


@pytest.mark.parametrize(("step", "events"), [(1e6, []), (0.0, ["died"])])
def test_state_that_moves_between_checks_is_not_dead(tmp_path: Path, step: float, events: Any) -> None:
    """A state that is written every other tick; float32 cannot add 3 to 1e8."""
    checked = CheckedEngine(relu_sum(tmp_path / "m.onnx").path, every=2, blown_up=1e12)
    stream = checked.engine.open("a")
    beside = [0.0] * stream._due  # so that checks come at every other of the following chunks
    for value in [*beside, 0.0, 1e8, *(x for k in range(12) for x in (k % 4, step))]:
        stream.feed(np.full((1, 1), value, np.float32))
    assert checked.of("a") == events


@pytest.mark.parametrize("make", [models.lstm, models.counter])
def test_healthy_model_causes_no_event(tmp_path: Path, make: Any) -> None:
    hand = make(tmp_path / "m.onnx")
    checked = CheckedEngine(hand.path)
    stream = checked.engine.open("a")
    data = models.data(hand, 300)
    for i in range(300):
        stream.feed({name: array[i : i + 1] for name, array in data.items()})
    assert checked.of("a") == []
    assert checked.count("look_failures") == 0
    assert checked.count("looks") == 300


# When checks come, and what they measure


def test_each_stream_is_checked_once_in_every_chunks_at_its_own_offset(tmp_path: Path) -> None:
    checked = CheckedEngine(net(tmp_path / "m.onnx", WELL).path, every=7)
    streams = [checked.engine.open(f"s{i}") for i in range(8)]
    looks = []
    for chunk in noise(21):
        checked.engine.feed_many([(stream, chunk) for stream in streams])
        looks.append(checked.count("looks"))
    turns = Counter(crc32(stream.id.encode()) % 7 for stream in streams)
    assert np.diff([0, *looks]).tolist() == [turns[i % 7] for i in range(21)]
    assert max(turns.values()) < 8
    # A reset does not restart the count: a stream that is reset often is checked as often.
    stream = checked.engine.streams["s0"]
    for chunk in noise(70):
        stream.reset()
        stream.feed(chunk)
    assert checked.count("looks") == looks[-1] + 10


def by_numpy(array: np.ndarray, initial: Any) -> tuple[float, ...]:
    x = array.astype(np.float64)
    return np.sqrt((x**2).mean()), np.abs(x).max(), np.sqrt(((x - initial) ** 2).mean())


def test_statistics_equal_numpys(tmp_path: Path) -> None:
    hand = models.lstm(tmp_path / "m.onnx")  # its cell states begin at 0.25
    checked = CheckedEngine(hand.path, every=1)
    stream = checked.engine.open("a")
    expected: dict[str, list[tuple[float, ...]]] = {f"m.{s.input}": [] for s in hand.spec.states}
    for chunk in noise(30):
        stream.feed(chunk)
        for s in hand.spec.states:
            expected[f"m.{s.input}"].append(by_numpy(stream.state[f"m.{s.input}"], s.initial))
    for label, found in stream.health.items():
        np.testing.assert_allclose((found.rms, found.peak, found.distance), expected[label][-1], rtol=1e-12)
    assert stream.health.keys() == expected.keys()
    for at, name in ((0, "state_rms"), (2, "state_distance")):
        for label, histogram in checked.count(name).items():
            values = [row[at] for row in expected[label]]
            assert histogram["sum"] == pytest.approx(sum(values), rel=1e-5)
            inside = np.histogram(values, [0, *histogram["bounds"], np.inf])[0]
            assert histogram["counts"] == inside.tolist()


def test_saturation_is_only_given_for_values_of_a_tanh() -> None:
    found = statistics.of_state(np.array([0.995, -1.0, 0.5, 0.0]), np.zeros(4))
    assert found.saturated == 0.5
    assert statistics.of_state(np.array([0.995, 1.5]), np.zeros(2)).saturated is None
    huge = np.full(4, 3e38, np.float32)  # float32 cannot hold their squares
    assert statistics.norm(huge) == pytest.approx(6e38)
    assert statistics.norm(np.full(4, 6e4, np.float16)) == pytest.approx(2 * 6e4)
    most = statistics.of_state(np.full(4, 1e300), np.zeros(1))
    assert (most.rms, most.distance) == pytest.approx((1e300, 1e300))


@pytest.mark.parametrize("size", [1, 1024, 1025, 5000])
def test_states_are_equal_only_bit_for_bit(size: int) -> None:
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    assert statistics.same(x, x.copy())
    for at in {0, size // 2, size - 1}:
        other = x.copy()
        other[at] = np.nextafter(other[at], np.float32(9))
        assert not statistics.same(x, other)
    assert not statistics.same(np.zeros(size, np.float32), np.full(size, -0.0, np.float32))


def probe(path: Path) -> Hand:
    """Return a gated unit that shows its gate: f = sigmoid(x), h' = f h + (1 - f) x."""
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["f"]),
        helper.make_node("Mul", ["f", "h"], ["kept"]),
        helper.make_node("Mul", ["f", "x"], ["lost"]),
        helper.make_node("Sub", ["x", "lost"], ["new"]),
        helper.make_node("Add", ["kept", "new"], ["h.next"]),
        helper.make_node("Tanh", ["h.next"], ["y"]),
    ]
    return models.write(
        path,
        nodes,
        {},
        [tensor("x", ("slot", 3))],
        [tensor("y", ("slot", 3)), tensor("f", ("slot", 3))],
        [state("h", ("slot", 3))],
        any_ticks=False,
        probe=Probe("of", (ProbeLayer("unit.0", "Unit", {"f": "f"}),)),
    )


def test_saturated_gates_of_a_probe_are_counted(tmp_path: Path) -> None:
    checked = CheckedEngine(probe(tmp_path / "m.onnx").path, every=3)
    streams = [checked.engine.open(f"s{i}") for i in range(4)]
    expected = np.zeros(3, int)
    for chunk in noise(30, seed=1):
        for s in streams:
            x = chunk * 3
            before = checked.count("looks")
            out = s.feed({"x": x})
            if checked.count("looks") > before:
                f = 1 / (1 + np.exp(-x[-1].astype(np.float64)))
                assert set(out) == {"y", "f"}
                expected += [f.size, (f < 0.1).sum(), (f > 0.9).sum()]
    found = [checked.count(n) for n in ("gate_units", "gate_units_shut", "gate_units_open")]
    assert [f["m.unit.0.f"] for f in found] == expected.tolist()
    assert expected.all()


def test_gates_that_are_not_outputs_are_not_counted(tmp_path: Path) -> None:
    probe(tmp_path / "m.onnx")
    net(tmp_path / "n.onnx", WELL)
    path = tmp_path / "p.toml"
    path.write_text(
        '[model]\npath = "m.onnx"\n[health]\nevery = 1\n'
        '[[after]]\nuse = "model"\npath = "n.onnx"\ninputs = { x = "y" }\noutputs = { y = "out" }\n'
    )
    with Engine.load(path, trust=True) as engine:
        engine.open().feed(noise(1)[0])
        assert engine.health.checks == 1
        assert engine.health.document()["gate_units"] == {}
