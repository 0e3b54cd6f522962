"""The zoo's own step models, each broken in one place: a certificate must refuse every one."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from torch import nn

import runnel_export
from runnel.errors import ExportError
from runnel_export import exporter
from runnel_export.lift.lift import Lifted
from runnel_export.lift.lift import lift as really_lift

from ..zoo import ZOO

FAULTS = ["frozen", "initial", "weight"]


def frozen(lifted: Lifted, rng: np.random.Generator) -> Lifted:
    """One state is given back as it came."""
    state = lifted.spec.states[rng.integers(len(lifted.spec.states))]
    model = onnx.ModelProto()
    model.CopyFrom(lifted.model)
    for node in model.graph.node:
        for names in (node.output, node.input):
            for i, name in enumerate(names):
                if name == state.output:
                    names[i] = "cut.off"
    model.graph.node.append(helper.make_node("Identity", [state.input], [state.output]))
    return replace(lifted, model=model)


def initial(lifted: Lifted, rng: np.random.Generator) -> Lifted:
    """One state begins elsewhere."""
    at = int(rng.integers(len(lifted.spec.states)))
    states = list(lifted.spec.states)
    states[at] = replace(states[at], initial=states[at].initial + np.float32(0.3))
    return replace(lifted, spec=replace(lifted.spec, states=tuple(states)))


def weight(lifted: Lifted, rng: np.random.Generator) -> Lifted:
    """One stored tensor is two per cent larger."""
    model = onnx.ModelProto()
    model.CopyFrom(lifted.model)
    floats = [
        t for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and np.abs(numpy_helper.to_array(t)).max(initial=0) > 0
    ]  # fmt: skip
    chosen = floats[rng.integers(len(floats))]
    chosen.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(chosen) * np.float32(1.02), chosen.name))
    return replace(lifted, model=model)


@functools.lru_cache(maxsize=2)
def made(name: str) -> tuple[nn.Module, list[Lifted]]:
    """A case's module, and what the exporter makes of it, once that is known: the same for all its faults."""
    return ZOO[name].module(), []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ZOO)
def test_a_zoo_model_with_one_fault_is_refused(name: str, fault: str, tmp_path: Path, monkeypatch) -> None:
    case, (module, known) = ZOO[name], made(name)
    rng = np.random.default_rng([FAULTS.index(fault), *name.encode()])
    breaks = {"frozen": frozen, "initial": initial, "weight": weight}[fault]

    def lift(*args: object, **given: object) -> Lifted:
        if not known:
            known.append(really_lift(*args, **given))
        return breaks(known[0], rng)

    monkeypatch.setattr(exporter, "lift", lift)
    with pytest.raises(ExportError, match="FAIL"):
        runnel_export.export(module, dict(case.example), tmp_path / "m.onnx", **case.options)
    assert list(tmp_path.iterdir()) == []
