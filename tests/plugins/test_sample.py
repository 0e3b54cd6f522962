"""sample: how often each class is drawn, against the distribution by a plain definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import chisquare, kstest

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel.laws.trial import play
from runnel.pipeline.pipeline import Pipeline
from runnel.snapshot import Snapshot, decode, encode
from runnel_plugins.sample import Sample, reseeded, uniform


def signal(*shape):
    return Signal((TensorSpec("x", "float32", shape),), 10.0)


def draw(stage, x):
    return stage.step(stage.open(), {"x": np.asarray(x, np.float32)})[1]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((5,), {}),
        ((2, 5), {"top_k": 3, "seed": 9}),
        ((5,), {"top_p": 0.6, "temperature": 0.4}),
        ((5,), {"temperature": 0.0}),
    ],
)
def test_it_keeps_the_laws(shape, options):
    check_stage(lambda: Sample(signal(*shape), **options))


def exact(logits, temperature, top_k, top_p):
    """Compute the distribution by a loop over the classes from the most likely one."""
    p = np.exp(logits / temperature)
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))[: top_k or None]
    total, kept, sum_ = sum(p[i] for i in order), np.zeros(len(p)), 0.0
    for i in order:
        kept[i] = p[i]
        sum_ += p[i]
        if sum_ >= top_p * total:
            break
    return kept / kept.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (4, 1.0), (0, 0.8), (5, 0.7), (1, 1.0), (0, 1e-9)])
def test_classes_are_drawn_as_often_as_they_should(temperature, top_k, top_p):
    logits = np.array([1.0, -0.3, 0.2, 2.0, -1.1, 0.2, 0.9, -1.5])  # 2 and 5 are equal
    want = exact(logits, temperature, top_k, top_p)
    got = draw(Sample(signal(8), temperature, top_k, top_p, seed=3), np.tile(logits, (20_000, 1)))
    counts = np.bincount(got["token"], minlength=8)
    assert (np.flatnonzero(counts) == np.flatnonzero(want)).all()
    here = want > 0
    if here.sum() > 1:
        assert chisquare(counts[here], 20_000 * want[here]).pvalue > 0.01
    np.testing.assert_allclose(got["probability"], want[got["token"]], rtol=1e-5)


@given(
    logits=st.lists(st.sampled_from([-np.inf, -2.0, 0.0, 0.0, 1.0]), min_size=6, max_size=6).filter(
        lambda x: max(x) > -np.inf
    ),
    top_k=st.integers(0, 6),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
)
def test_only_allowed_classes_are_drawn(logits, top_k, top_p):
    # Cumulative sums that should equal top_p may be on either side of it.
    supports = [
        set(np.flatnonzero(exact(np.array(logits), 1.0, top_k, min(top_p * s, 1.0))))
        for s in (1 - 1e-9, 1 + 1e-9)
    ]
    got = draw(Sample(signal(6), top_k=top_k, top_p=top_p), np.tile(logits, (400, 1)))["token"]
    assert set(got) in supports or set(got) < supports[0] & supports[1]


def test_at_temperature_0_it_is_the_likeliest():
    got = draw(Sample(signal(3), temperature=0.0), [[1, 3, 2], [5, 5, 0]])
    assert (got["token"].tolist(), got["probability"].tolist()) == ([1, 0], [1, 1])


def test_probabilities_are_taken_as_such():
    p = np.array([[0.2, 0.0, 0.8]], np.float32)
    options = {"temperature": 0.7, "seed": 5}
    with np.errstate(divide="ignore"):
        logits = np.log(p) + 3
    for x, given_ in ((p, True), (logits, False), (log_softmax(logits, axis=-1), False)):
        got = draw(Sample(signal(3), probabilities=given_, **options), np.repeat(x, 50, 0))
        assert 5 < got["token"].sum() / 2 < 50
        np.testing.assert_array_equal(
            got["token"], draw(Sample(signal(3), **options), np.repeat(logits, 50, 0))["token"]
        )


def test_the_generator_is_splitmix64():
    # The first five outputs for the seed 1234567, as its reference implementation prints them.
    want = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    got = uniform(np.full(5, 1234567, np.uint64), np.arange(5, dtype=np.uint64))
    np.testing.assert_array_equal(got, [(w >> 11) * 2.0**-53 for w in want])


def test_its_numbers_are_uniform_and_of_different_seeds_unlike():
    n = np.arange(20_000, dtype=np.uint64)
    a, b = (uniform(np.array([seed], np.uint64), n) for seed in (0, 1))
    assert (a >= 0).all()
    assert (a < 1).all()
    for numbers in (a, b, np.mod(a - b, 1)):
        assert kstest(numbers, "uniform").pvalue > 0.01


def test_streams_of_one_seed_draw_alike_and_others_not():
    x = np.zeros((64, 9), np.float32)
    one, same, other = (draw(Sample(signal(9), seed=seed), x)["token"].tolist() for seed in (1, 1, 2))
    assert one == same != other


def snapshot_of(stage, state):
    return encode(Snapshot("p", 3, False, ((stage.name, stage.dump(state)),)))


def test_a_snapshot_can_be_given_another_seed():
    stage, x = Sample(signal(9), seed=1), {"x": np.zeros((64, 9), np.float32)}
    state = stage.step(stage.open(), x)[0]
    moved = decode(reseeded(snapshot_of(stage, state), 2))
    assert (moved.seq, moved.pipeline) == (3, "p")
    went_on = stage.step(stage.load(stage.open(), moved.stages[0][1]), x)[1]["token"]
    np.testing.assert_array_equal(went_on, draw(Sample(signal(9), seed=2), x["x"])["token"])


def test_only_a_snapshot_with_a_sample_stage_can_be_given_a_seed():
    with pytest.raises(SnapshotError, match="without a 'sample' stage"):
        reseeded(encode(Snapshot("p", 0, False, (("smooth", {"level": np.zeros(2)}),))), 1)
    stage = Sample(signal(2))
    with pytest.raises(SnapshotError, match="seed must be in"):
        reseeded(snapshot_of(stage, stage.open()), -1)


def test_in_a_pipeline_streams_go_their_own_ways():
    pipeline = Pipeline([Sample(signal(9))], None, {})
    chunk = {"x": np.zeros((40, 9), np.float32)}
    whole = pipeline.step(pipeline.open(), chunk)[1]["token"]
    states, parts = pipeline.open(), []
    for i in range(40):
        states, out = pipeline.step(states, {"x": chunk["x"][i : i + 1]})
        parts.append(out["token"])
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_other_arrays_pass_and_tokens_have_names(tmp_path):
    file = tmp_path / "words"
    file.write_text("to\nbe\n")
    inputs = Signal((TensorSpec("level", "float32"), TensorSpec("x", "float32", (2,))))
    for options, names in (({"alphabet": "ab"}, ("a", "b")), ({"vocabulary": file}, ("to", "be")), ({}, ())):
        stage = Sample(inputs, **options)
        assert stage.outputs.names == ("level", "token", "probability")
        assert stage.outputs.tensors[1].labels == names
    check_stage(lambda: Sample(inputs))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"probabilities": True}])
def test_scores_without_a_distribution_are_refused(bad, options):
    x = np.ones((4, 3), np.float32)
    x[2, 1] = bad
    with pytest.raises(NonFiniteError, match=r"sample: 'x' has .* at time step 2; the chunk was not applied"):
        draw(Sample(signal(3), **options), x)


@pytest.mark.parametrize(
    ("row", "options"),
    [([-np.inf] * 3, {}), ([0, 0, 0], {"probabilities": True}), ([1, -1, 0], {"probabilities": True})],
)
def test_a_row_without_a_class_to_draw_is_refused(row, options):
    with pytest.raises(NonFiniteError, match="at time step 0"):
        draw(Sample(signal(3), **options), [row])


def test_only_the_stream_at_fault_fails():
    stage = Sample(signal(3))
    chunks = [{"x": np.zeros((2, 3), np.float32)} for _ in range(3)]
    chunks[1]["x"][1] = np.nan
    results = stage.step_many([stage.open() for _ in chunks], chunks)
    assert [isinstance(r, NonFiniteError) for r in results] == [False, True, False]


def test_any_state_is_safe_to_draw_from():
    stage = Sample(signal(3))
    most = np.array(2**64 - 1, np.uint64)
    state = stage.load(stage.open(), {"sample_seed": most, "sample_drawn": most})
    got = play(stage, [{"x": np.zeros((5, 3), np.float32)}], state)
    assert set(got["token"].tolist()) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (signal(), {}, "classes on its last axis"),
        (signal(3), {"temperature": -1.0}, r"temperature must be 0 or in 1e-6\.\.1e6, not -1"),
        (signal(3), {"top_k": 4}, r"top_k must be in 0\.\.3, the number of classes, not 4"),
        (signal(3), {"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0"),
        (signal(3), {"top_p": 1.5}, "not 1.5"),
        (signal(3), {"seed": -1}, "seed must be in"),
        (signal(3), {"alphabet": "ab"}, "2 names are given for 3 classes"),
        (Signal((TensorSpec("x", "float32", (3,)), TensorSpec("token", "int64"))), {}, "makes 'token'"),
    ],
)
def test_bad_options_are_refused_at_construction(inputs, options, says):
    with pytest.raises(PipelineError, match=says):
        Sample(inputs, **options)
