"""A probe's certificate: what it proves, what it refuses, and the two files together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import runnel_export
from runnel import Engine
from runnel.errors import CertificateError, ExportError, ModelError
from runnel.loading import container
from runnel.probe import beside
from runnel_export import exporter
from runnel_export.certify.certificate import FLOAT32
from runnel_export.certify.checks import Prover, Trial
from runnel_export.certify.errors import judge
from runnel_export.certify.probe import recomposed
from runnel_export.lift.lift import lift
from runnel_export.nn import GRU, LayerNormLSTM, Recurrent

IN, WIDTH = 4, 6


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr("runnel_export.certify.reference_runs.LONG", 120)


class Tagger(nn.Module):
    def __init__(self, cell: nn.Module | None = None) -> None:
        super().__init__()
        self.lstm = nn.LSTM(IN, WIDTH, batch_first=True)
        self.cell = cell or GRU(WIDTH, WIDTH)
        self.fc = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.cell(self.lstm(x)[0])[0])
        return y


class Stopped(datetime):
    """A clock that stands still: a certificate has its date."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls(2026, 1, 2, tzinfo=tz)


def example() -> Tensor:
    return torch.randn(2, 9, IN, generator=torch.Generator().manual_seed(3))


def export(module: nn.Module, path: Path, **options: Any) -> runnel_export.Certificate:
    return runnel_export.export(module, example(), path, probe="gates", **options)


def spec_of(path: Path) -> Any:
    with Engine.load(path) as engine:
        return engine.pipeline.model


@cache
def tagger() -> Tagger:
    torch.manual_seed(1)
    return Tagger()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its probe beside it; not to be changed."""
    path = tmp_path_factory.mktemp("probe") / "m.onnx"
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runnel_export.certify.reference_runs.LONG", 120)
        patch.setattr(exporter, "datetime", Stopped)
        certificate = export(tagger(), path, progress=said.append)
    assert "proving the probe" in said
    assert spec_of(beside(path)).probe.of == certificate.hash
    return path


def check_pair(path: Path) -> dict[str, Any]:
    """Two files, each with its certificate; the checks of the probe's."""
    assert sorted(f.name for f in path.parent.iterdir()) == ["m.onnx", "m.probe.onnx"]
    model, probe = spec_of(path), spec_of(beside(path))
    assert model.probe is None
    assert [t.name for t in probe.outputs] == [*(t.name for t in model.outputs), *probe.probe.outputs]
    assert [s.input for s in probe.states] == [s.input for s in model.states]
    checks = {c["name"]: c for c in probe.certificate["checks"]}
    assert {c["name"] for c in model.certificate["checks"]} | {"same", "gates"} == checks.keys()
    assert checks["same"]["about"].endswith("bit for bit")
    assert all(e["relative"] == 0 for e in checks["same"]["errors"].values())
    return checks


def test_two_files_each_with_its_certificate(exported: Path) -> None:
    errors = check_pair(exported)["gates"]["errors"]
    of_lstm = {"lstm.0.c", "lstm.0.h", "lstm.0.h at the end", "lstm.0.c at the end"}
    assert errors.keys() == of_lstm | {"cell.0.h", "cell.0.h at the end"}
    again = {c.name: c for c in runnel_export.verify(beside(exported)).checks}
    assert again["gates"].passed
    assert set(spec_of(beside(exported)).probe.outputs) <= again["cuts"].errors.keys()  # the law of chunking


@pytest.mark.soak
def test_a_model_of_one_tick_a_call_has_a_probe_too(tmp_path: Path) -> None:
    export(Tagger(LayerNormLSTM(WIDTH, WIDTH)), tmp_path / "m.onnx")
    assert "cell.0.h at the end" in check_pair(tmp_path / "m.onnx")["gates"]["errors"]
    assert runnel_export.verify(tmp_path / "m.probe.onnx").passed


def test_the_engine_gives_the_same_from_both(exported: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, IN)).astype(np.float32)
    with Engine.load(exported) as plain, Engine.load(beside(exported)) as probe:
        one, other = plain.open(), probe.open()
        for piece in np.split(x, [1, 2, 30, 33]):
            shown = other.feed(piece)
            np.testing.assert_array_equal(one.feed(piece), shown["y"])
            assert shown["lstm.0.i"].shape == (len(piece), WIDTH)


def test_the_file_is_byte_for_byte_what_it_is_without(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "datetime", Stopped)
    runnel_export.export(tagger(), example(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == exported.read_bytes()
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"]


# Faults


def stored(model: onnx.ModelProto, name: str) -> np.ndarray[Any, Any]:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)).copy()


