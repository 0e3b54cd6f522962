"""The certificate's small parts: random data, figures, vectors, the cost of a graph."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runnel.errors import ModelError
from runnel.grouping import Framing
from runnel.spec import ModelSpec, ModelTensor, TensorSpec
from runnel_export.certify import vectors
from runnel_export.certify.certificate import FLOAT32, INT8, Error
from runnel_export.certify.checks import Trial
from runnel_export.certify.errors import Finding, Tally, judge
from runnel_export.certify.samples import Source, draw, source, weak_spots
from runnel_export.describe import describe, flops

from ..steps import FEATURES, HIDDEN, OUT, Recurrent, lifted
from ..zoo import exported

# Random data


def tensor(dtype: str = "float32", *shape: int) -> TensorSpec:
    return TensorSpec("x", dtype, shape)


@given(mean=st.integers(-50, 50), spread=st.integers(1, 20), seed=st.integers(0, 9))
def test_floats_are_drawn_with_the_examples_mean_and_spread(mean: int, spread: int, seed: int) -> None:
    # Integers, since onnxruntime's denormals-as-zero stays on in a thread that has run a session, and
    # hypothesis draws no floats then.
    example = np.random.default_rng(seed).normal(mean, spread, (40, 25))
    example[0, 0] = -1e-3  # something below zero: not a magnitude
    drawn = source(tensor("float32", 25), example).draw(np.random.default_rng(seed + 1), 400)
    assert drawn.shape == (400, 25)
    assert drawn.dtype == np.float32
    assert abs(drawn.mean() - example.mean()) < 0.1 * spread
    assert abs(drawn.std() - example.std()) < 0.1 * spread


def test_an_example_of_zeros_or_ones_gives_a_spread_of_one() -> None:
    for value in (0.0, 1.0):
        made = source(tensor("float32", 3), np.full((9, 3), value))
        assert (made.mean, made.spread) == (value, 1.0)


def test_nothing_below_zero_stays_so() -> None:
    drawn = source(tensor("float32", 3), np.array([[0.0, 0.1, 4.0]])).draw(np.random.default_rng(0), 500)
    assert drawn.min() >= 0
    assert drawn.max() > 1


@given(low=st.integers(-5, 5), width=st.integers(0, 9), dtype=st.sampled_from(["int64", "int32", "int8"]))
def test_integers_span_the_examples_range_and_stay_in_it(low: int, width: int, dtype: str) -> None:
    made = source(tensor(dtype), np.array([low, low + width]))
    drawn = made.draw(np.random.default_rng(0), 300)
    assert drawn.dtype == dtype
    assert (drawn.min(), drawn.max()) == (low, low + width)
    assert bool(weak_spots([made])) == (width == 0)


def test_framed_data_is_samples() -> None:
    x = ModelTensor("x", "float32", ("time", "slot", 12, 2))
    (samples,) = ModelSpec((x,), (), (), Framing(12, 8)).fed
    made = source(samples, np.zeros(4))
    assert made.draw(np.random.default_rng(0), 16).shape == (16, 2)


def test_a_source_draws_the_same_after_json() -> None:
    made = source(tensor("float32", 3), np.arange(9.0))
    again = Source.from_json(made.to_json(), "m")
    a, b = (draw([s], np.random.default_rng(4), 7)["x"] for s in (made, again))
    np.testing.assert_array_equal(a, b)
    with pytest.raises(ModelError, match="how data is drawn"):
        Source.from_json({"name": "x"}, "m")


# Figures


def compared(got: object, expected: object, rough: object = None) -> Finding:
    """One output, (ticks, elements), against what was expected of it."""
    tally = Tally()
    tally.add("y", np.asarray(got), np.asarray(expected), None if rough is None else np.asarray(rough))
    return tally.finding("x", "")


def one(*given: object) -> Error:
    return judge([compared(*given)], FLOAT32)[0].errors["y"]


def passes(*given: object) -> bool:
    return judge([compared(*given)], FLOAT32)[0].passed


def test_errors_are_the_largest_and_relative_to_the_peak() -> None:
    tally = Tally()
    tally.add("y", np.float32([1, 2.5]), np.float64([1, -3]))
    tally.add("y", np.float32([4]), np.float64([4]))
    error = judge([tally.finding("x", "")], FLOAT32)[0].errors["y"]
    assert (error.absolute, error.peak, error.elements) == (5.5, 4.0, 3)
    assert error.relative == 5.5 / 4


def moved(values: np.ndarray, by: float) -> np.ndarray:
    """The first element moved."""
    return values + np.eye(1, values.shape[1]) * by


@pytest.mark.parametrize("huge", [-1e9, 3e3])
def test_an_element_is_measured_by_its_own_peak(huge: float) -> None:
    """A masked logit of -1e9 says nothing about the others."""
    expected = np.array([[huge, 1.0, -2.0, 3.0], [huge, 2.0, 1.0, -4.0]])
    off = expected.copy()
    off[1, 1] += 1e-3
    assert one(off, expected).relative == pytest.approx(1e-3 / 2)
    assert not passes(off, expected)
    off = expected.copy()
    off[:, 0] *= 1 + 1e-6
    assert passes(off, expected)


def test_an_element_far_below_the_others_is_measured_by_a_part_of_what_is_typical() -> None:
    expected = np.array([[1e-9, 1.0, -2.0, 3.0]])
    assert one(moved(expected, 1e-8), expected).relative == pytest.approx(1e-8 / 1e-3)
    assert passes(moved(expected, 1e-8), expected)
    assert not passes(moved(expected, 1e-6), expected)
    small = compared(moved(expected, 1e-2), expected)  # eight bits are shared by a layer
    assert judge([small], INT8)[0].passed


def test_the_modules_own_rounding_is_let_through_and_no_more() -> None:
    expected = np.array([[0.01, 1.0, -2.0, 3.0]])
    rough = moved(expected, 2e-6)
    assert not passes(rough, expected)
    assert passes(rough, expected, rough)
    assert not passes(moved(expected, 1e-4), expected, rough)
    chaos = moved(expected, 100.0)  # never more than the output's peak allows
    assert not passes(moved(expected, 1e-3), expected, chaos)


@pytest.mark.parametrize(
    ("got", "expected"),
    [([np.nan], [1.0]), ([1.0], [np.inf]), ([np.inf], [1.0]), ([np.inf], [-np.inf]), ([1.0, 2.0], [1.0])],
)
def test_what_cannot_be_subtracted_is_never_equal(got: list[float], expected: list[float]) -> None:
    assert one(got, expected).absolute == math.inf
    assert not passes(got, expected)


def test_equal_infinities_are_equal() -> None:
    assert one([np.inf, 1.0, -np.inf], [np.inf, 1.0, -np.inf]).absolute == 0


def test_integers_are_counted_and_doubtful_ones_are_not() -> None:
    assert one([1, 2, 3], [1, 5, 9]).mismatches == 2
    assert one([1, 2, 3], [1, 5, 9], [1, 6, 8]).mismatches == 0
    assert not passes([1, 2], [1, 3])


def test_silence_in_one_check_is_measured_by_the_peak_of_another() -> None:
    quiet, loud = compared([1.1e-6], [1e-6]), compared([1.0], [1.0])
    assert not judge([quiet], FLOAT32)[0].passed
    assert all(check.passed for check in judge([quiet, loud], FLOAT32))


# Vectors


@given(ticks=st.integers(2, 60), width=st.integers(1, 3000), started=st.booleans())
def test_vectors_survive_json_and_are_bounded(ticks: int, width: int, started: bool) -> None:
    rng = np.random.default_rng(0)
    chunk = {"x": rng.normal(size=(ticks * 4, width)).astype(np.float32), "n": np.arange(ticks * 4)}
    expected = {"y": rng.normal(size=(ticks, 2)), "b": np.zeros(ticks, bool)}
    start = {"h": rng.normal(size=(1, 3)).astype(np.float32)} if started else None
    stored = vectors.to_json(Trial(chunk, expected, start), unit=4)
    again = vectors.from_json(stored, "m")
    kept = len(again.expected["y"])
    assert 2 <= kept <= ticks
    assert len(again.chunk["x"]) == kept * 4
    np.testing.assert_array_equal(again.chunk["x"], chunk["x"][: kept * 4])
    np.testing.assert_array_equal(again.chunk["n"], chunk["n"][: kept * 4])
    np.testing.assert_allclose(again.expected["y"], expected["y"][:kept], rtol=1e-6)
    assert again.expected["b"].dtype == bool
    assert (again.start is None) == (not started)
    assert kept == 2 or sum(a.nbytes for a in again.chunk.values()) <= vectors.MAX_BYTES


@pytest.mark.parametrize("damage", [{"dtype": "object"}, {"shape": [5]}, {"data": "???"}, {"data": None}])
def test_damaged_vectors_are_refused(damage: dict) -> None:
    stored = vectors.to_json(Trial({"x": np.zeros((4, 2))}, {"y": np.zeros((4, 2))}), unit=1)
    stored["inputs"]["x"] |= damage
    with pytest.raises(ModelError, match="make no sense"):
        vectors.from_json(stored, "m")


# Cost


def test_the_cost_of_a_recurrent_layer_follows_its_equations() -> None:
    lstm = describe(lifted(Recurrent("LSTM")).model)
    products = 2 * 4 * HIDDEN * (FEATURES + HIDDEN) + 2 * HIDDEN * OUT
    elementwise = (4 * 3 + 3 + 2) * HIDDEN + OUT  # gates; f*c + i*g; tanh and o*; the output's bias
    assert lstm["flops"] == products + elementwise
    assert lstm["ops"] == {"Add": 1, "LSTM": 1, "MatMul": 1, "Squeeze": 1}
    assert lstm["parameters"] == 4 * HIDDEN * (FEATURES + HIDDEN + 2) + HIDDEN * OUT + OUT
    gru = describe(lifted(Recurrent("GRU")).model)
    assert gru["flops"] == (
        2 * 3 * HIDDEN * (FEATURES + HIDDEN) + (3 * 3 + 1 + 4) * HIDDEN + 2 * HIDDEN * OUT + OUT
    )
    assert gru["opset"], gru["ir"] == (20, 10)


def test_the_cost_of_a_causal_convolution_is_that_of_one_tick() -> None:
    model = onnx.load(exported("conv-left-padded"))
    assert flops(model) == 2 * 6 * 4 * 3 + 6 + 6  # products, bias, relu


def test_a_graph_with_an_unknown_operator_has_no_flops_and_still_a_description() -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Mystery", ["x"], ["m"], domain="some.where"),
            helper.make_node("MatMul", ["m", "w"], ["y"]),
        ],
        "g",
        [value("x", TensorProto.FLOAT, ["slot", 3])],
        [value("y", TensorProto.FLOAT, ["slot", 2])],
        [numpy_helper.from_array(np.zeros((3, 2), np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("some.where", 1)]
    found = describe(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    assert found["flops"] is None
    assert found["ops"] == {"MatMul": 1, "Mystery": 1}
    assert found["parameters"] == 6


def test_branches_are_looked_into_and_make_the_flops_unknown() -> None:
    value = helper.make_tensor_value_info

    def branch(name: str, number: float) -> onnx.GraphProto:
        table = numpy_helper.from_array(np.full((2, 3), number, np.float32))
        node = helper.make_node("Constant", [], [name], value=table)
        return helper.make_graph([node], name, [], [value(name, TensorProto.FLOAT, [2, 3])])

    chosen = helper.make_node("If", ["x"], ["y"], then_branch=branch("a", 1), else_branch=branch("b", 2))
    graph = helper.make_graph(
        [chosen], "g", [value("x", TensorProto.BOOL, [])], [value("y", TensorProto.FLOAT, [2, 3])]
    )
    opsets = [helper.make_opsetid("", 20)]
    found = describe(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    assert found["ops"] == {"Constant": 2, "If": 1}
    assert (found["parameters"], found["flops"]) == (12, None)
