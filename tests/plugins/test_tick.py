"""tick: numpy's interp, and plain loops over the whole sequence, one chunk at a time."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import ChunkError, NonFiniteError, PipelineError, SnapshotError
from runnel.loading.registry import make_stage
from runnel_plugins import tick as module
from runnel_plugins.tick import Tick

TIMED = Signal((TensorSpec("time", "float64"), TensorSpec("x", "float32", (2,)), TensorSpec("y", "float32")))
OPTIONS = [
    {"how": how, **gap}
    for how in ("hold", "linear", "mean")
    for gap in ({}, {"max_gap": 0.35, "gap": "hold"}, {"max_gap": 0.35, "gap": "nan"})
]


def rows(times, seed=0):
    rng = np.random.default_rng(seed)
    n = len(times)
    return {
        "time": np.array(times, np.float64),
        "x": rng.standard_normal((n, 2)).astype(np.float32),
        "y": rng.standard_normal(n).astype(np.float32),
    }


def play(stage, chunk, cuts=()):
    n = len(chunk["time"])
    state, made, edges = stage.open(), [], [0, *sorted(cuts), n]
    for a, b in itertools.pairwise(edges):
        state, out = stage.step(state, {name: array[a:b] for name, array in chunk.items()})
        made.append(out)
    made.append(stage.flush(state)[1])
    return {name: np.concatenate([m[name] for m in made]) for name in stage.outputs.names}


def plain(time, x, rate, how, max_gap, gap):
    """Put the rows on the clock tick by tick, from the whole sequence."""
    at, out, k = (time - time[0]) * rate, [], 0
    at = np.where(abs(at - np.rint(at)) < 1e-3, np.rint(at), at)
    while k <= at[-1]:
        after = int(np.argmax(at >= k))
        before = after if at[after] == k else after - 1
        far = time[after] - time[before] > max_gap
        inside = (at >= k) & (at < k + 1)
        if how == "mean":
            far = far and not inside.any()
            value = x[inside].mean(axis=0, dtype=np.float64) if inside.any() else out[-1]
            if far and gap == "hold":
                value = next(v for v in reversed(out) if not np.isnan(v).any())
        elif how == "linear" and at[after] > k and not far:
            value = [np.interp(k, at[[before, after]], x[[before, after], f]) for f in range(x.shape[1])]
        else:
            value = x[before]
        out.append(np.full(x.shape[1], np.nan) if far and gap == "nan" else value)
        k += 1
    return np.array(out)


def irregular(steps, seed=0):
    return 1.7e9 + np.cumsum(np.random.default_rng(seed).exponential(0.1, steps))


@pytest.mark.parametrize("options", OPTIONS)
def test_it_keeps_the_laws(options):
    # The checker plays time backwards and changes single times, so here all times are equal. The next test
    # has a clock that runs.
    still = rows(np.zeros(64))
    check_stage(lambda: Tick(TIMED, rate=10.0, **options), still)


@pytest.mark.parametrize("options", OPTIONS)
def test_it_keeps_the_laws_that_can_be_tried_while_time_runs(options):
    from runnel.checks import LAWS
    from runnel.laws.trial import Trial

    trial = Trial(lambda: Tick(TIMED, rate=10.0, **options), rows(irregular(100)), 0, 1e-6)
    for name in LAWS.keys() - {"isolation", "bounded"}:
        LAWS[name](trial)


@pytest.mark.parametrize("options", OPTIONS)
@given(
    steps=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 100), max_size=6),
    rate=st.sampled_from([1.0, 10.0, 33.3]),
    repeated=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_equals_a_plain_loop_at_any_cuts(options, steps, cuts, rate, repeated, seed):
    time = irregular(steps, seed) + 0.5 * np.arange(steps) // 4
    if repeated:
        time = np.sort(np.round(time, 1))  # many at the same time, and on the clock
    chunk = rows(time, seed)
    got = play(Tick(TIMED, rate=rate, **options), chunk, [c * steps // 100 for c in cuts])
    limits = {"max_gap": np.inf, "gap": "hold"} | {k: options[k] for k in ("max_gap", "gap") if k in options}
    both = np.concatenate([chunk["x"], chunk["y"][:, None]], axis=1)
    want = plain(time, both, rate, options["how"], **limits)
    np.testing.assert_allclose(got["x"], want[:, :2], atol=1e-4)
    np.testing.assert_allclose(got["y"], want[:, 2], atol=1e-4)


def test_many_streams_equal_single_ones():
    stage = Tick(TIMED, rate=10.0)
    chunks = [rows(irregular(n, n), n) for n in (20, 20, 3)]
    backwards = rows([1.0, 0.0])
    results = stage.step_many([stage.open() for _ in range(4)], [*chunks, backwards])
    for chunk, result in zip(chunks, results, strict=False):
        np.testing.assert_array_equal(result[1]["x"], play(stage, chunk)["x"])
    assert isinstance(results[3], ChunkError)


def test_rows_that_are_regular_already_come_at_once_though_their_clock_rounds():
    stage = Tick(TIMED, rate=10.0)
    chunk = rows(1.7e9 + np.arange(50) * 0.1)
    state = stage.open()
    for t in range(50):
        state, out = stage.step(state, {n: a[t : t + 1] for n, a in chunk.items()})
        np.testing.assert_array_equal(out["x"], chunk["x"][t : t + 1])


def test_its_rate_is_known_though_its_ratio_is_not():
    stage = make_stage("tick", TIMED, {"rate": 10}, "here")
    assert (stage.ratio, stage.outputs.rate, stage.outputs.names) == (None, 10.0, ("x", "y"))


def test_hold_is_for_any_dtype():
    signal = Signal((TensorSpec("at", "float64"), TensorSpec("n", "int64")))
    stage = Tick(signal, rate=1.0, time="at")
    _, out = stage.step(stage.open(), {"at": np.array([0.0, 0.5, 2.5]), "n": np.array([4, 5, 6])})
    assert out["n"].tolist() == [4, 5, 5]


@pytest.mark.parametrize("cut", [None, 2])
@pytest.mark.parametrize(
    ("times", "options", "message"),
    [
        ([5, 6, 5.5], {}, "time goes backwards: from 6.0 to 5.5 s at time step {at};"),
        ([5, 6, 1e12], {}, r"more than 65536 ticks \(is 'time' in seconds\?\): from 6.0 to 1000000000000.0"),
        ([5, 6, 1.7e308], {"gap": "nan", "max_gap": 1.0}, "more than 65536 ticks"),
        ([-1.7e308, -1.6e308, 1.7e308], {}, "more than 65536 ticks"),
        ([5, 6, 9], {"max_gap": 2.0}, "longer than max_gap, 2 s .*: from 6.0 to 9.0 s at time step {at};"),
    ],
)
def test_impossible_times_are_refused_and_nothing_is_applied(times, options, message, cut):
    stage = Tick(TIMED, rate=1.0, **options)
    chunk = rows(times)
    state, start = stage.open(), 0
    if cut and times[0] > -1e300:
        state, _ = stage.step(state, {n: a[:cut] for n, a in chunk.items()})
        start = cut
    before = {n: a.copy() for n, a in state.items()}
    with pytest.raises(ChunkError, match=message.replace("{at}", str(2 - start))):
        stage.step(state, {n: a[start:] for n, a in chunk.items()})
    assert all(np.array_equal(state[n], before[n]) for n in before)


def test_ticks_of_a_gap_and_bytes_of_a_chunk_are_bounded(monkeypatch):
    stage = Tick(TIMED, rate=1.0)
    _, out = stage.step(stage.open(), rows([0, 65536]))
    assert len(out["y"]) == 65537
    monkeypatch.setattr(module, "MAX_MADE", stage.row_bytes * 100)
    for how, fits in (("hold", 99), ("mean", 100)):
        stage = Tick(TIMED, rate=1.0, how=how)
        assert len(stage.step(stage.open(), rows([0, fits]))[1]["y"]) == 100
        with pytest.raises(ChunkError, match=rf"would make 101 rows, .* more than {module.MAX_MADE} bytes"):
            stage.step(stage.open(), rows([0, fits + 1]))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "width"), [("float32", 1), ("float16", 1), ("float32", 50), ("float64", 50)]
)
def test_memory_of_a_chunk_is_bounded(options, dtype, width, monkeypatch):
    """8 KB of rows far apart make millions of ticks; the arrays beside the ticks add up."""
    if options["how"] == "mean" and dtype == "float64":
        pytest.skip("a mean is of narrower floats")
    stage = Tick(
        Signal((TensorSpec("time", "float64"), TensorSpec("x", dtype, (width,)))), rate=1.0, **options
    )
    most = 2**23
    monkeypatch.setattr(module, "MAX_MADE", most)
    times = np.linspace(0, most // stage.row_bytes - 2, 30)
    chunk = {"time": times, "x": np.ones((30, width), dtype)}
    tracemalloc.start()
    try:
        _, out = stage.step(stage.open(), chunk)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(out["x"]) >= most // stage.row_bytes - 2
    assert taken < 1.1 * most


@pytest.mark.parametrize("name", ["time", "x", "y"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_input_is_refused(name, bad):
    stage, chunk = Tick(TIMED, rate=1.0), rows([0, 1, 2])
    chunk[name][1] = bad
    with pytest.raises(NonFiniteError, match=f"tick: '{name}' has (nan|inf) at time step 1"):
        stage.step(stage.open(), chunk)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate must be a finite number above 0"),
        ({"rate": float("inf")}, "rate must be a finite number"),
        ({"rate": 1.0, "gap": "nan"}, "gap = 'nan' needs max_gap"),
        ({"rate": 1.0, "max_gap": 0.0}, "max_gap must be a finite number above 0"),
        ({"rate": 1.0, "time": "t"}, "takes a float64 number 't' a row"),
        ({"rate": 1.0, "time": "x"}, "takes a float64 number 'x' a row"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(PipelineError, match=message):
        Tick(TIMED, **options)


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ([], {}, "nothing stands beside 'time'"),
        ([TensorSpec("n", "int64")], {"how": "linear"}, "how = 'linear' is for .*, but n: int64"),
        (
            [TensorSpec("n", "float64")],
            {"how": "mean"},
            "how = 'mean' is for float16, float32, but n: float64",
        ),
        ([TensorSpec("n", "int64")], {"max_gap": 1.0, "gap": "nan"}, "gap = 'nan' is for"),
    ],
)
def test_bad_inputs_are_refused(tensors, options, message):
    with pytest.raises(PipelineError, match=message):
        Tick(Signal((TensorSpec("time", "float64"), *tensors)), rate=1.0, **options)


@pytest.mark.parametrize(
    ("how", "change"),
    [
        ("hold", {"time": np.array(np.nan)}),
        ("hold", {"time": np.array(-1e9)}),
        ("hold", {"time": np.array(1e30)}),
        ("hold", {"start": np.array(-1.7e308), "time": np.array(1.7e308)}),
        ("hold", {"begun": np.array(False)}),
        ("hold", {"last.y": np.array(np.inf, np.float32)}),
        ("hold", {"last.x": np.zeros(3, np.float32)}),
        ("mean", {"count": np.array(0)}),
        ("mean", {"count": np.array(-5)}),
        ("mean", {"sum.y": np.array(1e300)}),
    ],
)
def test_impossible_states_are_refused(how, change):
    stage = Tick(TIMED, rate=10.0, how=how)
    state, _ = stage.step(stage.open(), rows([0, 0.5, 1.23]))
    stage.load(stage.open(), state)
    with pytest.raises(SnapshotError, match="tick: "):
        stage.load(stage.open(), {**state, **change})
