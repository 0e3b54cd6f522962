"""ctc_greedy: remove repeats and blanks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel.laws.trial import play
from runnel_plugins.ctc_greedy import CtcGreedy


def signal(*shape):
    return Signal((TensorSpec("x", "float32", shape),), 50.0)


def frames(classes, of=4):
    """Return scores whose most likely classes are these."""
    return np.eye(of, dtype=np.float32)[np.array(classes, int).reshape(-1)] * np.float32(0.9)


@pytest.mark.parametrize("options", [{}, {"blank": 2}, {"blank": -1, "alphabet": "abc"}])
def test_it_keeps_the_laws(options):
    check_stage(lambda: CtcGreedy(signal(4), **options))


@given(
    best=st.lists(st.integers(0, 3), max_size=40), blank=st.integers(-4, 3), cuts=st.lists(st.integers(0, 40))
)
def test_tokens_equal_the_definition(best, blank, cuts):
    want, at = [], 0
    for token, run in itertools.groupby(best):
        if token != blank % 4:
            want.append((token, at))
        at += len(list(run))
    x = frames(best)
    edges = [0, *sorted(min(c, len(best)) for c in cuts), len(best)]
    got = play(CtcGreedy(signal(4), blank), [{"x": x[a:b]} for a, b in itertools.pairwise(edges)])
    assert list(zip(got["token"].tolist(), got["frame"].tolist(), strict=True)) == want
    assert (got["score"] == np.float32(0.9)).all()


def test_a_batch_equals_each_stream_alone():
    stage = CtcGreedy(signal(4))
    x = np.random.default_rng(3).standard_normal((5, 30, 4)).astype(np.float32)
    x[2] = frames([0] * 30)  # only blanks
    many = stage.step_many([stage.open() for _ in x], [{"x": one} for one in x])
    for one, (state, rows) in zip(x, many, strict=True):
        alone, want = stage.step(stage.open(), {"x": one})
        for name in want:
            np.testing.assert_array_equal(rows[name], want[name])
        assert state == alone
        assert all(array.base is None for array in state.values())
    assert len(many[2][1]["token"]) == 0


def test_a_token_comes_with_its_first_frame():
    stage = CtcGreedy(signal(4))
    state, rows = stage.step(stage.open(), {"x": frames([0, 0, 3])})
    assert (rows["token"].tolist(), rows["frame"].tolist()) == ([3], [2])
    _, rows = stage.step(state, {"x": frames([3, 3, 0, 3])})
    assert (rows["token"].tolist(), rows["frame"].tolist()) == ([3], [6])
    assert (stage.ratio, stage.outputs.rate) == (None, None)


def test_the_tokens_have_names(tmp_path):
    file = tmp_path / "vocabulary.txt"
    file.write_text("the\nan\nof\n")
    for options, labels in (
        ({"alphabet": "_abc"}, ("_", "a", "b", "c")),
        ({"alphabet": "abc"}, ("", "a", "b", "c")),
        ({"alphabet": "abc", "blank": 3}, ("a", "b", "c", "")),
        ({"vocabulary": file, "blank": 1}, ("the", "", "an", "of")),
        ({}, ()),
    ):
        assert CtcGreedy(signal(4), **options).outputs.tensors[0].labels == labels


def test_other_arrays_are_dropped():
    inputs = Signal((TensorSpec("x", "float32", (4,)), TensorSpec("level", "float32", (2,))))
    stage = CtcGreedy(inputs, of="x")
    assert stage.outputs.names == ("token", "frame", "score")
    check_stage(lambda: CtcGreedy(inputs, of="x"))


def test_nan_is_refused_with_its_position():
    x = frames([0, 1, 2])
    x[1, 3] = np.nan
    stage = CtcGreedy(signal(4))
    with pytest.raises(NonFiniteError, match="ctc_greedy: 'x' has nan at time step 1"):
        stage.step(stage.open(), {"x": x})


@pytest.mark.parametrize(("last", "frames"), [(4, 1), (-2, 1), (0, -1)])
def test_impossible_states_are_not_restored(last, frames):
    stage = CtcGreedy(signal(4))
    with pytest.raises(SnapshotError, match=f"class {last} after {frames} frames"):
        stage.load(stage.open(), {"last": np.array(last), "frames": np.array(frames)})


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (signal(2, 4), {}, r"takes a float32 array \(T, n\)"),
        (signal(4), {"blank": 4}, "blank must be one of the 4 classes, not 4"),
        (signal(4), {"blank": -5}, "not -5"),
        (signal(4), {"alphabet": "ab"}, "2 names are given for 4 classes"),
    ],
)
def test_bad_options_are_refused_at_construction(inputs, options, says):
    with pytest.raises(PipelineError, match=says):
        CtcGreedy(inputs, **options)
