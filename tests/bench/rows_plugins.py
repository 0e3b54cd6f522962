"""What stages around a model cost: those that step all streams at once, beside the model by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runnel import Engine

from . import loops
from .kit import LARGE, Kit
from .measure import paired
from .report import Measured, Row, micros
from .rows_batch import STREAMS, TICKS, per_stream

_PIPELINE = """
[model]
path = "{model}"

[[before]]
use = "normalize"
mean = {mean}
std = {std}

[[after]]
use = "softmax"

[[after]]
use = "labels"
names = {names}
"""


def _around(kit: Kit) -> Measured:
    file = kit.large
    bare = file.load()
    classes = bare.pipeline.outputs.tensors[0].shape[0]
    path = Path(kit.folder) / "around.toml"
    rng = np.random.default_rng(3)
    mean, std = rng.standard_normal(file.features), rng.uniform(0.5, 2, file.features)
    path.write_text(
        _PIPELINE.format(
            model=file.path.name,
            mean=mean.round(3).tolist(),
            std=std.round(3).tolist(),
            names=[f"class {i}" for i in range(classes)],
        )
    )
    full = Engine.load(path)
    ticks = [tick.astype(np.float32) for tick in file.ticks(STREAMS, TICKS)]
    chunks = per_stream(ticks)
    ours, alone = loops.feed_many(full, chunks), loops.feed_many(bare, chunks)
    _agree(file.load(), Engine.load(path), chunks[0], mean.round(3), std.round(3))
    found = paired(ours, alone, kit.effort, a_steps=STREAMS, b_steps=STREAMS)
    beside = [("with the stages, a step", micros(found.a)), ("the model alone, a step", micros(found.b))]
    spent = {runner.label: 1e6 * runner.seconds / runner.calls for runner in full.pipeline.runners}
    beside += [(f"stage {label}, a step", f"{took:.2f} µs") for label, took in spent.items()]
    return Measured(found.ratio, beside, ours)


def _agree(bare: Engine, full: Engine, chunks, mean, std) -> None:  # type: ignore[no-untyped-def]
    """The stages do what they are named for: the labels are those of the normalised input's scores."""
    scaled = [((chunk - mean) / std).astype(np.float32) for chunk in chunks]
    scores = bare.feed_many([(bare.open(), chunk) for chunk in scaled])
    outs = full.feed_many([(full.open(), chunk) for chunk in chunks])
    for score, out in zip(scores, outs, strict=True):
        (label,) = (array for array in out.values() if array.dtype.kind == "i")
        if int(label[0]) != int(score.argmax()):
            raise RuntimeError("the pipeline and the model alone disagree on a label")


ROWS = (
    Row(
        "plugins",
        f"`feed_many`, {STREAMS} streams: normalize → model → softmax → labels ÷ the model alone, {LARGE}",
        "One tick of each stream: both take as many chunks and give as many outputs; one pipeline has the "
        "three stages around its model.",
        _around,
        1.5,
    ),
)
