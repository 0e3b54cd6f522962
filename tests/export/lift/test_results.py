"""What a step model gives is what torch gives: values at the edges, dtypes, and the outputs' names."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runnel.errors import ExportError
from runnel_export.call import Call, results
from runnel_export.lift.graph import Graph, Port
from runnel_export.lift.lift import lift

from ..stepping import Apply, assert_streams, op_types, session

X = torch.randn(2, 5, 6)
TOKENS = torch.tensor([[0, 7, 3, 5, 6], [1, 2, 3, 4, 5]])
Pair = collections.namedtuple("Pair", "mean scale")


@pytest.mark.parametrize(("beta", "threshold"), [(1, 5), (2, 1), (3, 20), (1, 0)])
def test_softplus_is_linear_beyond_its_threshold(beta: float, threshold: float) -> None:
    assert_streams(Apply(lambda x, _: F.softplus(x * 3, beta, threshold)), X)


def test_softplus_at_its_usual_threshold_is_one_node() -> None:
    assert op_types(lift(Apply(lambda x, _: F.softplus(x)), X)) == ["Softplus"]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_integers_of_any_size_are_clamped(dtype: torch.dtype) -> None:
    end = torch.iinfo(dtype).max - 5
    module = Apply(lambda x, _: x.clamp(-end, end))
    values = torch.tensor([[-end - 2, -end, -(end // 3), 0, end // 3, end, end + 2]], dtype=dtype)
    run = session(lift(module, values))
    (found,) = run.run(None, {"x": values.T.numpy()})
    np.testing.assert_array_equal(found, module(values).T.numpy())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_negative_tokens_are_refused_as_torch_does(dtype: torch.dtype) -> None:
    module = nn.Embedding(9, 4)
    run = session(lift(module, TOKENS.to(dtype)))
    assert_streams(module, TOKENS.to(dtype))
    for bad in (-1, -9, 9):
        with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument):
            run.run(None, {"input": torch.full((1, 1), bad, dtype=dtype).numpy()})


FLOATS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "where of integers": lambda x, _: torch.where(x > 0, 1, 0),
    "where of floats": lambda x, _: torch.where(x > 0, 1.0, 0.5),
    "a float64 without axes": lambda x, _: x * torch.tensor(2.0, dtype=torch.float64),
    "cat of one": lambda x, _: torch.cat([x], 1),
    "cat of one, features": lambda x, _: torch.cat([x.relu()], -1),
    "unused indices": lambda x, _: x.topk(3)[0],
    "unused values": lambda x, _: x.topk(3)[1],
}


@pytest.mark.parametrize("name", FLOATS)
def test_the_dtype_is_torchs(name: str) -> None:
    assert_streams(Apply(FLOATS[name]), X)


def test_a_choice_between_tokens_and_a_fraction_is_a_fraction() -> None:
    lifted = assert_streams(Apply(lambda x, _: torch.where(x > 3, x, 0.5)), TOKENS)
    assert lifted.spec.outputs[0].dtype == "float32"


def test_the_last_tick_may_be_taken_by_a_list() -> None:
    lifted = lift(Apply(lambda x, _: x[:, [-1]] * 2), X)
    assert lifted.model == lift(Apply(lambda x, _: x[:, -1:] * 2), X).model
    with pytest.raises(ExportError, match="picks entries of the time axis"):
        lift(Apply(lambda x, _: x[:, [0, -1]]), X)


FRAMES = torch.randn(2, 1, 6, 5)  # (batch, channels, features, time)

IN_A_FRAME: dict[str, nn.Module] = {
    "max pool": nn.MaxPool2d((2, 1)),
    "max pool, strided and padded": nn.MaxPool2d((3, 1), (2, 1), (1, 0)),
    "mean pool": nn.AvgPool2d((2, 1)),
    "transposed": nn.ConvTranspose2d(1, 3, (2, 1), (2, 1)),
    "transposed, padded": nn.ConvTranspose2d(1, 3, (3, 1), (2, 1), (1, 0), (1, 0), bias=False),
    "conv and back": nn.Sequential(nn.Conv2d(1, 4, (3, 1), (2, 1)), nn.ConvTranspose2d(4, 1, (3, 1), (2, 1))),
}


@pytest.mark.parametrize("name", IN_A_FRAME)
def test_what_has_a_kernel_of_one_along_time_stays_within_a_frame(name: str) -> None:
    assert_streams(IN_A_FRAME[name], FRAMES, time_axis=3)


def test_a_transposed_convolution_of_each_frame() -> None:
    def forward(x: Tensor, m: Any) -> Tensor:
        return torch.stack([m.up(x[:, t].unsqueeze(1)).flatten(1) for t in range(x.shape[1])], 1)

    assert_streams(Apply(forward, up=nn.ConvTranspose1d(1, 2, 3, 2)), X)


# ------------------------------------------------------------------ names

RETURNED: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "a tuple of one": (lambda y: (y,), ["y"]),
    "a list of one": (lambda y: [y], ["y"]),
    "none after": (lambda y: (y, None), ["y"]),
    "none before": (lambda y: (None, y), ["y"]),
    "a number after": (lambda y: (y, 3), ["y"]),
    "nested": (lambda y: ((y,),), ["y0.0"]),
    "a named tuple": (lambda y: Pair(y, y + 1), ["y0", "y1"]),
    "a dict": (lambda y: {"a": y, "b": None}, ["a"]),
    "a dict of a tuple": (lambda y: {"a": (y, 2 * y)}, ["a.0", "a.1"]),
}


@pytest.mark.parametrize("name", RETURNED)
def test_outputs_have_one_name_in_the_file_and_at_the_original(name: str) -> None:
    build, expected = RETURNED[name]
    lifted = lift(Apply(lambda x, _: build(x * 2)), X)
    assert [t.name for t in lifted.spec.outputs] == expected
    assert list(results(build(X), Call(1, 0, 2))[0]) == expected


def test_an_empty_key_is_no_name() -> None:
    with pytest.raises(ExportError, match="a name of its own"):
        lift(Apply(lambda x, _: {"": x * 2}), X)


def test_an_output_whose_other_name_is_taken_is_refused() -> None:
    with pytest.raises(ExportError, match="output_names="):
        lift(Apply(lambda x, _: {"x": x * 2, "x_out": x * 3}), X)
    names = [t.name for t in lift(Apply(lambda x, _: {"x": x * 2, "z": x}), X).spec.outputs]
    assert names == ["x_out", "z"]


def test_a_graph_that_is_not_onnx_is_the_exporters_fault() -> None:
    graph, port = Graph(), Port("x", torch.float32, ("slot", 2))
    graph.fresh("x")
    (y,) = graph.emit("Softplus", ["x", "x"], hint="y")
    with pytest.raises(ExportError, match="a fault of the exporter"):
        graph.finish("bad", [port], [(y, Port("y", torch.float32, ("slot", 2)))])
