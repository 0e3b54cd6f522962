"""What a certificate must not be given for: each module here is right on some data and wrong on other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn

import runnel_export
from runnel.errors import ExportError, NotStreamableError
from runnel.spec import ModelSpec, ModelState, ModelTensor, initial_row
from runnel_export import exporter
from runnel_export.lift.lift import Lifted
from runnel_export.lift.lift import lift as really_lift

Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """A GRU that remembers for long, and a Linear: what forward does with them is given."""

    def __init__(self, run: Forward, bias: tuple[float, float] = (0.0, 0.0)) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.run = run
        self.gru = nn.GRU(3, 8, batch_first=True)
        self.fc = nn.Linear(8, 2)
        with torch.no_grad():
            self.gru.bias_ih_l0[8:16] += 5.0  # the gate that keeps the state
            self.fc.bias += torch.tensor(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)

    def plain(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(x)[0])


def example(ticks: int = 30) -> Tensor:
    return torch.randn(2, ticks, 3, generator=torch.Generator().manual_seed(1))


def export(module: nn.Module, folder: Path, x: Tensor | None = None, **options: object):
    return runnel_export.export(
        module, example() if x is None else x, folder / "m.onnx", **options  # type: ignore[arg-type]
    )  # fmt: skip


# Length


def in_blocks(net: Net, x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], x.shape[1], 2)
    for k in range(0, x.shape[1], 100):
        out[:, k : k + 100] = net.plain(x[:, k : k + 100])
    return out


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x: net.plain(x[:, :64])[:, -1],
        lambda net, x: net.fc(net.gru(x[:, -64:])[1][-1]),
        lambda net, x: net.plain(x[:, :512] if x.shape[1] > 512 else x)[:, -1],
        in_blocks,
    ],
    ids=["first 64", "last 64", "first 512", "blocks of 100"],
)
def test_what_depends_on_the_distant_past_or_its_absence_is_refused(run: Forward, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="On short sequences the two are equal") as caught:
        export(Net(run), tmp_path)
    assert "FAIL  long         one sequence of" in str(caught.value)
    assert "stepped" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_another_answer_to_a_longer_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotStreamableError, match="sequence's length"):
        export(Net(lambda net, x: net.plain(x) * (1 if x.shape[1] <= 100 else 2)), tmp_path)


def test_given_data_is_tried_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runnel_export.certify.reference_runs.LONG", 1)  # so that nothing else finds it
    monkeypatch.setattr("runnel_export.certify.reference_runs.LONG_IF_SLOW", 1)
    module = Net(lambda net, x: net.fc(net.gru(x[:, -64:])[1][-1]))
    assert export(module, tmp_path).passed
    with pytest.raises(ExportError, match="FAIL  given"):
        export(module, tmp_path, data=example(400))


def test_the_long_sequence_is_in_the_certificate_and_verify_repeats_it(tmp_path: Path) -> None:
    certificate = export(Net(Net.plain), tmp_path)
    (long,) = [c for c in certificate.checks if c.name == "long"]
    assert certificate.long > 520
    assert str(certificate.long) in long.about
    assert 0 < long.errors["y"].relative < 1e-5
    again = runnel_export.verify(tmp_path / "m.onnx")
    assert again.long == certificate.long
    assert "long" in {c.name for c in again.checks}


def test_what_grows_without_bound_is_compared_as_far_as_its_own_float32_goes(tmp_path: Path) -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 3, batch_first=True, nonlinearity="relu", bias=False)
            nn.init.constant_(self.rnn.weight_hh_l0, 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    certificate = export(Growing(), tmp_path)
    assert any("own float32 is not its float64" in n for n in certificate.notes)
    assert 40 <= certificate.long < 520


# One element behind another


@pytest.mark.parametrize("huge", ["masked", "loud"])
def test_a_small_channel_is_not_hidden_by_a_huge_one(
    huge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beside(net: Net, x: Tensor) -> Tensor:
        y = net.plain(x)
        other = torch.full_like(y, -1e9) if huge == "masked" else x[..., :1] * 1e4
        return torch.cat([y, other[..., :1]], -1)

    def off(*args: object, **options: object) -> Lifted:
        """The small channel's bias is a hundredth off."""
        wrong = Net(beside, bias=(0.0, 0.01))
        return really_lift(wrong, *args[1:], **options)  # type: ignore[arg-type]

    module = Net(beside)
    assert export(module, tmp_path).error < 1e-5
    monkeypatch.setattr(exporter, "lift", off)
    with pytest.raises(ExportError, match="FAIL  stepped"):
        export(module, tmp_path)


# Outputs that do not move


def detector(kind: str) -> Forward:
    def run(net: Net, x: Tensor) -> Tensor:
        y = net.plain(x)
        if kind == "relu":
            return torch.relu(y)
        return y.argmax(-1) if kind == "argmax" else torch.sigmoid(y * 100) > 2

    return run


