"""Step graphs: the exporter's beside what torch's own exporter makes of the same step."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path

import onnx
import torch

from runnel.spec import Array

from . import loops
from .kit import File, Kit
from .measure import Loop, paired
from .modules import Step, Tagger
from .report import Measured, Row, micros


def _graphs(which: str, kit: Kit) -> Measured:
    file: File = getattr(kit, which)
    ticks = file.ticks()
    model = torch_step(file, kit.folder)
    ours = loops.hand_for(file.path, file.spec, ticks)
    theirs = _loop(file, model, ticks)
    loops.agree(ours, theirs)
    found = paired(ours, theirs, kit.effort)
    beside = [
        ("the exporter's", f"{micros(found.a)}, {len(onnx.load(file.path).graph.node)} nodes"),
        ("torch's", f"{micros(found.b)}, {len(model.graph.node)} nodes"),
    ]
    return Measured(found.ratio, beside, ours)


def torch_step(file: File, folder: Path) -> onnx.ModelProto:
    """One tick of the file's module by `torch.onnx.export(dynamo=True)`, state in and out."""
    assert isinstance(file.module, Tagger)
    step = Step(file.module).eval()
    state = step.initial()
    path = folder / f"{file.path.stem}.torch.onnx"
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells of packages that it does not need
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                step,
                (torch.zeros(1, 1, file.features), *state.values()),
                dynamo=True,
                verbose=False,
                input_names=["x", *state],
            )
            assert program is not None
            program.save(path, external_data=False)
    finally:
        logger.setLevel(level)
    return onnx.load(path)


def _loop(file: File, model: onnx.ModelProto, ticks: list[Array]) -> Loop:
    assert isinstance(file.module, Tagger)
    running = loops.session(model.SerializeToString())
    initial = {name: zeros.numpy() for name, zeros in Step(file.module).initial().items()}
    return loops.hand(running, "x", [tick[None] for tick in ticks], initial)


def _row(which: str, title: str) -> Row:
    return Row(
        f"graph-{which}",
        f"the exporter's step graph ÷ `torch.onnx.export(dynamo=True)`'s, same hand-written loop, {title}",
        "The same weights: our file beside the module with its state as argument and result, exported for "
        "one tick. Each has its states in its own form, ours a layer, torch's stacked.",
        partial(_graphs, which),
        0.85,
    )


ROWS = (_row("large", "LSTM 80→128×2→29"), _row("gru", "GRU 80→128×2→29"))
