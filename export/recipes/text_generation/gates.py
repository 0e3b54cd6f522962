"""Activation of the gates while a text is read, by the kind of the last character.

The model's probe (`export(..., probe="gates")`) gives each layer's input, forget and output gate at each
character, as outputs of an ordinary stream. Differences are given in standard errors, by the jackknife over
pieces of the text: neighbouring characters are not independent, but pieces of a thousand characters nearly
are (H. Künsch, The Jackknife and the Bootstrap for General Stationary Observations, 1989).
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measured import Say, Table

from runnel import Engine
from runnel.cli.main import main
from runnel.errors import ModelError, RunnelError
from runnel.loading import container
from runnel.probe import Probe
from runnel.spec import Array, from_document

from .corpus import BEGIN
from .generation import codes, pieces

LETTERS = {"i": "input", "f": "forget", "o": "output"}
ALL = "all characters"
BLOCKS = 40  # pieces of the text, for the jackknife


def kinds(text: bytes) -> dict[str, Array]:
    """Return a mask (T,), bool, for each kind of character. Each character has one kind, and is in `ALL`."""
    now, before = codes(text), codes(BEGIN + text[:-1])
    letter, was_letter = (np.isin(c, codes(string.ascii_letters.encode())) for c in (now, before))
    space, was_space = (c == ord(" ") for c in (now, before))
    line_end, was_line_end = (c == ord("\n") for c in (now, before))
    digit = np.isin(now, codes(string.digits.encode()))
    blank = was_space | was_line_end
    return {
        ALL: np.ones(len(now), bool),
        "first letter of a word": letter & ~was_letter,
        "letter inside a word": letter & was_letter,
        "digit": digit,
        "punctuation": ~(letter | digit | space | line_end),
        "space after a word or mark": space & ~blank,
        "space of an indent or gap": space & blank,
        "line end": line_end,
    }


@dataclass(frozen=True)
class Seen:
    """Statistics of one gate of one layer."""

    layer: str
    letter: str
    mean: Array  # mean over the units, float64 (T,)
    # By half of the text, by kind (in the order of `kinds`), by unit: sums of activations and of squares.
    sums: Array
    squares: Array


def watch(model: Path, text: bytes, say: Say) -> list[Seen]:
    """Read the text through the model's probe, by the engine. Raises ModelError if `model` is no probe."""
    probe = _probe(model)
    of_kind = np.stack(list(kinds(text).values())).astype(np.float64)  # (kinds, T)
    halves = np.stack([np.arange(len(text)) < len(text) // 2, np.arange(len(text)) >= len(text) // 2])
    outputs = [
        (layer.name, letter, layer.outputs[letter])
        for layer in probe.layers
        for letter in LETTERS
        if letter in layer.outputs
    ]
    means: dict[str, list[Array]] = {name: [] for _, _, name in outputs}
    sums: dict[str, Array] = {}
    squares: dict[str, Array] = {}
    with Engine.load(model, max_streams=1) as engine, engine.open() as stream:
        for at, piece in pieces(text, say):
            made = stream.feed(codes(piece, "int64"))
            here = slice(at, at + len(piece))
            weights = halves[:, None, here] * of_kind[:, here]  # (2, kinds, ticks)
            for _, _, name in outputs:
                gate = made[name].astype(np.float64)  # (ticks, units)
                means[name].append(gate.mean(1))
                sums[name] = sums.get(name, 0.0) + weights @ gate
                squares[name] = squares.get(name, 0.0) + weights @ gate**2
    return [
        Seen(layer, letter, np.concatenate(means[name]), sums[name], squares[name])
        for layer, letter, name in outputs
    ]


def _probe(model: Path) -> Probe:
    found = from_document(container.document(model.read_bytes(), str(model)), str(model)).probe
    if found is None or not any(set(LETTERS) <= layer.outputs.keys() for layer in found.layers):
        raise ModelError(f"{model} shows no layer's gates: export the model with probe='gates'")
    return found


def difference(values: Array, chosen: Array, blocks: int = BLOCKS) -> tuple[float, float]:
    """Return the mean of the chosen values minus the mean of all, and its standard error (jackknife).

    The error is nan if all chosen values are in one block, or if none is chosen.
    """
    cuts = np.linspace(0, len(values), blocks + 1).astype(int)[:-1]
    total, count = np.add.reduceat(values, cuts), np.diff(np.append(cuts, len(values)))
    mine, mine_count = np.add.reduceat(values * chosen, cuts), np.add.reduceat(chosen.astype(int), cuts)
    if np.count_nonzero(mine_count) < 2:
        return float(values[chosen].mean() - values.mean()) if chosen.any() else math.nan, math.nan
    found = mine.sum() / mine_count.sum() - values.mean()
    rest, others = total.sum() - total, count.sum() - count
    left = (mine.sum() - mine) / (mine_count.sum() - mine_count) - rest / others
    error = np.sqrt((blocks - 1) / blocks * ((left - left.mean()) ** 2).sum())
    return float(found), float(error)


def averages(seen: Sequence[Seen], text: bytes) -> Table:
    """Return the mean activation by layer and kind, with the difference from all in standard errors."""
    gates = _by_layer(seen)
    rows = []
    for layer, by_letter in gates.items():
        for kind, chosen in kinds(text).items():
            if not chosen.any():
                continue
            cells = [_cell(one.mean, chosen, kind == ALL) for one in by_letter.values()]
            rows.append([f"{layer}: {kind}", f"{chosen.mean():.1%}", *cells])
    return Table(
        "Mean activation of the gates by the character just read (in brackets: how far from that of all "
        "characters, in standard errors)",
        ["layer and character", "share", *(LETTERS[x] + " gate" for x in LETTERS)],
        rows,
    )


def draw(pipeline: Path, text: bytes, path: Path) -> None:
    """Draw a few words by `runnel plot`: each gate of each unit, over the characters."""
    given = path.with_suffix(".txt")
    given.write_bytes(text)
    words = ["plot", pipeline, given, "--show", ",".join(LETTERS), "-o", path, "--quiet"]
    status = main([str(word) for word in words])
    if status == 130:  # Ctrl-C in the child process stops the recipe too
        raise KeyboardInterrupt
    if status:
        raise RunnelError(f"runnel {' '.join(map(str, words))} ended with status {status}: see above")


def _by_layer(seen: Sequence[Seen]) -> Mapping[str, Mapping[str, Seen]]:
    layers: dict[str, dict[str, Seen]] = {}
    for one in seen:
        layers.setdefault(one.layer, {})[one.letter] = one
    return {name: {letter: layer[letter] for letter in LETTERS} for name, layer in layers.items()}


def _cell(values: Array, chosen: Array, everything: bool) -> str:
    mean = values[chosen].mean()
    if everything:
        return f"{mean:.3f}"
    found, error = difference(values, chosen)
    return f"{mean:.3f} ({found / error:+.0f})" if error > 0 else f"{mean:.3f}"


def tellers(seen: Sequence[Seen], text: bytes) -> Table:
    """Return, for each kind, the unit's gate that differs most: chosen on one half, shown on the other."""
    rows = []
    for number, (kind, chosen) in enumerate(kinds(text).items()):
        half = len(text) // 2
        counts = [chosen[:half].sum(), chosen[half:].sum()]
        if kind == ALL or min(counts) < 2:
            continue
        found = [_told(one, number, counts, [half, len(text) - half]) for one in seen]
        # For every gate and unit: the difference of its means on the first half.
        apart = np.stack([np.abs(at[0] - elsewhere[0]) for at, elsewhere, _ in found])
        best, unit = divmod(int(apart.argmax()), apart.shape[1])
        at, elsewhere, deviation = (value[1, unit] for value in found[best])
        one = seen[best]
        where = f"{one.layer}, {LETTERS[one.letter]} gate, unit {unit}"
        rows.append([kind, where, f"{at:.2f}", f"{elsewhere:.2f}", f"{(at - elsewhere) / deviation:+.1f}"])
    return Table(
        "The gate of a single unit whose mean differs most for each kind (chosen on the first half of the "
        "test part, measured on the second)",
        ["character", "gate", "mean there", "elsewhere", "apart, in standard deviations"],
        rows,
    )


def _told(one: Seen, kind: int, counts: Sequence[int], lengths: Sequence[int]) -> tuple[Array, Array, Array]:
    """Return, by half and unit: the kind's mean, the mean of the rest, and the pooled standard deviation."""
    n = np.array(counts, np.float64)[:, None]
    rest = np.array(lengths, np.float64)[:, None] - n
    at, elsewhere = one.sums[:, kind] / n, (one.sums[:, 0] - one.sums[:, kind]) / rest
    spread = one.squares[:, kind] / n - at**2
    spread_rest = (one.squares[:, 0] - one.squares[:, kind]) / rest - elsewhere**2
    return at, elsewhere, np.sqrt(np.maximum((spread + spread_rest) / 2, 1e-12))
