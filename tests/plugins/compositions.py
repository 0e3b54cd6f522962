"""Random pipelines of the stages that come with Runnel, each fitting the one before it, as files.

`a_pipeline` draws an input, 1 to 5 stages with options that are valid there, and perhaps a small model;
`a_loop` and `a_generator` draw one whose output is fed back. The result is the text of a TOML file, so that
the tests cover what users have: reader, options, stage runners, engine.

The draws are those of a seeded generator: hypothesis, which tends to vary its earlier draws, gave 30
pipelines in 120 examples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from runnel.grouping import Framing
from runnel.spec import Signal, TensorSpec
from tests import models
from tests.plugins.stage_options import MAX_NUMBERS, STAGES, Flow, Options, floats, put, single

RATE = 14_400.0  # 2^6 * 3^2 * 5^2: halves, thirds and fifths of it are integers
TEXT = "ab cé\n"


# Models, by input


def a_model(flow: Flow, folder: Path) -> Options | None:
    """Return the table of a small model for the flow, which continues with its output."""
    fit = flow.tensors(lambda t: single(t) and (t.shape == () or (len(t.shape) == 1 and t.shape[0] <= 8)))
    if not fit or flow.nan:
        return None
    taken = flow.one(*fit)
    kinds = ["lstm"] if taken.shape else ["accumulator", "framed"]
    kind = flow.one(*kinds, *(["stateless"] if taken.shape == (2,) else []))
    path = folder / f"{kind}-{taken.shape[0] if taken.shape else 0}.onnx"
    if not path.exists():
        if kind == "lstm":
            models.lstm(path, features=taken.shape[0], outputs=3)
        else:
            {"accumulator": models.accumulator, "stateless": models.stateless, "framed": framed}[kind](path)
    shape = {"lstm": (3,), "framed": (2,)}.get(kind, taken.shape)
    rate = flow.signal.rate
    if kind == "framed" and rate:
        rate /= FRAMING.hop
    flow.loose = flow.loose or kind in ("lstm", "framed", "stateless")
    flow.signal, flow.bounded = Signal((TensorSpec("y", "float32", shape),), rate), ""
    return {"path": path.name, "inputs": {"x": taken.name}}


FRAMING = Framing(window=4, hop=3)


def framed(path: Path) -> models.Hand:
    """A model that sees a window: two weighted sums of its four samples."""
    weights = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    nodes = [models.helper.make_node("MatMul", ["x", "W"], ["y"])]
    x, y = models.tensor("x", ("slot", 4)), models.tensor("y", ("slot", 2))
    return models.write(path, nodes, {"W": weights}, [x], [y], [], any_ticks=False, framing=FRAMING)


# Inputs

INPUTS = {
    "sound": Signal((TensorSpec("x", "float32"),), RATE),
    "stereo": Signal((TensorSpec("x", "float32", (2,)),), RATE),
    "pcm": Signal((TensorSpec("x", "int16"),), RATE),
    "sensors": Signal((TensorSpec("x", "float32", (3,)),), 10.0),
    "scores": Signal((TensorSpec("x", "float32", (5,)),)),
    "doubles": Signal((TensorSpec("x", "float64", (2,)), TensorSpec("n", "int32"))),
    "halves": Signal((TensorSpec("x", "float16", (2, 2)),)),
    "two": Signal((TensorSpec("a", "float32", (2,)), TensorSpec("b", "float32", (2,)))),
    "stamped": Signal((TensorSpec("time", "float64"), TensorSpec("v", "float32", (2,)))),
    "counts": Signal((TensorSpec("time", "float64"), TensorSpec("v", "int64"))),
    "text": Signal((TensorSpec("text", "uint8"),)),
    "noted": Signal((TensorSpec("text", "uint8"), TensorSpec("v", "float32"))),
}


@dataclass(frozen=True)
class Drawn:
    """A pipeline file, and the data for it."""

    text: str
    inputs: Signal
    gaps: bool  # NaN among the data

    def data(self, steps: int, seed: int) -> dict[str, np.ndarray]:
        """Return a chunk of `steps` time steps."""
        rng = np.random.default_rng(seed)
        made: dict[str, np.ndarray] = {}
        for t in self.inputs.tensors:
            shape = (steps, *t.shape)
            if t.name == "time":
                made[t.name] = 5 + np.cumsum(rng.choice([0, 0.25, 0.5, 1, 2.3], steps))
            elif t.dtype == "uint8":
                data = "".join(rng.choice(list(TEXT), steps)).encode()[:steps]
                made[t.name] = np.frombuffer(data, np.uint8).copy()
            elif t.name == "token":
                made[t.name] = rng.integers(0, 5, shape)
            elif floats(t):
                made[t.name] = rng.standard_normal(shape).astype(t.dtype)
                if self.gaps:
                    made[t.name][rng.random(shape) < 0.3] = np.nan
            else:
                made[t.name] = rng.integers(0, 3, shape).astype(t.dtype)
        return made


def toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def table(name: str, part: Mapping[str, Any]) -> str:
    return "\n".join([name, *(f"{key} = {toml(value)}" for key, value in part.items()), ""])


def input_table(signal: Signal) -> str:
    tensors = {t.name: {"dtype": t.dtype, "shape": list(t.shape)} for t in signal.tensors}
    return table("[input]", {"tensors": tensors, **({"rate": signal.rate} if signal.rate else {})})


# Stages that fit in few places, with the weight of each: otherwise they would hardly ever be drawn.
RARE = {
    "tick": 30, "tokens": 20, "one_hot": 20, "log_mel": 8, "mfcc": 8, "resample": 6, "sample": 6,
    "forecast_error": 5, "speech_segments": 8, "ctc_greedy": 3, "labels": 4, "threshold": 3, "iir": 2,
    "softmax": 2, "smooth": 2, "impute": 2,
}  # fmt: skip


def a_stage(flow: Flow) -> str | None:
    """Add one of the stages that fit; return its entry, or None if the flow is too wide for any."""
    left = {use: RARE.get(use, 1) for use in STAGES}
    while left:
        (use,) = flow.random.choices(list(left), list(left.values()))
        options = STAGES[use](flow)
        if options is None:
            del left[use]
            continue
        put(flow, use, options)
        return table("[[KEY]]", {"use": use, **options})
    return None


def a_pipeline(random: Random, folder: Path) -> Drawn:
    """One to five stages that fit each other, and perhaps a model somewhere among them."""
    flow = Flow(random, Signal(()))
    inputs = flow.signal = INPUTS[flow.one(*INPUTS)]
    gaps = bool(flow.tensors(floats)) and "time" not in inputs.names and flow.one(0, 1, 2, 3) == 0
    flow.nan = gaps
    count = flow.random.randint(1, 5)
    model_at = flow.random.randint(0, count) if flow.maybe() else None
    in_row = flow.maybe()  # the model as one of the stages, and not as [model]
    parts, key = [input_table(inputs)], "before"
    for i in range(count + 1):
        arrives = flow.signal
        if i == model_at and (model := a_model(flow, folder)) is not None:
            if i == 0:  # then no other array can arrive
                (taken,) = model["inputs"].values()
                inputs = Signal(tuple(t for t in arrives.tensors if t.name == taken), arrives.rate)
                parts = [input_table(inputs)] if in_row else []  # [model] defines the input itself
            if in_row:
                parts.append(table("[[KEY]]", {"use": "model", **model}))
            else:
                parts = [part.replace("KEY", key) for part in [*parts, table("[model]", model)]]
                key, flow.signal = "after", flow.signal if i else Signal(flow.signal.tensors)
        if i == count or flow.width > MAX_NUMBERS or (part := a_stage(flow)) is None:
            break
        parts.append(part)
    written = "\n".join(part.replace("KEY", key) for part in parts)
    return Drawn(written, inputs, gaps)


# Feedback

LOOP = Signal((TensorSpec("x", "float32", (3,)), TensorSpec("u", "float32", (3,))), 10.0)
STEADY: tuple[tuple[str, Options], ...] = (  # none of these makes a number grow from turn to turn
    ("gain", {"factor": -0.5}),
    ("smooth", {"weight": 0.25}),
    ("smooth", {"median": 1}),
    ("iir", {"sections": [[0.25, 0.25, 0, 1, -0.25, 0.125]]}),
    ("normalize", {"running": True, "eps": 0.5}),
    ("softmax", {"of": "u"}),
    ("difference", {"of": "x", "lag": 2}),
    ("pre_emphasis", {"coefficient": 0.125}),
    ("impute", {"method": "hold"}),
    ("anomaly", {"of": "x", "warm_up": 2, "floor": 0.1}),
)


def a_loop(random: Random, folder: Path) -> Drawn:
    """Stages with one output time step for each input; the last one's output of `u` is fed back to `u`."""
    flow = Flow(random, LOOP)
    chosen = [flow.one(*STEADY) for _ in range(flow.random.randint(1, 4))]
    parts = [input_table(LOOP)]
    for use, options in chosen:
        if "z" in flow.signal.names and use == "anomaly":
            continue
        put(flow, use, options)
        parts.append(table("[[before]]", {"use": use, **options}))
    parts.append(table("[feedback]", {"u": {"output": "u", "initial": flow.one(0, 0.5)}}))
    return Drawn("\n".join(parts), Signal(LOOP.tensors[:1], LOOP.rate), False)


def a_generator(random: Random, folder: Path) -> Drawn:
    """A small language model: its token is its next input."""
    path = folder / "generator.onnx"
    if not path.exists():
        models.lstm(path, features=5, outputs=5)
    heat, top_k, top_p = random.choice((0.5, 4)), random.randint(0, 5), random.choice((0.5, 1))
    inputs = Signal((TensorSpec("token", "int64"),))
    parts = [
        input_table(inputs),
        table("[[before]]", {"use": "one_hot", "size": 5}),
        table("[model]", {"path": path.name, "inputs": {"x": "token"}}),
        table("[[after]]", {"use": "softmax", "temperature": heat, "log": True}),
        table("[[after]]", {"use": "sample", "top_k": top_k, "top_p": top_p}),
        table("[feedback]", {"token": {"output": "token", "initial": 1}}),
    ]
    return Drawn("\n".join(parts), inputs, False)
