"""The certificate's oracle against torch itself, and its reading of what forward takes and returns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import runnel_export
from runnel import Engine
from runnel.errors import ExportError
from runnel.spec import ModelSpec, ModelTensor
from runnel_export import exporter
from runnel_export.call import Call, results
from runnel_export.certify.reference import Original
from runnel_export.lift.lift import lift

from ..zoo import ZOO, Explicit, LSTMStep

ONE, TWO, THREE = (torch.full((1, 2), float(i)) for i in (1, 2, 3))


def names(returned: object, **options: object) -> tuple[dict[str, float], dict[str, float]]:
    call = Call(1, 0, 1, **options)  # type: ignore[arg-type]
    outputs, states = results(returned, call)
    return tuple({n: float(v[0, 0]) for n, v in part.items()} for part in (outputs, states))  # type: ignore[return-value]


def test_outputs_are_named_by_key_or_by_place() -> None:
    assert names(ONE)[0] == {"y": 1}
    assert names((ONE, TWO))[0] == {"y0": 1, "y1": 2}
    assert names((ONE, (TWO, THREE)))[0] == {"y0": 1, "y1.0": 2, "y1.1": 3}
    assert names({"a": ONE, "b": (TWO, THREE)})[0] == {"a": 1, "b.0": 2, "b.1": 3}
    assert names((ONE, None, 4))[0] == {"y": 1}  # only tensors are results
    assert names((ONE, TWO), output_names=["p", "q"])[0] == {"p": 1, "q": 2}


def test_states_are_found_by_place_or_by_name() -> None:
    state = {"h": ONE, "c": ONE}
    assert names((ONE, TWO, THREE), state=state) == ({"y": 1}, {"h": 2, "c": 3})
    assert names((ONE, (TWO, THREE)), state={"hx": (ONE, ONE)}) == ({"y": 1}, {"hx.0": 2, "hx.1": 3})
    assert names({"c": TWO, "y": ONE, "h": THREE}, state=state) == ({"y": 1}, {"c": 2, "h": 3})


@pytest.mark.parametrize("returned", [ONE, {"y": ONE, "h": TWO}])
def test_a_state_that_is_not_returned_is_missed(returned: object) -> None:
    with pytest.raises(ExportError, match="each next state"):
        names(returned, state={"h": ONE, "c": ONE})


def test_a_tuple_of_states_is_given_as_a_tuple() -> None:
    h, c = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    call = Call(1, 0, 3, {"hx": (h, c)})
    assert {n: v.shape for n, v in call.initial().items()} == {"hx.0": (2, 1, 4), "hx.1": (2, 1, 4)}
    given = call.arguments({"hx.0": h, "hx.1": c})
    assert torch.equal(given["hx"][0], h)
    assert torch.equal(given["hx"][1], c)
    # torch.export wires one tensor given twice as one input.
    twice = Call(1, 0, 3, {"h": h, "c": h})
    given = twice.arguments(twice.initial())
    assert given["h"].data_ptr() != given["c"].data_ptr()


@pytest.mark.parametrize("name", ZOO)
def test_the_oracle_is_the_plain_loop(name: str) -> None:
    """What the certificate compares with is what a loop in torch gives, written independently."""
    case = ZOO[name]
    spec = replace(lift(case.module(), case.example, **_liftable(case.options)).spec, framing=case.framing)
    options = case.options
    axis = options.get("time_axis", 1)
    batch = next(iter(case.example.values())).shape[1 if axis == 0 else 0]
    call = Call(axis, 1 if axis == 0 else 0, batch, options.get("state", {}))
    chunk = case.chunk(12, seed=2)
    run = Original(case.module(), spec, call).run(chunk)
    for output, expected in case.reference(chunk).items():
        np.testing.assert_allclose(run.outputs[output], expected, rtol=0, atol=1e-12)


def _liftable(options) -> dict:
    return {k: v for k, v in options.items() if k not in ("framing", "rate")}


def test_batch_and_prefix_of_a_module_of_one_step_are_its_own() -> None:
    call = Call(None, 0, 1, {"h": torch.zeros(1, 6), "c": torch.zeros(1, 6)})
    lifted = lift(LSTMStep(), torch.zeros(1, 4), time_axis=None, state=dict(call.state))
    chunks = [{"x": np.random.default_rng(i).normal(size=(5, 4)).astype(np.float32)} for i in range(3)]
    found = list(Original(LSTMStep(), lifted.spec, call).rows(chunks))
    assert [name for name, _, _ in found] == ["y"] * 3
    for _, row, alone in found:
        np.testing.assert_allclose(row, alone, atol=1e-12)


def test_an_output_of_another_length_is_refused() -> None:
    class Every(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, ::2]

    spec = ModelSpec(
        (ModelTensor("x", "float32", ("time", "slot", 4)),),
        (ModelTensor("y", "float32", ("time", "slot", 4)),),
        (),
    )
    with pytest.raises(ExportError, match="as long as the input"):
        Original(Every(), spec, Call(1, 0, 1))


# Explicit state, through the whole export


def test_explicit_states_wired_to_each_other_are_refused(tmp_path: Path, monkeypatch) -> None:
    """Zero states hide a swap; the certificate starts from others."""
    case = ZOO["explicit"]
    right = lift(case.module(), case.example, **case.options)

    def swapped(*_: object, **__: object):
        states = right.spec.states
        other = {"h": "c", "c": "h"}
        wired = tuple(replace(s, output=f"{other[s.input[0]]}{s.input[1:]}.next") for s in states)
        return replace(right, spec=replace(right.spec, states=wired))

    monkeypatch.setattr(exporter, "lift", swapped)
    with pytest.raises(ExportError, match="FAIL  started"):
        runnel_export.export(case.module(), dict(case.example), tmp_path / "m.onnx", **case.options)
    assert list(tmp_path.iterdir()) == []


def test_a_given_initial_state_is_where_a_stream_begins(tmp_path: Path) -> None:
    h0, c0 = torch.randn(2, 1, 6), torch.randn(2, 1, 6)
    module = Explicit().eval()
    x = torch.randn(1, 9, 4)
    runnel_export.export(module, x, tmp_path / "m.onnx", state={"h": h0, "c": c0})
    with Engine.load(tmp_path / "m.onnx") as engine, torch.no_grad():
        got = engine.open().feed(x[0].numpy())
        np.testing.assert_allclose(got, module(x, h0, c0)[0][0].numpy(), atol=1e-6)


def test_a_tuple_state_of_torchs_own_layer(tmp_path: Path) -> None:
    start = (torch.randn(2, 1, 6), torch.randn(2, 1, 6))
    layer, x = nn.LSTM(4, 6, 2, batch_first=True), torch.randn(1, 9, 4)
    certificate = runnel_export.export(layer, x, tmp_path / "m.onnx", state={"hx": start})
    assert set(certificate.alive) == {"hx.0.0", "hx.0.1", "hx.1.0", "hx.1.1"}
    with Engine.load(tmp_path / "m.onnx") as engine, torch.no_grad():
        got = engine.open().feed(x[0].numpy())
        np.testing.assert_allclose(got, layer(x, start)[0][0].numpy(), atol=1e-6)


def test_a_state_that_nothing_depends_on_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    class Idle(Explicit):
        def forward(self, x: Tensor, h: Tensor, c: Tensor, idle: Tensor) -> tuple[Tensor, ...]:
            return (*super().forward(x, h, c), idle)

    state = {"h": torch.zeros(2, 1, 6), "c": torch.zeros(2, 1, 6), "idle": torch.zeros(1, 3)}
    certificate = runnel_export.export(Idle(), torch.randn(1, 9, 4), tmp_path / "m.onnx", state=state)
    assert any("idle" in note for note in certificate.notes)
    assert not any("idle" in name for name in certificate.alive)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_weights_that_a_hook_computes(tmp_path: Path) -> None:
    """The older weight_norm keeps a computed tensor, which a module with it cannot be copied with."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.utils.weight_norm(nn.Conv1d(4, 6, 3, padding=2))
            self.gru = nn.GRU(6, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.gru(self.conv(x.transpose(1, 2))[..., :-2].transpose(1, 2))[0]

    module = Normed()
    module(torch.randn(1, 9, 4))
    certificate = runnel_export.export(module, torch.randn(1, 9, 4), tmp_path / "m.onnx")
    assert certificate.reference == "float64"
    assert certificate.error < 1e-5
