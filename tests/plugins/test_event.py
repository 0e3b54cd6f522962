"""event: edges as found by a loop over samples."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import PipelineError, SnapshotError
from runnel.laws.trial import play
from runnel_plugins.event import Event


def signal(*shape, dtype="bool", rate=None):
    return Signal((TensorSpec("x", dtype, shape),), rate)


@pytest.mark.parametrize("shape", [(), (1,), (2, 2)])
@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize(("dtype", "rate"), [("bool", None), ("int64", 10.0)])
def test_it_keeps_the_laws(shape, close, dtype, rate):
    check_stage(lambda: Event(signal(*shape, dtype=dtype, rate=rate), close))


@given(
    x=st.lists(st.tuples(*[st.sampled_from([0, 0, 1, -3])] * 2), max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    close=st.booleans(),
)
def test_it_finds_the_edges_that_a_loop_finds(x, cuts, close):
    want, before, since = [], [False, False], [0, 0]
    for t, row in enumerate([*x, (0, 0)] if close else x):
        for channel, value in enumerate(row):
            if bool(value) != before[channel]:
                want.append(
                    (1 if value else -1, t, t - since[channel], t / 4, (t - since[channel]) / 4, channel)
                )
                before[channel], since[channel] = bool(value), t
    given_ = np.array(x, np.int16).reshape(-1, 2)
    edges = [0, *sorted(min(c, len(x)) for c in cuts), len(x)]
    stage = Event(signal(2, dtype="int16", rate=4.0), close)
    got = play(stage, [{"x": given_[a:b]} for a, b in itertools.pairwise(edges)])
    names = ("edge", "index", "length", "time", "duration", "channel")
    assert stage.outputs.names == names
    assert list(zip(*(got[name].tolist() for name in names), strict=True)) == want


def test_many_streams_at_once_have_the_edges_that_each_has():
    stage = Event(signal(3, rate=2.0))
    rng = np.random.default_rng(1)
    states = [stage.step(stage.open(), {"x": rng.random((n, 3)) < 0.5})[0] for n in range(6)]
    x = rng.random((6, 20, 3)) < 0.4
    x[3] = states[3]["on"]  # nothing changes
    many = stage.step_many(states, [{"x": one} for one in x])
    for state, one, (after, rows) in zip(states, x, many, strict=True):
        alone, want = stage.step(state, {"x": one})
        for made, wanted in ((rows, want), (after, alone)):
            for name in wanted:
                np.testing.assert_array_equal(made[name], wanted[name])
    assert len(many[3][1]["edge"]) == 0


def test_flush_ends_open_phases_once():
    stage = Event(signal(rate=2.0), close=True)
    state, rows = stage.step(stage.open(), {"x": np.array([True, True, True])})
    assert {name: array.tolist() for name, array in rows.items()} == {
        "edge": [1], "index": [0], "length": [0], "time": [0], "duration": [0]
    }  # fmt: skip
    state, rows = stage.flush(state)
    assert (rows["edge"].tolist(), rows["time"].tolist(), rows["duration"].tolist()) == ([-1], [1.5], [1.5])
    assert state == {"on": False, "since": 3, "samples": 3}
    assert len(stage.flush(state)[1]["edge"]) == 0
    assert len(Event(signal()).flush({"on": np.array(True)})[1]["edge"]) == 0


def test_without_a_rate_there_are_no_seconds():
    assert Event(signal()).outputs.names == ("edge", "index", "length")
    assert Event(signal(), rate=8.0).outputs.names == ("edge", "index", "length", "time", "duration")
    assert Event(signal(rate=8.0)).outputs.rate is None


def test_other_arrays_are_dropped():
    inputs = Signal((TensorSpec("z", "float32"), TensorSpec("anomaly", "bool")))
    assert Event(inputs).outputs.names == ("edge", "index", "length")
    check_stage(lambda: Event(inputs))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"on": np.zeros(3, bool)}, r"'on' has shape \(3,\), expected \(2,\)"),
        ({"since": np.array([0, 1])}, "an edge outside of the 0 samples"),
        ({"since": np.array([0, -1])}, "an edge outside"),
        ({"samples": np.array(-1)}, "an edge outside of the -1 samples"),
    ],
)
def test_impossible_states_are_not_restored(bad, says):
    stage = Event(signal(2))
    with pytest.raises(SnapshotError, match=says):
        stage.load(stage.open(), {**stage.initial(), **bad})


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (signal(dtype="float32"), {}, "a 'threshold' stage makes one.*, but x: float32"),
        (signal(), {"rate": 0.0}, "rate must be a positive number of Hz, not 0"),
        (signal(rate=10.0), {"rate": 20.0}, "rate is 20 Hz, but 10 Hz arrive"),
    ],
)
def test_bad_options_are_refused_at_construction(inputs, options, says):
    with pytest.raises(PipelineError, match=says):
        Event(inputs, **options)
