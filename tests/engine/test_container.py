"""A damaged file never loads: its certificate's hash covers every bit."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel import Engine, errors
from runnel.loading import container
from tests import models


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory) -> models.Hand:
    return models.lstm(tmp_path_factory.mktemp("container") / "m.onnx", hidden=2, layers=1)


def test_onnx_reads_the_file_too(hand: models.Hand) -> None:
    model = onnx.load(hand.path)
    onnx.checker.check_model(model)
    entry = {p.key: p.value for p in model.metadata_props}
    assert entry == ort.InferenceSession(str(hand.path)).get_modelmeta().custom_metadata_map
    found = container.document(hand.path.read_bytes(), "m")
    assert found is not None
    assert found["certificate"]["hash"] == container.digest(hand.path.read_bytes(), found, "m")


@given(at=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_one_flipped_bit_is_refused(hand: models.Hand, at: int, bit: int) -> None:
    data = bytearray(hand.path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path = hand.path.with_name("flipped.onnx")
    path.write_bytes(data)
    with pytest.raises(errors.ModelError):
        Engine.load(path)


@given(size=st.integers(0, 10**9))
def test_a_cut_off_file_is_refused(hand: models.Hand, size: int) -> None:
    data = hand.path.read_bytes()
    path = hand.path.with_name("cut.onnx")
    path.write_bytes(data[: size % len(data)])
    with pytest.raises(errors.ModelError):
        Engine.load(path)


@given(data=st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    try:
        container.document(data, "noise")
        container.digest(data, {}, "noise")
    except errors.ModelError:
        pass


def test_messages(hand: models.Hand, tmp_path: Path) -> None:
    with pytest.raises(errors.ModelError, match="cannot read the model: No such file"):
        Engine.load(tmp_path / "missing.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(errors.ModelError, match="empty"):
        Engine.load(tmp_path / "empty.onnx")
    changed = tmp_path / "changed.onnx"
    model = onnx.load(hand.path)
    weights = next(i for i in model.graph.initializer if i.name == "V")
    array = np.array(onnx.numpy_helper.to_array(weights))
    array[0, 0] += 1e-3
    weights.CopyFrom(onnx.numpy_helper.from_array(array, "V"))
    onnx.save(model, changed)
    with pytest.raises(errors.CertificateError, match=r"not the file that was certified.*trust"):
        Engine.load(changed)
    Engine.load(changed, trust=True).open().feed(np.zeros((1, 3), np.float32))
    bare = tmp_path / "bare.onnx"
    del model.metadata_props[:]
    onnx.save(model, bare)
    with pytest.raises(errors.ModelError, match=r"does not describe its states.*\[\[model.state\]\]"):
        Engine.load(bare)
    uncertified = tmp_path / "uncertified.onnx"
    described = container.document(hand.path.read_bytes(), "m")
    assert described is not None
    del described["certificate"]
    uncertified.write_bytes(container.seal(bare.read_bytes(), described))
    with pytest.raises(errors.CertificateError, match="no certificate"):
        Engine.load(uncertified)
    assert Engine.load(uncertified, trust=True)
