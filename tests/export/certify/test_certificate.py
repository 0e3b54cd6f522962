"""A certificate is worth what it refuses: every wrong step model must fail, and leave no file."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

import runnel_export
from runnel import Engine
from runnel.errors import CertificateError, ExportError, ModelError, NotStreamableError
from runnel.loading import container
from runnel_export import exporter
from runnel_export.certify.certificate import Certificate
from runnel_export.lift.lift import Lifted

from ..steps import FEATURES, Recurrent, lifted

FAULTS = {
    "LSTM": [
        "gate order",
        "state inputs swapped",
        "state outputs swapped",
        "state not fed back",
        "c not fed back",
        "state not read",
        "one tick late",
        "initial state lost",
        "one weight off",
    ],
    "GRU": ["gate order", "reset gate before", "state not fed back", "one tick late", "one weight off"],
}


def example(ticks: int = 9) -> Tensor:
    return torch.randn(2, ticks, FEATURES, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def hand_lifted(monkeypatch: pytest.MonkeyPatch):
    """Export with a step model written by hand in place of the lifted one."""

    def use(module: Recurrent, fault: str = "none") -> None:
        monkeypatch.setattr(exporter, "lift", lambda *_, **__: lifted(module, fault))

    return use


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_right_step_model_is_certified(kind: str, hand_lifted, tmp_path: Path) -> None:
    module = Recurrent(kind)
    hand_lifted(module)
    certificate = runnel_export.export(module, example(), tmp_path / "m.onnx")
    assert certificate.passed
    assert certificate.reference == "float64"
    assert 0 < certificate.error < 1e-5
    assert certificate.alive == (("h", "c") if kind == "LSTM" else ("h",))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    # The engine takes the file without being asked to trust it, and gives the module's own numbers.
    x = np.random.default_rng(0).normal(size=(30, FEATURES)).astype(np.float32)
    with Engine.load(tmp_path / "m.onnx") as engine, engine.open() as stream, torch.no_grad():
        got = np.concatenate([stream.feed(piece) for piece in np.split(x, [1, 4, 11])])
        expected = module.double()(torch.from_numpy(x).double()[None])[0]
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(("kind", "fault"), [(k, f) for k, faults in FAULTS.items() for f in faults])
def test_a_wrong_step_model_is_refused_and_leaves_no_file(
    kind: str, fault: str, hand_lifted, tmp_path: Path
) -> None:
    module = Recurrent(kind)
    hand_lifted(module, fault)
    with pytest.raises(ExportError, match="FAIL"):
        runnel_export.export(module, example(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_file_as_it_was(hand_lifted, tmp_path: Path) -> None:
    module = Recurrent("LSTM")
    (tmp_path / "m.onnx").write_bytes(b"precious")
    hand_lifted(module, "gate order")
    with pytest.raises(ExportError):
        runnel_export.export(module, example(), tmp_path / "m.onnx")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.onnx", b"precious")]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("state not fed back", "'h' keeps its initial value"),
        ("c not fed back", "'c' keeps its initial value"),
        ("state not read", "another value in its place changes no later output"),
    ],
)
def test_a_dead_state_is_named(fault: str, says: str, hand_lifted, tmp_path: Path) -> None:
    module = Recurrent("LSTM")
    hand_lifted(module, fault)
    with pytest.raises(ExportError, match=says):
        # So wide a tolerance that the numbers alone would pass.
        runnel_export.export(module, example(), tmp_path / "m.onnx", tolerance=100.0)


class Doubtful(Recurrent):
    """A module whose own numbers cannot serve as a reference."""

    def __init__(self, change: str) -> None:
        super().__init__("LSTM")
        self.change, self.calls = change, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.change == "future":
            x = x - 0.1 * x.roll(-1, dims=1)
        elif self.change == "batch":
            x = x - x.mean(dim=0, keepdim=True) * (x.shape[0] > 1)
        elif self.change == "random":
            x = x + 0.1 * torch.randn_like(x)
        elif self.change == "memory":
            x = x * self.calls
        elif self.change == "nan":
            x = torch.log(x)
        elif self.change == "picky":
            assert x.abs().max() < 0.5, "quiet, please"
        return super().forward(x)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ("future", NotStreamableError, "looks at the future"),
        ("batch", ExportError, "mixes the streams of a batch"),
        ("random", ExportError, "other numbers when it is run again"),
        ("memory", ExportError, "state that it keeps in itself"),
        ("nan", ExportError, "realistic values"),
        ("picky", ExportError, "quiet, please"),
    ],
)
def test_an_original_that_cannot_be_believed_is_refused(
    change: str, kind: type[ExportError], says: str, hand_lifted, tmp_path: Path
) -> None:
    module = Doubtful(change)
    hand_lifted(module)
    with pytest.raises(kind, match=says):
        runnel_export.export(module, example(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_cannot_be_doubled_is_compared_in_float32_and_says_so(
    hand_lifted, tmp_path: Path
) -> None:
    class Stubborn(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    module = Stubborn("LSTM")
    hand_lifted(module)
    certificate = runnel_export.export(module, example(), tmp_path / "m.onnx")
    assert certificate.reference == "float32"
    assert any("float64" in note for note in certificate.notes)


def test_the_users_module_is_left_as_it_was(hand_lifted, tmp_path: Path) -> None:
    module = Recurrent("LSTM").train()
    module.fc.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    hand_lifted(module)
    runnel_export.export(module, example(), tmp_path / "m.onnx")
    assert module.training
    assert module.layer.training
    assert not module.fc.training
    assert all(torch.equal(before[n], v) and v.dtype == torch.float32 for n, v in module.state_dict().items())
    assert torch.get_default_dtype() == torch.float32


def test_given_data_is_used(hand_lifted, tmp_path: Path) -> None:
    """A fault that shows only on large inputs, which neither the example nor random data has."""
    module = Recurrent("GRU")
    right = lifted(module)
    model = onnx.ModelProto()
    model.CopyFrom(right.model)
    clip = onnx.helper.make_node("Clip", ["x", "low", "high"], ["x.clipped"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(-30), "low"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(30), "high"))
    model.graph.node[0].input[0] = "x.clipped"
    model.graph.node.insert(0, clip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "lift", lambda *_, **__: Lifted(model, right.spec, ()))
        runnel_export.export(module, example(), tmp_path / "m.onnx")
        with pytest.raises(ExportError, match="given"):
            runnel_export.export(module, example(), tmp_path / "n.onnx", data=example() * 100)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"path": "m.pt"}, r"ends in \.onnx"),
        ({"path": "nowhere/m.onnx"}, "no folder"),
        ({"path": "../taken.onnx"}, "is a folder: name a file"),
        ({"quantize": "int4"}, "int4"),
        ({"tolerance": 0.0}, "positive"),
        ({"example": [1, 2]}, "expected a tensor"),
        ({"example": torch.zeros(1, 0, FEATURES)}, "holds nothing"),
        ({"example": torch.zeros(FEATURES)}, "no axis 1 for time"),
        ({"example": {"x": torch.zeros(2, 3, FEATURES), "z": torch.zeros(1, 3, 1)}}, "differ in their batch"),
        ({"rate": -1.0}, "positive number of Hz"),
        ({"data": torch.zeros(1, 9, FEATURES + 1)}, "expected as in the example"),
        ({"data": torch.zeros(1, 9, FEATURES, dtype=torch.int64)}, "expected as in the example"),
        ({"data": torch.zeros(9)}, r"'x': data has shape \(9,\); expected \(batch, time, 5\)$"),
    ],
)
def test_bad_arguments_are_named(change: dict, says: str, hand_lifted, tmp_path: Path) -> None:
    module = Recurrent("GRU")
    hand_lifted(module)
    given = {"example": example(), "path": "m.onnx", **change}
    given["path"] = (tmp_path := tmp_path / "here") / given["path"]
    tmp_path.mkdir()
    (tmp_path.parent / "taken.onnx").mkdir()
    with pytest.raises(ExportError, match=says):
        runnel_export.export(module, **given)
    assert list(tmp_path.iterdir()) == []


# The file


def test_a_disk_that_is_read_only_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses to take away even a file that is not there."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    says = "cannot write there: Read-only file system"
    with pytest.raises(ExportError, match=says), exporter._scratch(tmp_path / "m.onnx") as scratch:
        exporter._write(scratch, b"")


@pytest.fixture
def certified(hand_lifted, tmp_path: Path) -> Path:
    module = Recurrent("LSTM")
    hand_lifted(module)
    runnel_export.export(module, example(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_the_certificate_survives_the_file(certified: Path) -> None:
    document = container.document(container.read(certified), "m")
    assert document is not None
    certificate = Certificate.from_json(document["certificate"], "m")
    assert certificate.passed
    assert json.loads(json.dumps(certificate.to_json())) == json.loads(
        json.dumps({k: v for k, v in document["certificate"].items() if k != "hash"})
    )


def test_verify_repeats_the_onnx_side(certified: Path) -> None:
    lines: list[str] = []
    certificate = runnel_export.verify(certified, report=lines.append)
    assert certificate.passed
    assert lines
    assert {"stepped", "given", "batched", "reset", "restored", "alive"} <= {
        c.name for c in certificate.checks
    }
    assert 0 < certificate.error < 1e-5  # against the module's numbers, not its own


def test_one_flipped_bit_is_refused(certified: Path) -> None:
    data = certified.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data) * 8, 60):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        certified.write_bytes(changed)
        with pytest.raises(ModelError):  # mostly CertificateError; a broken frame is no ONNX file at all
            runnel_export.verify(certified)


def test_an_edited_file_with_a_fitting_hash_fails_against_the_modules_numbers(certified: Path) -> None:
    """Someone exchanged the weights and sealed the file again: the numbers of the original are in it."""
    document = container.document(certified.read_bytes(), "m")
    assert document is not None
    other = lifted(Recurrent("LSTM"), "one weight off").model.SerializeToString()
    certified.write_bytes(container.seal(other, document))
    with pytest.raises(CertificateError, match="given"):
        runnel_export.verify(certified)


def test_a_file_without_a_certificate_is_not_verified(tmp_path: Path) -> None:
    from runnel.spec import to_document

    step = lifted(Recurrent("GRU"))
    (tmp_path / "m.onnx").write_bytes(container.seal(step.model.SerializeToString(), to_document(step.spec)))
    with pytest.raises(CertificateError, match="no certificate"):
        runnel_export.verify(tmp_path / "m.onnx")


@pytest.mark.parametrize("damage", [{"checks": 3}, {"alive": None}, {"surprise": 1}])
def test_a_certificate_that_makes_no_sense_is_refused(damage: dict, certified: Path) -> None:
    document = container.document(certified.read_bytes(), "m")
    assert document is not None
    document["certificate"] |= damage
    certified.write_bytes(container.seal(lifted(Recurrent("LSTM")).model.SerializeToString(), document))
    with pytest.raises(ModelError, match="export the model again"):
        runnel_export.verify(certified)


# int8


def test_int8_has_its_own_error_and_says_what_stayed(hand_lifted, tmp_path: Path) -> None:
    module = Recurrent("LSTM")
    hand_lifted(module)
    certificate = runnel_export.export(module, example(), tmp_path / "m.onnx", quantize="int8")
    assert certificate.quantize is not None
    assert {w["op"] for w in certificate.quantize["int8"]} == {"LSTM", "MatMul"}
    assert certificate.quantize["float32"] == []
    assert 1e-4 < certificate.error < 0.1
    drift = next(c for c in certificate.checks if c.name == "drift")
    assert {name: 0 < e.relative < 0.1 for name, e in drift.errors.items()} == {
        "state h": True,
        "state c": True,
    }
    assert runnel_export.verify(tmp_path / "m.onnx").passed
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_int8_of_a_gru_keeps_its_weights_in_float32_and_names_them(hand_lifted, tmp_path: Path) -> None:
    module = Recurrent("GRU")
    hand_lifted(module)
    certificate = runnel_export.export(module, example(), tmp_path / "m.onnx", quantize="int8")
    assert certificate.quantize is not None
    assert [w["op"] for w in certificate.quantize["int8"]] == ["MatMul"]
    assert [(w["op"], w["weight"]) for w in certificate.quantize["float32"]] == [("GRU", "W"), ("GRU", "R")]


def test_int8_beyond_its_tolerance_is_refused(hand_lifted, tmp_path: Path) -> None:
    module = Recurrent("LSTM")
    hand_lifted(module)
    with pytest.raises(ExportError, match="FAIL"):
        runnel_export.export(module, example(), tmp_path / "m.onnx", quantize="int8", tolerance=1e-4)
    assert list(tmp_path.iterdir()) == []


def test_int8_with_nothing_to_quantise_is_refused(tmp_path: Path) -> None:
    class Bare(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            start = self.start[0].expand(1, x.shape[0], -1).contiguous()
            return self.layer(x, start)[0]

    module = Bare("GRU")
    step = lifted(module)
    graph = step.model.graph
    graph.node[1].output[0] = "y"
    del graph.node[2:]
    graph.output[0].type.tensor_type.shape.dim[2].dim_value = 8
    outputs = (replace(step.spec.outputs[0], shape=("time", "slot", 8)),)
    bare = replace(step, spec=replace(step.spec, outputs=outputs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "lift", lambda *_, **__: bare)
        with pytest.raises(ExportError, match=r"weights are in: GRU"):
            runnel_export.export(module, example(), tmp_path / "m.onnx", quantize="int8")
    assert list(tmp_path.iterdir()) == []
