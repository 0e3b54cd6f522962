"""The model's document: written and read back unchanged, and any invalid content refused."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import ModelError
from runnel.grouping import Framing
from runnel.probe import Probe, ProbeLayer, beside
from runnel.spec import ModelSpec, from_document, to_document
from tests.models import state, tensor

SPEC = ModelSpec(
    (tensor("x", ("time", "slot", 6, 2)),),
    (tensor("y", ("time", "slot", 3)), tensor("n", ("time", "slot"), "int64")),
    (state("h", (2, "slot", 3), [[1, 2, 3], [4, 5, 6]]), state("c", ("slot", 4), 0.5)),
    Framing(6, 4),
    rate=16000.0,
    certificate={"tolerance": 1e-4},
    graph={"ops": {"LSTM": 1}},
)

LOOKED_INTO = ModelSpec(
    (tensor("x", ("time", "slot", 2)),),
    tuple(tensor(name, ("time", "slot", 3)) for name in ("y", *(f"gru.0.{k}" for k in "rznh"), "rnn.0.h")),
    (state("h", (1, "slot", 3)), state("g", (1, "slot", 2))),
    certificate={"tolerance": 1e-4},
    probe=Probe(
        "sha256:00",
        (
            ProbeLayer("gru.0", "GRU", {k: f"gru.0.{k}" for k in "rznh"}, {"h": "h"}, takes=True),
            ProbeLayer("rnn.0.backward", "RNN", {"h": "rnn.0.h"}, backward=True),
        ),
    ),
)

_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["slot", "time", "float32", 1.5]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, v in inner for p in paths(v, (*path, key)))]


def test_round_trip() -> None:
    document = to_document(SPEC)
    again = from_document(document, "m")
    assert to_document(again) == document
    assert (again.inputs, again.outputs, again.framing, again.rate) == (
        SPEC.inputs,
        SPEC.outputs,
        SPEC.framing,
        16000,
    )
    for a, b in zip(again.states, SPEC.states, strict=True):
        assert (a.input, a.output, a.shape, a.slot_axis) == (b.input, b.output, b.shape, b.slot_axis)
        np.testing.assert_array_equal(a.initial, b.initial)
        assert not a.initial.flags.writeable


def test_a_probe_round_trip() -> None:
    document = to_document(LOOKED_INTO)
    again = from_document(json.loads(json.dumps(document)), "m")
    assert again.probe == LOOKED_INTO.probe
    assert to_document(again) == document
    assert LOOKED_INTO.probe is not None
    assert LOOKED_INTO.probe.outputs == ("gru.0.r", "gru.0.z", "gru.0.n", "gru.0.h", "rnn.0.h")
    assert "probe" not in to_document(SPEC)
    assert beside(Path("a/lm.onnx")) == Path("a/lm.probe.onnx")


@given(at=st.integers(0, 10_000), value=_json, spec=st.sampled_from([SPEC, LOOKED_INTO]))
def test_any_value_anywhere_is_accepted_or_refused(at: int, value: Any, spec: ModelSpec) -> None:
    document = copy.deepcopy(to_document(spec))
    path = paths(document)[at % len(paths(document))]
    if not path:
        document = value
    else:
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
    try:
        read = from_document(document, "m.onnx")
    except ModelError as error:
        message = str(error)
    else:
        message = "m.onnx"
        assert to_document(from_document(to_document(read), "m")) == to_document(read)
    assert message.startswith(("m.onnx", "framing"))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("format",), 2, "format 2; this version of runnel reads format 1"),
        (("latecy",), 0, r"unknown key 'latecy' \(did you mean 'latency'\?\)"),
        (("inputs",), [], "at least one input"),
        (("states", 0, "shape"), [2, 3], "must hold 'slot' once"),
        (("states", 0, "slot_axis"), 0, "slot_axis 0 is not where 'slot' stands"),
        (("states", 1, "input"), "h", "input 'h' is named twice"),
        (("outputs", 0, "dtype"), "float31", "dtype 'float31' is not one of"),
        (("outputs", 0, "shape"), ["slot", 3], "not every input and output has a 'time' axis"),
        (("framing", "window"), 7, "window is 7, but 'x' takes"),
        (("ticks",), 2, "ticks must be 'any' or 1"),
        (("rate",), -1, "positive number of Hz"),
    ],
)
def test_messages(path: tuple[Any, ...], value: Any, says: str) -> None:
    document: Any = copy.deepcopy(to_document(SPEC))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ModelError, match=says):
        from_document(document, "m.onnx")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ((), [], "m.onnx: probe: expected an object"),
        (("of",), "", "of must be a name"),
        (("layers",), {}, "layers must be a list of at most"),
        (("layers", 0, "name"), 3, r"layers\[0\]: name must be a name"),
        (("layers", 0, "kind"), None, "kind must be a name"),
        (("layers", 0, "takes"), 1, "takes must be true or false, not 1"),
        (("layers", 1, "backward"), "yes", "backward must be true or false, not 'yes'"),
        (("layers", 0, "outputs"), None, "outputs: expected an object"),
        (("layers", 0, "outputs"), {"q": "gru.0.z"}, "'q' is none of i, f, o"),
        (("layers", 0, "outputs", "z"), "gru.0.h", "names 'gru.0.h' twice"),
        (("layers", 0, "outputs", "z"), "z", "names 'z' twice, or no output of float32"),
        (("layers", 0, "states"), {"q": "h"}, "states: 'q' is none of i, f, o"),
        (("layers", 0, "states"), {"c": "h"}, "the probe's 'c' of 'gru.0' is not what state 'h' is"),
        (("layers", 0, "states", "h"), "k", "the probe's 'h' of 'gru.0' is not what state 'k' is"),
        (("layers", 0, "states", "h"), "g", "is not what state 'g' is"),  # another width
        (("layers", 1, "outputs", "i"), "y", "gives what its model gives besides"),
    ],
)
def test_a_probes_document_is_read_strictly(path: tuple[Any, ...], value: Any, says: str) -> None:
    document: Any = copy.deepcopy(to_document(LOOKED_INTO))
    inner, path = document, ("probe", *path)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ModelError, match=says):
        from_document(document, "m.onnx")
