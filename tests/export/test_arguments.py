"""What `export` and its command line are given: refused before any work, with the argument's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import runnel_export
from runnel.errors import ExportError, UsageError
from runnel_export import target
from runnel_export.arguments import counted_axes
from runnel_export.lift.lift import lift

X = torch.randn(2, 5, 3)


def refused(says: str, path: Path, module: Any = None, example: Any = X, **options: Any) -> None:
    module = nn.Linear(3, 2) if module is None else module
    with pytest.raises(ExportError, match=says):
        runnel_export.export(module, example, path, **options)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tolerance": float("inf")}, "tolerance=inf"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
        ({"tolerance": "1"}, "tolerance='1'"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, r"seed=1\.5"),
        ({"time_axis": "1"}, "time_axis='1'"),
        ({"batch_axis": None}, "batch_axis=None"),
        ({"state": ["h"]}, "state is a list"),
        ({"output_names": "ab"}, "output_names='ab'"),
        ({"output_names": [""]}, "output_names="),
        ({"example": {}}, "example is an empty dict"),
        ({"example": {"input": X, "z": X[:, :2]}}, "differ in their time steps"),
        ({"module": nn.Linear}, "class Linear: give an instance"),
        ({"module": lambda x: x}, "module is a function"),
        ({"module": nn.DataParallel(nn.Linear(3, 2))}, r"\.module"),
    ],
)
def test_each_error_names_its_argument(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    refused(says, tmp_path / "m.onnx", **change)
    assert list(tmp_path.iterdir()) == []


def test_wrappers_are_told_from_what_is_in_them(tmp_path: Path) -> None:
    refused(r"\._orig_mod", tmp_path / "m.onnx", torch.compile(nn.Linear(3, 2)))
    refused("TorchScript", tmp_path / "m.onnx", torch.jit.trace(nn.Linear(3, 2), X))


@pytest.mark.parametrize("name", ["a" * 300 + ".onnx", "a\0.onnx"])
def test_a_name_that_no_file_can_have_is_refused_first(name: str, tmp_path: Path) -> None:
    refused("not a place for a file", tmp_path / name)


def test_a_name_as_long_as_a_file_may_have_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 250 + ".onnx")
    runnel_export.export(nn.Linear(3, 2), X, path)
    assert list(tmp_path.iterdir()) == [path]


def test_axes_are_counted_from_the_front() -> None:
    assert counted_axes({"x": X}, -2, 0) == (1, 0)
    assert counted_axes({"x": X}, -3, 0) == (0, 1)
    assert counted_axes({"x": X}, None, -3) == (None, 0)
    assert counted_axes({"x": X}, 7, 0) == (7, 0)
    assert counted_axes({"x": X, "z": X[0]}, -1, 0) == (-1, 0)  # another axis of each


def test_a_negative_time_axis_is_the_same_axis() -> None:
    module = nn.GRU(3, 2)
    assert lift(module, X, time_axis=-3).model == lift(module, X, time_axis=0).model


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x=int64[1,50]<0", "0 is no bound"),
        ("x=uint8[1,50]<1000", "1 to 255"),
        ("x=int64[1,50]<99999999999999999999", "is no bound"),
        ("x=float32[100000,100000,3]", "elements"),
    ],
)
def test_an_input_beyond_reason_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        target.example(nn.Linear(3, 2), [text])