@pytest.mark.parametrize(
    ("kind", "bias"), [("relu", (-9.0, -9.0)), ("argmax", (9.0, 0.0)), ("never", (0, 0))]
)
def test_a_detector_that_heard_nothing_is_exported_and_says_so(
    kind: str, bias: tuple[float, float], tmp_path: Path
) -> None:
    certificate = export(Net(detector(kind), bias), tmp_path)
    assert any("constant on all the data" in note for note in certificate.notes)
    (alive,) = [c for c in certificate.checks if c.name == "alive"]
    assert "was not seen" in alive.about
    assert certificate.alive == ()
    assert runnel_export.verify(tmp_path / "m.onnx").passed


def test_given_data_that_the_detector_hears_shows_its_state_alive(tmp_path: Path) -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return torch.relu(net.plain(x) - 0.4)

    quiet = example() * 0.01
    assert export(Net(run), tmp_path, quiet).alive == ()
    loud = torch.full((2, 300, 3), -3.0) * torch.tensor([[[1.0, -1.0, 1.0]], [[-1.0, 1.0, -1.0]]])
    certificate = export(Net(run), tmp_path, quiet, data=loud)
    assert certificate.alive
    assert certificate.notes == ()


def test_a_state_that_never_changes_is_refused_where_outputs_are_constant_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ModelState("h", "h.next", "float32", ("slot", 2), initial_row(0, (2,), "float32", "h"))
    spec = ModelSpec(
        (ModelTensor("x", "float32", ("time", "slot", 3)),),
        (ModelTensor("y", "float32", ("time", "slot", 3)),),
        (state,),
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Sub", ["x", "x"], ["y"]), helper.make_node("Identity", ["h"], ["h.next"])],
        "g",
        [value("x", TensorProto.FLOAT, ["time", "slot", 3]), value("h", TensorProto.FLOAT, ["slot", 2])],
        [value("y", TensorProto.FLOAT, ["time", "slot", 3]), value("h.next", TensorProto.FLOAT, ["slot", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    monkeypatch.setattr(exporter, "lift", lambda *_, **__: Lifted(model, spec, ()))
    with pytest.raises(ExportError, match="keeps its initial value"):
        export(Net(lambda _, x: x - x), tmp_path)


# The user's own faults, in words


def test_state_that_the_module_keeps_in_itself_is_named(tmp_path: Path) -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.h = nn.GRU(3, 8, batch_first=True), None

        def forward(self, x: Tensor) -> Tensor:
            y, self.h = self.gru(x, self.h)
            return y

    with pytest.raises(ExportError, match="state that it keeps in itself"):
        export(Keeping(), tmp_path)


@pytest.mark.parametrize(
    ("picky", "shape"),
    [
        (lambda x: {2: 1, 3: 1}[x.shape[0]], r"x: float32 \(1, 7, 3\): KeyError: 1"),
        (lambda x: 1 / (x.shape[1] - 40), r"x: float64 \(1, 40, 3\): ZeroDivisionError"),
        (lambda x: [1][x.shape[0] - 1], r"x: float64 \(3, 6, 3\): IndexError"),
    ],
    ids=["batch of one", "a length", "batch of three"],
)
def test_a_forward_that_fails_on_other_shapes_is_named_with_them(
    picky: Callable[[Tensor], float], shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = really_lift(Net(Net.plain), example())
    monkeypatch.setattr(exporter, "lift", lambda *_, **__: right)
    module = Net(lambda net, x: net.plain(x) + 0 * picky(x))
    with pytest.raises(ExportError, match=r"Net\.forward fails on " + shape):
        export(module, tmp_path)


# States of other forms


def test_a_state_of_one_number_a_stream(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = 0.9 * h + 0.1 * x
            return h * 2, h

    certificate = export(Mean(), tmp_path, torch.randn(2), time_axis=None, state={"h": torch.zeros(2)})
    assert certificate.alive == ("h",)
    assert "started" in {c.name for c in certificate.checks}


class Late(nn.Module):
    """A delay of 100 ticks, and then a layer that gives nothing before it hears something."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.rnn = nn.RNN(3, 4, batch_first=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(F.pad(x, (0, 0, 100, 0))[:, :-100])[0]


class Bare(nn.Module):
    """A causal convolution by function, over (batch, channels, time), with a long kernel's far end alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3, 80))
        with torch.no_grad():
            self.weight[..., 0] = torch.randn(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.pad(x, (79, 0)), self.weight)


def test_a_state_that_comes_out_late_is_alive(tmp_path: Path) -> None:
    assert len(export(Late(), tmp_path).alive) == 2
    certificate = export(Bare(), tmp_path, example().transpose(1, 2), time_axis=2)
    assert len(certificate.alive) == 1
    assert certificate.ticks == 79 + 40  # what it remembers, not how many channels it has
