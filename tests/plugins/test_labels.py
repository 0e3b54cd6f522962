"""labels: the most likely classes, as found by a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError
from runnel_plugins.labels import Labels

NAMES = ["cat", "dog", "eel", "fox"]


def signal(*shape):
    return Signal((TensorSpec("x", "float32", shape),), 100.0)


def run(stage, **chunk):
    return stage.step(stage.open(), chunk)[1]


@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_it_keeps_the_laws(k, shape):
    check_stage(lambda: Labels(signal(*shape), k=k))


def test_it_keeps_the_laws_for_many_classes():
    check_stage(lambda: Labels(signal(40), k=20))


numbers = st.sampled_from([-np.inf, -1e30, -1.0, -0.0, 0.0, 0.25, 0.5, 1.0, np.inf])  # with many ties


@given(
    rows=st.lists(st.lists(numbers, min_size=24, max_size=24), min_size=1, max_size=4), k=st.integers(1, 24)
)
@example([[-np.inf] * 24], 3)
@example([[0.0] + [-1e30] * 23, [-np.inf] * 23 + [0.0]], 5)
def test_it_equals_sorting(rows, k):
    x = np.array(rows, np.float32)
    got = run(Labels(signal(24), k=k), x=x)
    for row, ids, scores in zip(rows, got["label"], got["score"], strict=True):
        want = sorted(range(24), key=lambda i: (-row[i], i))[:k]
        assert np.atleast_1d(ids).tolist() == want
        np.testing.assert_array_equal(scores, x[0].dtype.type([row[i] for i in want]).reshape(scores.shape))


def test_names_go_with_the_numbers(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("cat\r\ndog\r\neel\r\nфокс\r\n".encode())
    for stage in (Labels(signal(4), NAMES, k=2), Labels(signal(4), names_file=file, k=2)):
        label, score = stage.outputs.tensors
        assert (label.dtype, label.shape, label.labels[:3]) == ("int64", (2,), ("cat", "dog", "eel"))
        assert (score.name, score.labels) == ("score", ())
        got = run(stage, x=np.array([[0.1, 0.2, 0.0, 0.7]], np.float32))
        assert got["label"].tolist() == [[3, 1]]
        np.testing.assert_allclose(got["score"], [[0.7, 0.2]])
    assert Labels(signal(4), names_file=file).outputs.tensors[0].labels[3] == "фокс"
    assert Labels(signal(4)).outputs.tensors[0] == TensorSpec("label", "int64")


@pytest.mark.parametrize("k", [1, 2, 20])
@pytest.mark.parametrize("at", [0, 11, 23])
def test_nan_in_a_time_step_is_refused(k, at):
    x = np.zeros((5, 24), np.float32)
    x[3, at] = np.nan
    with pytest.raises(NonFiniteError, match="labels: 'x' has nan at time step 3"):
        run(Labels(signal(24), k=k), x=x)


def test_only_the_stream_with_nan_fails():
    stage = Labels(signal(2, 4))
    chunks = [{"x": np.full((3, 2, 4), i, np.float32)} for i in range(3)]
    chunks[1]["x"][2, 1, 3] = np.nan
    good, bad, also = stage.step_many([{}] * 3, chunks)
    assert good[1]["score"].tolist() == [[0, 0]] * 3
    assert also[1]["score"].tolist() == [[2, 2]] * 3
    assert isinstance(bad, NonFiniteError)
    assert "time step 2" in str(bad)


def test_other_arrays_pass():
    inputs = Signal((TensorSpec("a", "float32", (2,)), TensorSpec("n", "int64", (3,))))
    stage = Labels(inputs)
    assert stage.outputs.names == ("label", "score", "n")
    n = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(run(stage, a=np.zeros((2, 2), np.float32), n=n)["n"], n)


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (signal(), {}, "classes on its last axis"),
        (signal(4), {"k": 0}, r"k must be in 1\.\.4, the number of classes, not 0"),
        (signal(4), {"k": 5}, "not 5"),
        (signal(4), {"names": ["a"]}, "1 names are given for 4 classes"),
        (signal(4), {"names_file": "none.txt"}, "none.txt: cannot read a list of names: No such file"),
        (signal(4), {"names_file": "bad.txt"}, "bad.txt is not UTF-8: byte 1"),
        (signal(4), {"names_file": "big.txt"}, "a list of names has at most 16777216"),
        (signal(4), {"names_file": "none.txt", "names": NAMES}, "names and names_file are both given"),
        (
            Signal((TensorSpec("x", "float32", (4,)), TensorSpec("score", "int64"))),
            {},
            "labels makes 'score', but an array of that name arrives",
        ),
    ],
)
def test_bad_options_are_refused_at_construction(inputs, options, says, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"a\xff\n")
    with (tmp_path / "big.txt").open("wb") as big:
        big.truncate(2**24 + 1)
    if "names_file" in options:
        options = {**options, "names_file": tmp_path / options["names_file"]}
    with pytest.raises(PipelineError, match=says):
        Labels(inputs, **options)
