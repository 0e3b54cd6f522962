"""one_hot: torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import ChunkError, PipelineError, RunnelError
from runnel_plugins.one_hot import OneHot


def signal(shape=(), dtype="int64", labels=()):
    return Signal((TensorSpec("x", dtype, shape, labels),), 3.0)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "uint64", "int32"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_it_is_torchs_one_hot(dtype, shape):
    stage = OneHot(signal(shape, dtype), size=6)
    ids = np.random.default_rng(0).integers(0, 6, (20, *shape))
    _, out = stage.step({}, {"x": ids.astype(dtype)})
    want = torch.nn.functional.one_hot(torch.from_numpy(ids), 6).float().numpy()
    np.testing.assert_array_equal(out["x"], want)
    assert out["x"].dtype == np.float32
    check_stage(lambda: OneHot(signal(shape, dtype), size=6), {"x": ids.astype(dtype)})


def test_size_is_the_number_of_labels():
    stage = OneHot(signal(labels=("a", "b", "c")))
    assert (stage.outputs.tensors[0].shape, stage.outputs.tensors[0].labels) == ((3,), ("a", "b", "c"))


def test_other_arrays_pass():
    two = Signal((TensorSpec("x", "int64"), TensorSpec("y", "float32", (2,))))
    check_stage(lambda: OneHot(two, size=2))
    both = Signal((TensorSpec("x", "int64"), TensorSpec("z", "int64")))
    check_stage(lambda: OneHot(both, size=2, of="z"))
    with pytest.raises(PipelineError, match="'x', 'z' are: say with of"):
        OneHot(both, size=2)


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [("int64", -1), ("int64", 6), ("uint8", 255), ("int64", -(2**63)), ("uint64", 2**64 - 1)],
)
def test_out_of_range_number_is_refused_with_its_position_for_its_stream_only(dtype, bad):
    stage = OneHot(signal((2,), dtype), size=6)
    ids = np.zeros((5, 2), dtype)
    ids[3, 1] = bad
    with pytest.raises(ChunkError, match=rf"has {bad} at time step 3, element \(1,\); expected 0..5"):
        stage.step({}, {"x": ids})
    fine, failed = stage.step_many([{}, {}], [{"x": np.ones((5, 2), dtype)}, {"x": ids}])
    assert isinstance(failed, RunnelError)
    assert fine[1]["x"][0, 0].tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (signal(), {}, "give size: 'x' has no labels"),
        (signal(), {"size": 0}, "size must be at least 1, .* 0 for each of"),
        (signal((2,)), {"size": 2**20}, "a row at most 1048576 numbers"),
        (signal((), "float32"), {"size": 2}, "takes whole numbers"),
        (signal(), {"size": 2, "of": "y"}, "of is 'y', but x"),
        (
            Signal((TensorSpec("x", "int8"), TensorSpec("y", "bool"))),
            {"size": 2, "of": "y"},
            "but y: bool .* is named by of",
        ),
    ],
)
def test_bad_options_and_inputs_are_refused(given, options, message):
    with pytest.raises(PipelineError, match=message):
        OneHot(given, **options)
