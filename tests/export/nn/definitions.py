"""The cells' formulas as plain loops over numbers: written from the papers, of one sequence, in float64.

Nothing here knows of the modules but their parameters' names. A layer's weights are given as a dict without
the layer's suffix; x is (time, features), a state (hidden,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = Mapping[str, Array]
Cell = Callable[[Weights, Array, tuple[Array, ...]], tuple[Array, ...]]


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def layer_norm(v: Array, gain: Array, shift: Array, eps: float = 1e-5) -> Array:
    mean = sum(v) / len(v)
    variance = sum((v - mean) ** 2) / len(v)
    return gain * (v - mean) / np.sqrt(variance + eps) + shift


def gate(w: Weights, number: int, gates: int, x: Array, h: Array) -> Array:
    """W x + b + R h + b' of one gate."""
    size = len(h)
    rows = slice(number * size, (number + 1) * size)
    total = w["weight_ih"][rows] @ x + w["weight_hh"][rows] @ h
    assert len(w["weight_ih"]) == gates * size
    if "bias_ih" in w:
        total = total + w["bias_ih"][rows] + w["bias_hh"][rows]
    return total


def peephole(w: Weights, x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    """Each gate sees its own cell, o the new one (Gers & Schmidhuber 2000)."""
    h, c = state
    p_i, p_f, p_o = w["weight_ch"]
    i = sigmoid(gate(w, 0, 4, x, h) + p_i * c)
    f = sigmoid(gate(w, 1, 4, x, h) + p_f * c)
    new = f * c + i * np.tanh(gate(w, 2, 4, x, h))
    o = sigmoid(gate(w, 3, 4, x, h) + p_o * new)
    return o * np.tanh(new), new


def full_peephole(w: Weights, x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    """f = sigma(W_f . [C, h, x] + b_f): one product of a matrix and what is laid end to end (Olah 2015)."""
    h, c = state
    size = len(h)

    def row(number: int, seen: int, cell: Array) -> Array:
        mine = slice(number * size, (number + 1) * size)
        matrix = np.concatenate(
            [w["weight_ch"][seen * size : (seen + 1) * size], w["weight_hh"][mine], w["weight_ih"][mine]], 1
        )
        bias = w["bias_ih"][mine] + w["bias_hh"][mine] if "bias_ih" in w else 0.0
        out: Array = matrix @ np.concatenate([cell, h, x]) + bias
        return out

    i, f = sigmoid(row(0, 0, c)), sigmoid(row(1, 1, c))
    new = f * c + i * np.tanh(gate(w, 2, 4, x, h))
    return sigmoid(row(3, 2, new)) * np.tanh(new), new


def coupled(w: Weights, x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    """i = 1 - f (Greff et al. 2017)."""
    h, c = state
    f = sigmoid(gate(w, 0, 3, x, h))
    new = f * c + (1 - f) * np.tanh(gate(w, 1, 3, x, h))
    return sigmoid(gate(w, 2, 3, x, h)) * np.tanh(new), new


def layer_normed(w: Weights, x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    """Ba, Kiros & Hinton 2016: of the input's part, of the state's part, and of the cell."""
    h, c = state
    size = len(h)
    a = layer_norm(w["weight_ih"] @ x, w["gain_ih"], w["shift_ih"])
    a = a + layer_norm(w["weight_hh"] @ h, w["gain_hh"], w["shift_hh"])
    i, f, g, o = (a[k * size : (k + 1) * size] for k in range(4))
    new = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(layer_norm(new, w["gain_c"], w["shift_c"])), new


def gru(reset: str, update: str) -> Cell:
    """Cho et al. 2014 apply r to h, torch and cuDNN to R h; z takes (Chung et al. 2014) or keeps (Cho)."""

    def cell(w: Weights, x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        (h,) = state
        size = len(h)
        r, z = sigmoid(gate(w, 0, 3, x, h)), sigmoid(gate(w, 1, 3, x, h))
        mine = slice(2 * size, 3 * size)
        bias, inner = (w["bias_ih"][mine], w["bias_hh"][mine]) if "bias_ih" in w else (0.0, 0.0)
        u = w["weight_hh"][mine]
        seen = u @ (r * h) + inner if reset == "before" else r * (u @ h + inner)
        n = np.tanh(w["weight_ih"][mine] @ x + bias + seen)
        return ((1 - z) * h + z * n,) if update == "takes" else (z * h + (1 - z) * n,)

    return cell


def run(cell: Cell, layers: list[Weights], x: Array, starts: list[tuple[Array, ...]]) -> tuple[Array, Any]:
    """(y (time, hidden), the last states by layer): layer upon layer, tick upon tick."""
    ends = []
    for w, state in zip(layers, starts, strict=True):
        rows = []
        for row in x:
            state = cell(w, row, state)
            rows.append(state[0])
        x = np.stack(rows)
        ends.append(state)
    return x, ends