def store(model: onnx.ModelProto, name: str, value: np.ndarray[Any, Any]) -> None:
    next(t for t in model.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(value, name))


def products(model: onnx.ModelProto, layer: str) -> list[str]:
    """The weights of the products that were written for a layer's gates."""
    return [n.input[1] for n in model.graph.node if n.op_type == "MatMul" and n.name.startswith(f"{layer}/")]


def exchanged(layer: str, one: int, other: int) -> Callable[[onnx.ModelProto], None]:
    """Two gates' weights exchanged where the gates are computed; the layer's own node is as it was."""

    def change(model: onnx.ModelProto) -> None:
        for name in products(model, layer)[:1]:
            weights = stored(model, name)
            parts = np.split(weights, weights.shape[1] // WIDTH, 1)
            parts[one], parts[other] = parts[other], parts[one]
            store(model, name, np.concatenate(parts, 1))

    return change


def renamed(one: str, other: str) -> Callable[[onnx.ModelProto], None]:
    """Two of what is shown, each under the other's name."""

    def change(model: onnx.ModelProto) -> None:
        names = {one: other, other: one}
        for node in model.graph.node:
            for names_of in (node.input, node.output):
                for k, name in enumerate(names_of):
                    names_of[k] = names.get(name, name)

    return change


def one_off(layer: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        name = products(model, layer)[-1]
        weights = stored(model, name)
        weights[0, 0] += 0.05
        store(model, name, weights)

    return change


FAULTS = {
    "none": lambda model: None,
    "i and f exchanged": exchanged("lstm.0", 0, 1),
    "f and o exchanged": exchanged("lstm.0", 1, 3),
    "r and z exchanged": exchanged("cell.0", 0, 1),
    "z and n exchanged": exchanged("cell.0", 1, 2),
    "i and g under each other's name": renamed("lstm.0.i", "lstm.0.g"),
    "o and f under each other's name": renamed("lstm.0.o", "lstm.0.f"),
    "one weight off": one_off("lstm.0"),
    "one weight off, GRU": one_off("cell.0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_gates_are_seen(fault: str, exported: Path, tmp_path: Path) -> None:
    model = onnx.load(beside(exported))
    FAULTS[fault](model)
    onnx.save(model, tmp_path / "wrong.onnx")
    rng = np.random.default_rng(2)
    chunks = [{"x": rng.normal(size=(n, IN)).astype(np.float32)} for n in (20, 9)]
    with Engine.load(tmp_path / "wrong.onnx", trust=True) as engine:
        (check,) = judge([recomposed(Prover(engine, rng), [Trial(c, {}) for c in chunks])], FLOAT32)
    assert check.passed == (fault == "none"), check.row()


def own_output(model: onnx.ModelProto) -> None:
    """What the model itself gives, a little off: within the tolerance of every other check."""
    name = next(n.input[1] for n in model.graph.node if n.name.startswith("fc/") and n.op_type == "Add")
    store(model, name, stored(model, name) * np.float32(1 + 4e-5))


def test_another_output_is_seen_even_within_the_tolerance_of_all_else(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(beside(exported))
    own_output(model)
    onnx.save(model, tmp_path / "wrong.onnx")
    x = np.random.default_rng(2).normal(size=(20, IN)).astype(np.float32)
    random = (Trial({"x": x}, {}), Trial({"x": x[:9]}, {}))
    subject = SimpleNamespace(trials=SimpleNamespace(random=random, given=()), seed=0)
    wrong = exporter._shown(exported, tmp_path / "wrong.onnx", subject, FLOAT32)  # type: ignore[arg-type]
    right = exporter._shown(exported, beside(exported), subject, FLOAT32)  # type: ignore[arg-type]
    assert [(c.name, c.passed) for c in wrong] == [("same", False), ("gates", True)]
    assert "bit for bit" not in wrong[0].about
    assert [(c.name, c.passed) for c in right] == [("same", True), ("gates", True)]


def test_a_wrong_probe_is_refused_and_neither_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any, **options: Any) -> Any:
        lifted = lift(*args, **options)
        assert lifted.probe is not None
        exchanged("cell.0", 0, 1)(lifted.probe.model)
        return lifted

    monkeypatch.setattr(exporter, "lift", wrong)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=r"m\.probe\.onnx: not written") as failed:
        export(tagger(), path)
    assert [line.split()[1] for line in str(failed.value).splitlines() if "FAIL" in line] == ["gates"]
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"old"


def test_a_probe_with_exchanged_gates_does_not_verify(exported: Path, tmp_path: Path) -> None:
    """Sealed anew by somebody, so that the hash is right and the gates are not."""
    data = beside(exported).read_bytes()
    document = container.document(data, "m") or {}
    model = onnx.load_from_string(data)
    del model.metadata_props[:]
    exchanged("cell.0", 0, 1)(model)
    (tmp_path / "m.onnx").write_bytes(container.seal(model.SerializeToString(), document))
    with pytest.raises(CertificateError, match=r"gives other numbers\nFAIL  gates .*cell\.0\.h"):
        runnel_export.verify(tmp_path / "m.onnx")


def named_gru() -> nn.Module:
    """Somebody's own layer, with a gate that is an exponential; by its name one that the proof knows."""

    class GRU(Recurrent):
        def __init__(self) -> None:
            super().__init__({"h": WIDTH})
            self.mix = nn.Linear(2 * WIDTH, WIDTH)

        def tick(self, layer: int, x: Tensor, state: tuple[Tensor, ...]) -> Any:
            z = self.show("z", torch.exp(self.mix(torch.cat([x, state[0]], -1))))
            h = 0.5 * state[0] + torch.tanh(z) / 4
            return h, (h,)

    return GRU()


def test_nothing_is_asked_of_a_layer_of_ones_own_whatever_it_is_called(tmp_path: Path) -> None:
    export(Tagger(named_gru()), tmp_path / "m.onnx")
    check_pair(tmp_path / "m.onnx")
    assert [x.kind for x in spec_of(tmp_path / "m.probe.onnx").probe.layers] == ["LSTM", "GRU, written out"]


@pytest.mark.parametrize("fault", ["less", "narrower", "nothing"])
def test_a_probe_that_shows_less_than_its_layers_have_is_refused(
    fault: str, exported: Path, tmp_path: Path
) -> None:
    data = beside(exported).read_bytes()
    document = container.document(data, "m") or {}
    layer = document["probe"]["layers"][0]
    if fault == "less":
        del layer["outputs"]["f"]
    elif fault == "narrower":
        document["outputs"].append({**document["outputs"][0], "name": "v", "shape": ["time", "slot", 2]})
        layer["outputs"]["f"] = "v"
    else:
        layer["kind"], layer["outputs"], layer["states"] = "Mine", {}, {}
    model = onnx.load_from_string(data)
    del model.metadata_props[:]
    (tmp_path / "m.onnx").write_bytes(container.seal(model.SerializeToString(), document))
    with pytest.raises(ModelError, match=r"the probe's layer 'lstm\.0' is no (LSTM|Mine): that shows"):
        runnel_export.verify(tmp_path / "m.onnx")


# What cannot be, and files


@pytest.mark.parametrize(
    ("module", "options", "says"),
    [
        (
            nn.Linear(IN, 2),
            {},
            "nothing to show: no output depends on a recurrent layer over the stream's time",
        ),
        (Tagger(), {"quantize": "int8"}, "probe= does not go together with quantize="),
    ],
)
def test_what_has_no_probe(module: nn.Module, options: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=says):
        export(module, tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_more_outputs_than_a_model_may_have_are_told_before_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "MAX_STATES", 4)
    with pytest.raises(ExportError, match=r"that is \d+ outputs, of 4 that a model may have"):
        export(Tagger(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_another_kind_of_probe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="probe='weights': None or 'gates'"):
        runnel_export.export(Tagger(), torch.randn(1, 9, IN), tmp_path / "m.onnx", probe="weights")


def test_where_one_file_cannot_be_replaced_the_other_stays_as_it_was(tmp_path: Path) -> None:
    first, second = tmp_path / "m.probe.onnx", tmp_path / "m.onnx"
    second.mkdir()
    for before in (None, b"old"):
        pairs = [(tmp_path / ".1", first), (tmp_path / ".2", second)]
        for scratch, _ in pairs:
            scratch.write_bytes(b"new")
        if before:
            first.write_bytes(before)
        with pytest.raises(ExportError, match=r"m\.onnx: cannot be replaced"):
            exporter._rename(pairs)
        assert (first.read_bytes() if first.exists() else None) == before
    second.rmdir()
    (tmp_path / ".1").write_bytes(b"new")
    exporter._rename(pairs)
    assert (first.read_bytes(), second.read_bytes()) == (b"new", b"new")
