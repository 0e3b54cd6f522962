"""Models with their probes beside them, written by hand: an LSTM written out, a tick a call.

i, f, o = sigmoid(x W + h R + b), g = tanh(...);  c' = f c + i g,  h' = o tanh c'
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import helper

from runnel.grouping import Framing
from runnel.loading import container
from runnel.probe import Probe, ProbeLayer, beside

from .models import Hand, state, tensor, write

LETTERS = ("i", "f", "o", "g", "c", "h")


def certified(hand: Hand) -> str:
    """The hash in a model's certificate."""
    document = container.document(hand.path.read_bytes(), "the model")
    assert document is not None
    return str(document["certificate"]["hash"])


def lstm(
    path: Path,
    weights: dict[str, np.ndarray] | None = None,
    features: int = 3,
    hidden: int = 4,
    outputs: int = 2,
    of: str | None = None,
    framing: Framing | None = None,
) -> tuple[Hand, Hand]:
    """The model, and its probe beside it: x (T, features) -> y (T, outputs), or a byte -> y with an "E".

    `weights`: W (features, 4 * hidden), R, b, V (hidden, outputs), v, gates in the order i, f, o, g.
    `of`: the hash of the model that the probe says it is of.
    """
    rng = np.random.default_rng(5)

    def some(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    held = weights or {
        "W": some(features, 4 * hidden), "R": some(hidden, 4 * hidden), "b": some(4 * hidden),
        "V": some(hidden, outputs), "v": some(outputs),
    }  # fmt: skip
    hidden = len(held["R"])
    embedded = "E" in held
    node = helper.make_node
    nodes = [node("Gather", ["E", "x"], ["e"])] if embedded else []
    nodes += [
        node("MatMul", ["e" if embedded else "x", "W"], ["xW"]),
        node("MatMul", ["h", "R"], ["hR"]),
        node("Add", ["xW", "hR"], ["xh"]),
        node("Add", ["xh", "b"], ["all"]),
        node("Split", ["all"], ["zi", "zf", "zo", "zg"], axis=1, num_outputs=4),
        *(node("Sigmoid", [f"z{k}"], [f"cell.{k}"]) for k in "ifo"),
        node("Tanh", ["zg"], ["cell.g"]),
        node("Mul", ["cell.f", "c"], ["kept"]),
        node("Mul", ["cell.i", "cell.g"], ["new"]),
        node("Add", ["kept", "new"], ["c.next"]),
        node("Tanh", ["c.next"], ["t"]),
        node("Mul", ["cell.o", "t"], ["h.next"]),
        node("MatMul", ["h.next", "V"], ["hV"]),
        node("Add", ["hV", "v"], ["y"]),
    ]
    x = tensor("x", ("slot",), "int64") if embedded else tensor("x", ("slot", len(held["W"])))
    states = [state("h", ("slot", hidden)), state("c", ("slot", hidden), 0.25)]
    ins, outs = [x], [tensor("y", ("slot", len(held["v"])))]
    model = write(path, nodes, held, ins, outs, states, any_ticks=False, framing=framing)
    shown = [tensor(f"cell.{k}", ("slot", hidden)) for k in LETTERS]
    nodes += [node("Identity", [f"{k}.next"], [f"cell.{k}"]) for k in "ch"]
    layer = ProbeLayer("cell", "LSTM", {k: f"cell.{k}" for k in LETTERS})
    probe = Probe(of or certified(model), (layer,))
    other = write(
        beside(path), nodes, held, ins, outs + shown, states, any_ticks=False, framing=framing, probe=probe
    )
    return model, other
