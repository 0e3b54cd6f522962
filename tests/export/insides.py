"""What is inside each recurrent layer, as plain loops in float64: from the formulas in the docstrings.

Nothing here knows of the exporter. A layer's weights are given as a dict without the layer's suffix; x is
(time, features). Each gives, by letter, (time, hidden) of everything that a probe is to show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from .nn.definitions import layer_norm, sigmoid

Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = Mapping[str, Array]
Shown = dict[str, Array]
Tick = Callable[[Weights, Array, Shown], Shown]  # of x and what was seen a tick ago: what is seen now


def weights(module: nn.Module, layer: int | str | None) -> dict[str, Array]:
    """Those of one layer; None: of a cell, whose names have no number."""
    suffix = "" if layer is None else f"_l{layer}"
    return {
        name.removesuffix(suffix): p.detach().double().numpy()
        for name, p in module.named_parameters()
        if name.endswith(suffix)
    }


def over(tick: Tick, w: Weights, x: Array, start: Shown) -> Shown:
    """The whole sequence."""
    seen = [start]
    for row in x:
        seen.append(tick(w, row, seen[-1]))
    return {letter: np.stack([s[letter] for s in seen[1:]]) for letter in seen[1]}


def _sums(w: Weights, x: Array, h: Array) -> list[Array]:
    """W x + b + R h + b', gate by gate."""
    total = w["weight_ih"] @ x + w["weight_hh"] @ h
    if "bias_ih" in w:
        total = total + w["bias_ih"] + w["bias_hh"]
    gates = len(total) // (w["weight_hh"].shape[0] // _gates(w))
    return np.split(total, gates)


def _gates(w: Weights) -> int:
    """How many gates the rows are of: told by the projection, or by R being square in each."""
    hidden = w["weight_hr"].shape[1] if "weight_hr" in w else w["weight_hh"].shape[1]
    return int(w["weight_hh"].shape[0] // hidden)


def lstm(w: Weights, x: Array, last: Shown) -> Shown:
    i, f, g, o = _sums(w, x, last["h"])
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * last["c"] + i * g
    h = o * np.tanh(c)
    return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": w["weight_hr"] @ h if "weight_hr" in w else h}


def peephole(w: Weights, x: Array, last: Shown) -> Shown:
    i, f, g, o = _sums(w, x, last["h"])
    p = w["weight_ch"]
    full = len(p) > 3
    p_i, p_f, p_o = np.split(p, 3) if full else [np.diag(row) for row in p]
    i, f, g = sigmoid(i + p_i @ last["c"]), sigmoid(f + p_f @ last["c"]), np.tanh(g)
    c = f * last["c"] + i * g
    o = sigmoid(o + p_o @ c)
    return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": o * np.tanh(c)}


def coupled(w: Weights, x: Array, last: Shown) -> Shown:
    f, g, o = _sums(w, x, last["h"])
    f, g, o = sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * last["c"] + (1 - f) * g
    return {"i": 1 - f, "f": f, "g": g, "o": o, "c": c, "h": o * np.tanh(c)}


def layer_normed(w: Weights, x: Array, last: Shown) -> Shown:
    total = layer_norm(w["weight_ih"] @ x, w["gain_ih"], w["shift_ih"])
    total = total + layer_norm(w["weight_hh"] @ last["h"], w["gain_hh"], w["shift_hh"])
    i, f, g, o = np.split(total, 4)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * last["c"] + i * g
    h = o * np.tanh(layer_norm(c, w["gain_c"], w["shift_c"]))
    return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h}


def gru(reset: str, update: str) -> Tick:
    def tick(w: Weights, x: Array, last: Shown) -> Shown:
        h, two = last["h"], 2 * len(last["h"])
        r, z, _ = _sums(w, x, h)
        r, z = sigmoid(r), sigmoid(z)
        b, inner = (w["bias_ih"][two:], w["bias_hh"][two:]) if "bias_ih" in w else (0.0, 0.0)
        u = w["weight_hh"][two:]
        seen = u @ (r * h) + inner if reset == "before" else r * (u @ h + inner)
        n = np.tanh(w["weight_ih"][two:] @ x + b + seen)
        return {
            "r": r,
            "z": z,
            "n": n,
            "h": (1 - z) * h + z * n if update == "takes" else z * h + (1 - z) * n,
        }

    return tick


def rnn(f: Callable[[Array], Array]) -> Tick:
    return lambda w, x, last: {"h": f(sum(_sums(w, x, last["h"])))}


def min_gru(w: Weights, x: Array, last: Shown) -> Shown:
    z, n = np.split(w["weight"] @ x + w["bias"], 2)
    z = sigmoid(z)
    return {"z": z, "n": n, "h": (1 - z) * last["h"] + z * n}
