"""softmax: SciPy's, time step by time step."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.special import softmax as scipys

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import PipelineError
from runnel_plugins.softmax import Softmax


def signal(*shape, name="x"):
    return Signal((TensorSpec(name, "float32", shape),), 100.0)


def run(stage, **chunk):
    return stage.step(stage.open(), chunk)[1]


@pytest.mark.parametrize("shape", [(5,), (1,), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.3}, {"log": True, "temperature": 2.0}])
def test_it_keeps_the_laws(shape, options):
    check_stage(lambda: Softmax(signal(*shape), **options))


@given(
    size=st.integers(1, 40),
    scale=st.sampled_from([1e-6, 1.0, 50.0, 1e4, 1e30]),
    offset=st.sampled_from([0.0, 1e4, -1e4]),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 20.0]),
    log=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_equals_scipys(size, scale, offset, temperature, log, seed):
    x = (np.random.default_rng(seed).standard_normal((7, size)) * scale + offset).astype(np.float32)
    got = run(Softmax(signal(size), temperature, log), x=x)["x"]
    exact = (x.astype(np.float64)) / np.float64(np.float32(temperature))
    want = (log_softmax if log else scipys)(exact, axis=-1)
    # A score of s is known to s / 2**24, and so is its logarithm.
    np.testing.assert_allclose(
        got, want, rtol=2e-6, atol=(1e-6 + 4e-7 * np.abs(exact).max()) if log else 2e-6
    )


def test_small_probabilities_keep_their_logarithm():
    got = run(Softmax(signal(2), log=True), x=np.array([[0, -500]], np.float32))["x"]
    np.testing.assert_allclose(got, [[0, -500]])


def test_non_finite_input_passes_without_a_warning():
    x = np.array([[1, -np.inf, 1], [np.nan, 0, 0], [0, 0, 0]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = run(Softmax(signal(3)), x=x)["x"]
    np.testing.assert_allclose(got, [[0.5, 0, 0.5], [np.nan] * 3, [1 / 3] * 3], rtol=1e-6)


def test_other_arrays_pass():
    both = Signal((TensorSpec("logits", "float32", (2,)), TensorSpec("level", "float32")))
    level = np.ones(1, np.float32)
    got = run(Softmax(both), logits=np.zeros((1, 2), np.float32), level=level)
    assert list(got) == ["logits", "level"]
    assert (got["logits"].tolist(), got["level"]) == ([[0.5, 0.5]], level)


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (signal(), {}, r"classes on its last axis, but x: float32 \(T\) at 100 Hz arrives"),
        (Signal((TensorSpec("x", "int64", (3,)),)), {}, "takes a float32 array"),
        (signal(3), {"temperature": 0.0}, "temperature must be in 1e-6..1e6, not 0"),
        (signal(3), {"temperature": float("inf")}, "temperature must be in 1e-6..1e6, not inf"),
        (signal(3, name="logits"), {"of": "logit"}, "of is 'logit', but logits: .*did you mean 'logits'"),
        (
            Signal((TensorSpec("a", "float32", (2,)), TensorSpec("b", "float32", (2,)))),
            {},
            "'a', 'b' are: say with of which one",
        ),
        (
            Signal((TensorSpec("a", "float32", (2,)), TensorSpec("b", "float32"))),
            {"of": "b"},
            r"b: float32 \(T\) is named by of",
        ),
    ],
)
def test_bad_options_are_refused_at_construction(inputs, options, says):
    with pytest.raises(PipelineError, match=says):
        Softmax(inputs, **options)
