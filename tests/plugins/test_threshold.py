"""threshold: the rule, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel.laws.trial import play
from runnel_plugins.threshold import Threshold


def signal(*shape):
    return Signal((TensorSpec("x", "float32", shape),), 100.0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("options", [{}, {"on": 0.6, "off": -0.4}, {"on": -0.3, "off": 0.5, "below": True}])
def test_it_keeps_the_laws(shape, options):
    check_stage(lambda: Threshold(signal(*shape), **options))


levels = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.71, 0.9])


@given(
    x=st.lists(st.tuples(levels, levels), max_size=40),
    cut=st.integers(0, 40),
    below=st.booleans(),
    pair=st.tuples(levels, levels),
)
def test_it_equals_the_rule(x, cut, below, pair):
    on, off = sorted(pair, reverse=not below)
    stage = Threshold(signal(2), on, off, below)
    given_ = np.array(x, np.float32).reshape(-1, 2)
    got = play(stage, [{"x": given_[:cut]}, {"x": given_[cut:]}])["x"]
    for column in (0, 1):
        is_on, want = False, []
        for row in x:
            value = row[column]
            if value <= on if below else value >= on:
                is_on = True
            elif value > off if below else value < off:
                is_on = False
            want.append(is_on)
        assert got[:, column].tolist() == want


def test_without_off_there_is_one_level():
    got = play(Threshold(signal(), 0.7), [{"x": np.array([0.69, 0.7, 0.71, 0.699], np.float32)}])["x"]
    assert got.tolist() == [False, True, True, False]


def test_other_arrays_pass():
    inputs = Signal((TensorSpec("z", "float32"), TensorSpec("y", "float32", (2,)), TensorSpec("n", "int8")))
    stage = Threshold(inputs, of="z")
    assert stage.outputs.tensors == (TensorSpec("z", "bool"), *inputs.tensors[1:])
    check_stage(lambda: Threshold(inputs, of="z"))


def test_nan_is_refused():
    stage = Threshold(signal())
    with pytest.raises(NonFiniteError, match="threshold: 'x' has nan at time step 1"):
        stage.step(stage.open(), {"x": np.array([0, np.nan], np.float32)})


def test_a_state_of_another_shape_is_not_restored():
    stage = Threshold(signal(3))
    with pytest.raises(SnapshotError, match=r"'on' has shape \(2,\), expected \(3,\)"):
        stage.load(stage.open(), {"on": np.zeros(2, bool)})


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (Signal((TensorSpec("x", "int8"),)), {}, "takes a float32 array, but x: int8"),
        (signal(), {"on": 0.3, "off": 0.4}, "off must be at most on, .* say below = true"),
        (signal(), {"on": 0.5, "off": 0.4, "below": True}, "off must be at least on, .* and on is 0.5$"),
        (signal(), {"on": float("inf")}, "on and off must be finite, not inf"),
        (signal(), {"on": 1e39}, "must be finite, not 1e"),
    ],
)
def test_bad_options_are_refused_at_construction(inputs, options, says):
    with pytest.raises(PipelineError, match=says):
        Threshold(inputs, **options)
