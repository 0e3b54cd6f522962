"""Step graphs: the exporter's beside what torch's own exporter makes of the same step."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch

from runnel.spec import Array

from . import loops
from .kit import LARGE, File, Kit
from .measure import Loop, paired
from .modules import Step, Tagger
from .report import Measured, Row, micros


def _graphs(which: str, free: bool, kit: Kit) -> Measured:
    file: File = getattr(kit, which)
    ticks = file.ticks()
    model = torch_step(file, kit.folder, free)
    ours = loops.hand_for(file.path, file.spec, ticks)
    theirs = _loop(file, model, ticks)
    loops.agree(ours, theirs)
    found = paired(ours, theirs, kit.effort)
    bound = paired(_bound(file), _bound_torch(file, model), kit.effort).ratio
    beside = [
        ("the exporter's", f"{micros(found.a)}, {len(onnx.load(file.path).graph.node)} nodes"),
        ("torch's", f"{micros(found.b)}, {len(model.graph.node)} nodes"),
        (
            "the graphs alone, inputs and outputs bound once: the ratio",
            f"{bound.median:.3f} ({bound.low:.3f}–{bound.high:.3f})",
        ),
    ]
    return Measured(found.ratio, beside, ours)


def torch_step(file: File, folder: Path, free: bool) -> onnx.ModelProto:
    """One tick of the file's module by `torch.onnx.export(dynamo=True)`, state in and out.

    `free`: for any number of sequences in a batch; else for the one of the example.
    """
    assert isinstance(file.module, Tagger)
    step = Step(file.module).eval()
    batch = 2 if free else 1  # of 1, torch takes a free axis for a fixed one
    state = {name: zeros.repeat(1, batch, 1) for name, zeros in step.initial().items()}
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic}, tuple({1: dynamic} for _ in state)) if free else None
    path = folder / f"{file.path.stem}.torch.onnx"
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells of packages that it does not need
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                step,
                (torch.zeros(batch, 1, file.features), *state.values()),
                dynamo=True,
                verbose=False,
                input_names=["x", *state],
                dynamic_shapes=shapes,
            )
            assert program is not None
            program.save(path, external_data=False)
    finally:
        logger.setLevel(level)
    return onnx.load(path)


def _bound(file: File) -> Loop:
    spec = file.spec
    [x], [y] = spec.inputs, spec.outputs
    given = {x.name: np.ones(x.sized(1, 1), np.float32), **loops.at_rest(spec, 1)}
    made = {y.name: np.zeros(y.sized(1, 1), np.float32)}
    made |= {s.output: np.zeros(s.sized(1), np.float32) for s in spec.states}
    return loops.bound(loops.session(file.path), given, made)


def _bound_torch(file: File, model: onnx.ModelProto) -> Loop:
    state = _initial(file)
    scores, *after = (o.name for o in model.graph.output)
    given = {"x": np.ones((1, 1, file.features), np.float32), **state}
    made = {scores: np.zeros((1, 1, file.spec.outputs[0].step_shape[0]), np.float32)}
    made |= {name: zeros.copy() for name, zeros in zip(after, state.values(), strict=True)}
    return loops.bound(loops.session(model.SerializeToString()), given, made)


def _initial(file: File) -> dict[str, Array]:
    assert isinstance(file.module, Tagger)
    return {name: zeros.numpy() for name, zeros in Step(file.module).initial().items()}


def _loop(file: File, model: onnx.ModelProto, ticks: list[Array]) -> Loop:
    running = loops.session(model.SerializeToString())
    return loops.hand(running, "x", [tick[None] for tick in ticks], _initial(file))


def _row(which: str, title: str, free: bool) -> Row:
    name, batch = ("", "batch free") if free else ("-frozen", "batch frozen at 1")
    return Row(
        f"graph-{which}{name}",
        f"the exporter's step graph ÷ `torch.onnx.export(dynamo=True)`'s, {batch}, same hand-written loop, "
        f"{title}",
        "The same weights: our file, whose batch and time are free, beside the module with its state as "
        f"argument and result, exported for one tick, {batch}. Each has its states in its own form: ours a "
        "tensor a layer, torch's stacked, so that the loop passes fewer.",
        partial(_graphs, which, free),
        0.85,
    )


ROWS = tuple(
    _row(which, title, free)
    for free in (True, False)
    for which, title in (("large", LARGE), ("gru", "GRU 80→128×2→29"))
)
