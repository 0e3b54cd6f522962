"""States with two axes of the batch's size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import runnel_export
from runnel import Engine
from runnel_export.call import Call
from runnel_export.lift.batch_axis import told_apart


class Ema(nn.Module):
    """The batch is the state's first axis, though it has three."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = 0.9 * h + 0.1 * x
        return h * 2, h


@pytest.mark.parametrize(("batch", "width"), [(1, 4), (4, 4), (1, 1), (2, 4)])
def test_the_axis_that_works_is_the_batch(batch: int, width: int, tmp_path: Path) -> None:
    example, state = torch.randn(batch, width, 5), {"h": torch.zeros(batch, width, 5)}
    runnel_export.export(Ema(), example, tmp_path / "m.onnx", time_axis=None, state=state)
    with Engine.load(tmp_path / "m.onnx") as engine:
        assert engine.pipeline.model is not None
        (h,) = engine.pipeline.model.states
        assert h.row_shape == (width, 5)


def test_the_usual_axis_is_left_alone() -> None:
    module = nn.GRU(3, 4, batch_first=True)
    inputs, h = {"input": torch.randn(1, 7, 3)}, torch.zeros(1, 1, 4)
    found, state = told_apart(module, inputs, Call(1, 0, 1, {"hx": h}))
    assert found["input"] is inputs["input"]
    assert state["hx"] is h
