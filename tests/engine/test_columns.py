"""The columns of a signal in a table: names, and proposals for missing columns."""

from __future__ import annotations

import pytest

from runnel import Signal, TensorSpec
from runnel.columns import choose_columns, columns_of, is_row_name, is_time_name
from runnel.errors import UsageError

ONE = Signal((TensorSpec("x", "float32", (1,)),))
THREE = Signal((TensorSpec("x", "float32", (3,)),))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_an_array_of_one_number_is_a_column_of_its_name(shape) -> None:
    signal = Signal((TensorSpec("x", "float32", shape), TensorSpec("y", "float32", (2,))))
    assert columns_of(signal) == ["x", "y.0", "y.1"]
    longer = ".".join(["x", *["0"] * len(shape)])
    for name in ("x", longer):
        assert choose_columns("f", ["y.1", name, "y.0"], [], signal, None) == [1, 2, 0]


def test_both_names_of_one_number() -> None:
    assert choose_columns("f", ["x.0", "x"], [], ONE, None) == [1], "the shorter name is the input's own"
    two = Signal((TensorSpec("x", "float32", (1,)), TensorSpec("x.0", "float32")))
    assert choose_columns("f", ["x.0", "x"], [], two, None) == [1, 0]
    with pytest.raises(UsageError, match="no column 'x'"):
        choose_columns("f", ["x.0", "y"], [], two, None)


@pytest.mark.parametrize(
    "name",
    ["time", "Time", " TIMESTAMP", "time_stamp", "ts", "t", "date", "datetime", "date_time", "time_ms",
     "Time (s)", "timestamp [ns]", "t_us"],
)  # fmt: skip
def test_names_of_times(name) -> None:
    assert is_time_name(name)
    assert not is_row_name(name)


@pytest.mark.parametrize(
    "name", ["id", "ID", "index", "row", "row_id", "Unnamed: 0", "", "line", "idx", "No"]
)
def test_names_of_row_numbers(name) -> None:
    assert is_row_name(name)
    assert not is_time_name(name)


@pytest.mark.parametrize(
    "name", ["x", "temperature", "lifetime", "humidity", "tide", "pressure", "video", "n.0"]
)
def test_names_of_measured_columns(name) -> None:
    assert not is_time_name(name)
    assert not is_row_name(name)


@pytest.mark.parametrize("odd", ["time", "Timestamp", "id", "INDEX", "", "row", "date"])
def test_no_time_and_no_row_number_is_proposed(odd) -> None:
    header = [odd, "a", "b", "c", "d"]
    with pytest.raises(UsageError) as caught:
        choose_columns("f", header, header, THREE, None)
    assert "such as --columns a,b,c" in str(caught.value)
    assert (f"?time={odd} behind" in str(caught.value)) == is_time_name(odd)


def test_no_column_that_only_rises_is_proposed() -> None:
    header = ["seen", "a", "b", "c"]
    with pytest.raises(UsageError, match=r"such as --columns a,b,c$"):
        choose_columns("f", header, header, THREE, None, rises=lambda name: name == "seen")
    with pytest.raises(UsageError, match=r"say which, in order, with --columns$"):
        choose_columns("f", header, header, THREE, None, rises=lambda name: name in ("seen", "a"))


@pytest.mark.parametrize("odd", ["time", "id", "Date"])
def test_a_table_that_fits_exactly_but_for_its_time_is_not_taken_whole(odd) -> None:
    """The time would be fed to the model as a number."""
    assert choose_columns("f", ["v", "a", "b"], ["v", "a", "b"], THREE, None) == [0, 1, 2]
    with pytest.raises(UsageError, match=r"no column 'x\.0'"):
        choose_columns("f", [odd, "a", "b"], [odd, "a", "b"], THREE, None)
    assert choose_columns("f", [odd, "a", "b"], [], THREE, [odd, "a", "b"]) == [0, 1, 2], "asked for by name"
