"""cast: against Python's own integers and fractions, and numpy where the cast is lossless."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import ChunkError, NonFiniteError, PipelineError
from runnel.spec import DTYPES
from runnel_plugins.cast import Cast

WHOLE = [d for d in DTYPES if "int" in d]
FLOATS = ["float16", "float32", "float64"]


def signal(dtype, shape=()):
    return Signal((TensorSpec("x", dtype, shape),), 8000.0)


def cast(x, to, **options):
    stage = Cast(signal(x.dtype.name, x.shape[1:]), to, **options)
    out = stage.step({}, {"x": x})[1]["x"]
    assert out.dtype == to == stage.outputs.tensors[0].dtype
    return out


def limits(dtype):
    return (0, 1) if dtype == "bool" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_small_whole_numbers_pass_between_all_dtypes(source, to):
    x = np.array([0, 1, 1, 0] * 8, source).reshape(-1, 2)
    np.testing.assert_array_equal(cast(x, to), x.astype(to))
    # The checker makes other floats of these, which may have fractions.
    check_stage(lambda: Cast(signal(source, (2,)), to, round=True, saturate=True), {"x": x})


@given(source=st.sampled_from(WHOLE), to=st.sampled_from([*WHOLE, "bool"]), data=st.data())
def test_whole_numbers_are_exact_refused_or_cut_off_at_the_limits(source, to, data):
    low, high = limits(source)
    near = st.sampled_from([*limits(source), *limits(to), 0, 1, 2]).flatmap(
        lambda n: st.integers(n - 2, n + 2)
    )
    values = data.draw(st.lists(near.filter(lambda n: low <= n <= high), min_size=1, max_size=5))
    x = np.array(values, source)
    low, high = limits(to)
    assert cast(x, to, saturate=True).astype(object).tolist() == [min(max(n, low), high) for n in values]
    if all(low <= n <= high for n in values):
        assert cast(x, to).astype(object).tolist() == values
    else:
        first = next(i for i, n in enumerate(values) if not low <= n <= high)
        with pytest.raises(
            ChunkError, match=f"'x' is {values[first]} at time step {first}: {to} is {low} to {high}; "
        ):
            cast(x, to)


@given(source=st.sampled_from(FLOATS), to=st.sampled_from(WHOLE), data=st.data())
def test_floats_to_whole_numbers(source, to, data):
    low, high = limits(to)
    edges = [float(low), float(high), -0.5, 0.5, 1.5, 2.5, 65504.0, 1e300, np.inf, -np.inf]
    number = st.sampled_from(edges) | st.floats(-300, 300, allow_nan=False)
    with np.errstate(over="ignore"):
        x = np.array(data.draw(st.lists(number, min_size=1, max_size=5)), source)

    def nearest(value):
        if np.isinf(value):
            return high if value > 0 else low
        return min(max(round(Fraction(value)), low), high)  # halves to even

    want = [nearest(v) for v in x.astype(np.float64).tolist()]
    assert cast(x, to, round=True, saturate=True).astype(object).tolist() == want
    if want == x.astype(np.float64).tolist():
        assert cast(x, to).astype(object).tolist() == want
    else:
        with pytest.raises(ChunkError, match="'x' is "):
            cast(x, to)


@given(source=st.sampled_from(WHOLE), to=st.sampled_from(FLOATS), data=st.data())
def test_whole_numbers_to_floats_are_exact_or_refused(source, to, data):
    low, high = limits(source)
    x = np.array(data.draw(st.lists(st.integers(low, high), min_size=1, max_size=4)), source)
    try:
        made = cast(x, to)
    except ChunkError as error:
        assert "has gaps beyond" in error.message  # noqa: PT017 - either may be
        assert max(abs(int(n)) for n in x) > 2 ** (np.finfo(to).nmant + 1)
        with np.errstate(over="ignore"):
            want = np.clip(x.astype(to), np.finfo(to).min, np.finfo(to).max)
        np.testing.assert_array_equal(cast(x, to, round=True, saturate=True), want)
    else:
        assert [int(n) for n in made.tolist()] == x.tolist()


@pytest.mark.parametrize("to", FLOATS)
def test_integers_up_to_the_floats_precision_pass_and_the_next_does_not(to):
    limit = 2 ** (np.finfo(to).nmant + 1)
    assert cast(np.array([limit, -limit]), to).tolist() == [limit, -limit]
    for beyond in (limit + 1, -limit - 1):
        with pytest.raises(ChunkError, match=f"'x' is {beyond} at time step 0: {to} has gaps beyond {limit}"):
            cast(np.array([beyond]), to)


@pytest.mark.parametrize("to", WHOLE)
def test_the_last_float_below_a_limit_passes_and_the_limit_itself_does_not(to):
    low, high = limits(to)
    inside = [float(low), np.nextafter(high + 1.0, 0) // 1]
    assert cast(np.array(inside), to).astype(object).tolist() == [low, int(inside[1])]
    for outside in (high + 1.0, min(low - 1.0, np.nextafter(low, -np.inf))):
        x = np.array([outside])
        assert cast(x, to, saturate=True, round=True).astype(object).tolist() == [
            high if outside > 0 else low
        ]
        with pytest.raises(ChunkError, match=f"{to} is {low} to {high}; saturate"):
            cast(x, to, round=True)


@pytest.mark.parametrize("to", [*WHOLE, "bool"])
@pytest.mark.parametrize("source", WHOLE)
def test_limits_of_each_dtype_saturate_in_every_other(source, to):
    low, high = limits(to)
    x = np.array(limits(source), source)
    want = [min(max(n, low), high) for n in limits(source)]
    assert cast(x, to, saturate=True).astype(object).tolist() == want


def test_narrower_float_rounds_passes_nan_and_infinity_and_refuses_too_large_numbers():
    x = np.array([0.1, np.nan, np.inf, 70000.0])
    np.testing.assert_array_equal(cast(x[:3], "float32"), x[:3].astype(np.float32))
    with pytest.raises(ChunkError, match=r"'x' is 70000.0 at time step 3: float16 ends at 65504; saturate"):
        cast(x, "float16")
    assert cast(x, "float16", saturate=True).tolist()[2:] == [np.inf, 65504]


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_scaled_audio_is_exact_there_and_back(bits):
    dtype = f"int{bits}"
    low, high = limits(dtype)
    x = np.unique(np.linspace(low, high, 1001).astype(dtype))
    floats = cast(x, "float64", scale=True)
    assert floats.tolist() == [n / 2 ** (bits - 1) for n in x.tolist()]
    np.testing.assert_array_equal(cast(floats, dtype, scale=True), x)
    if bits <= 16:
        np.testing.assert_array_equal(cast(cast(x, "float32", scale=True), dtype, scale=True), x)


def test_full_scale_itself_is_one_too_many():
    x = np.array([0.0, 1.0, -1.0], np.float32)
    with pytest.raises(
        ChunkError, match=r"'x' is 1.0 at time step 1: .* just below 1, times 32768.* saturate"
    ):
        cast(x, "int16", scale=True)
    assert cast(x, "int16", scale=True, saturate=True).tolist() == [0, 32767, -32768]


def test_nan_to_integer_is_refused():
    x = np.array([[1, np.nan]], np.float32)
    for to in ("int16", "bool"):
        with pytest.raises(NonFiniteError, match=r"'x' is NaN at time step 0, element \(1,\)"):
            cast(x, to, saturate=True, round=True)


def test_the_laws_with_scale_and_beside_others():
    x = np.random.default_rng(0).integers(-32768, 32768, (64, 2)).astype(np.int16)
    check_stage(lambda: Cast(signal("int16", (2,)), "float32", scale=True), {"x": x})
    check_stage(lambda: Cast(signal("float32"), "int16", scale=True, saturate=True))
    two = Signal((TensorSpec("x", "int16"), TensorSpec("y", "float32")))
    check_stage(lambda: Cast(two, "float32"))
    check_stage(lambda: Cast(two, "int16", round=True))
    check_stage(lambda: Cast(signal("float32"), "float32"))


@pytest.mark.parametrize(
    ("dtypes", "options", "message"),
    [
        (("int16", "int32"), {"to": "float32"}, "'a', 'b' are: say with of"),
        (("int16",), {"to": "float32", "of": "z"}, "of is 'z', but a"),
        (("int64",), {"to": "float32", "scale": True}, "scale is between int8, int16 or int32 and floats"),
        (("uint8",), {"to": "float32", "scale": True}, "scale is between"),
        (("int16",), {"to": "int32", "scale": True}, "scale is between"),
    ],
)
def test_bad_options_are_refused(dtypes, options, message):
    given = Signal(tuple(TensorSpec(n, d) for n, d in zip("ab", dtypes, strict=False)))
    with pytest.raises(PipelineError, match=message):
        Cast(given, **options)
