"""Train four cells to recall a tag seen once, and stream them over connections that break."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from measured import Say, Table

from runnel.cli.progress import counted
from runnel_export import export

from . import picture
from .gradients import at_tag
from .networks import CELLS, Recall
from .streaming import Streamed, streamed
from .task import CHANCE, DISTANCES, mixed, sequences
from .training import WINDOW, Trained, alone, grown, success

Shares = Mapping[str, Sequence[float]]  # by cell, for each distance
Apart = Mapping[str, Sequence[Sequence[Trained]]]  # by cell, for each distance and seed
Gradients = Mapping[str, Sequence[tuple[float, float]]]

_SEED = 1994
_TRAIN, _ASK, _NORM, _STREAM = range(4)  # separate random sequences for training and each measurement
_LONGEST = 1000  # distractors: far beyond every distance in training


@dataclass(frozen=True)
class Size:
    distances: tuple[int, ...]
    alone: int  # most updates at one distance alone
    seeds: int  # number of seeds for these; the success of an RNN depends on the seed
    grown: int
    asked: int  # fresh sequences for each distance
    streams: int  # streams for each distance
    beyond: int  # a distance that does not occur in training


FULL = Size(DISTANCES, alone=500, seeds=3, grown=2000, asked=500, streams=8, beyond=_LONGEST)
QUICK = Size(DISTANCES[:3], alone=8, seeds=1, grown=40, asked=64, streams=1, beyond=50)


def run(out: Path, quick: bool, say: Say) -> list[Table]:
    """Train, measure, export, stream. Make five tables, `memory.png`, and each cell's model and weights."""
    size = QUICK if quick else FULL
    distances = size.distances
    apart = {cell: _alone(cell, size, say) for cell in CELLS}
    grew = {cell: _grown(cell, size, say) for cell in CELLS}
    say("gradients at the tag")
    before = {cell: [at_tag(_new(cell), d, _NORM) for d in distances] for cell in CELLS}
    after = {cell: [at_tag(t.network, d, _NORM) for d in distances] for cell, t in grew.items()}
    streams = {cell: _stream(out, t.network, size, say) for cell, t in grew.items()}
    recalled_apart = {
        cell: [[_ask(t, t.reached, size) for t in seeds] for seeds in of] for cell, of in apart.items()
    }
    recalled = {cell: [_ask(t, d, size) for d in (*distances, size.beyond)] for cell, t in grew.items()}
    picture.draw(
        out / "memory.png",
        distances,
        [
            (
                "recalled; learnt at that distance alone (mean of the seeds)",
                {cell: list(map(fmean, of)) for cell, of in recalled_apart.items()},
                False,
            ),
            (
                f"recalled; learnt as distances grew, gradient cut at {WINDOW} ticks",
                {cell: shares[: len(distances)] for cell, shares in recalled.items()},
                False,
            ),
            (
                "gradient of the loss at the tag, before training",
                {cell: [norm for norm, _ in pairs] for cell, pairs in before.items()},
                True,
            ),
            (
                "share of the gradient that is left at the tag, learnt as distances grew",
                {cell: [share for _, share in pairs] for cell, pairs in after.items()},
                True,
            ),
        ],
    )
    say(f"drawn: {out / 'memory.png'}")
    return [
        _apart_table(size, apart, recalled_apart),
        _grown_table(size, grew, recalled),
        *_gradient_tables(size, before, after),
        _streamed_table(streams),
    ]


def _apart_table(size: Size, apart: Apart, recalled: Mapping[str, Sequence[Sequence[float]]]) -> Table:
    rows = []
    for cell in CELLS:
        rows.append([cell, *(_span(shares, "{:.1%}") for shares in recalled[cell])])
        rows.append([f"{cell}: updates", *(_span([t.updates for t in of], "{}") for of in apart[cell])])
    return Table(
        f"Recalled, of {size.asked} fresh sequences (chance: {CHANCE:.1%}); learnt at that distance alone, "
        f"in {size.alone} updates at most, from {counted(size.seeds, 'seed')}",
        ["distractors", *map(str, size.distances)],
        rows,
    )


def _span(values: Sequence[float], form: str) -> str:
    """Return the range of values as text, from the lowest to the highest."""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _grown_table(size: Size, grew: Mapping[str, Trained], recalled: Shares) -> Table:
    return Table(
        f"Recalled, of {size.asked} fresh sequences (chance: {CHANCE:.1%}); learnt as distances grew to "
        f"{size.distances[-1]}, gradient cut at {WINDOW} ticks",
        ["distractors", *map(str, size.distances), str(size.beyond), "trained to", "updates", "clipped"],
        [
            [
                cell,
                *(f"{share:.1%}" for share in recalled[cell]),
                *map(str, (t.reached, t.updates, t.clipped)),
            ]
            for cell, t in grew.items()
        ],
    )


def _gradient_tables(size: Size, before: Gradients, after: Gradients) -> list[Table]:
    titles = (
        "Norm of the gradient of the loss at the cue, with respect to the state behind the tag (median)",
        "The same as a share of the gradient with respect to the state before the cue (median)",
    )
    return [
        Table(
            title,
            ["distractors", *map(str, size.distances)],
            [
                [f"{cell}, {when}", *(f"{pair[which]:.1e}" for pair in pairs[cell])]
                for cell in CELLS
                for when, pairs in (("before training", before), ("trained", after))
            ],
        )
        for which, title in enumerate(titles)
    ]


def _streamed_table(streams: Mapping[str, tuple[float, Streamed]]) -> Table:
    return Table(
        "Streamed tick by tick by `runnel serve`, each stream interrupted twice between tag and cue",
        [
            "cell", "certified error", "streams", "ticks", "interruptions", "same answer as torch",
            "largest difference", "tag recalled",
        ],
        [
            [
                cell, f"{error:.1e}", f"{s.sequences}", f"{s.ticks}", f"{s.interruptions}",
                f"{s.same} of {s.sequences}", f"{s.error:.1e}", f"{s.recalled} of {s.sequences}",
            ]
            for cell, (error, s) in streams.items()
        ],
    )  # fmt: skip


def _new(cell: str, seed: int = 0) -> Recall:
    torch.manual_seed(_SEED + seed)
    return Recall(cell)


def _random(purpose: int, distance: int = 0, seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(_SEED + 10_000 * purpose + distance + 1_000_000 * seed)


def _ask(trained: Trained, distance: int, size: Size) -> float:
    return success(trained.network, distance, size.asked, _random(_ASK, distance))


def _alone(cell: str, size: Size, say: Say) -> list[list[Trained]]:
    """Train one network for each distance and seed."""
    made = []
    for distance in size.distances:
        began = time.monotonic()
        of = [
            alone(_new(cell, seed), distance, size.alone, _random(_TRAIN, distance, seed))
            for seed in range(size.seeds)
        ]
        took = time.monotonic() - began
        updates = _span([t.updates for t in of], "{}")
        say(f"{cell}, {distance} distractors alone: {updates} updates, {took:.1f} s")
        made.append(of)
    return made


def _grown(cell: str, size: Size, say: Say) -> Trained:
    began = time.monotonic()
    made = grown(_new(cell), size.distances[-1], size.grown, _random(_TRAIN))
    took = time.monotonic() - began
    say(f"{cell}, growing to {made.reached} distractors: {made.updates} updates, {took:.1f} s")
    return made


def _stream(out: Path, network: Recall, size: Size, say: Say) -> tuple[float, Streamed]:
    """Export, certify and serve. Return the certified error and the results of the streams."""
    model = out / f"{network.kind.lower()}.onnx"
    example, _ = sequences(4, 20, _random(_STREAM))
    certificate = export(network, example, model, output_names=["scores"])
    torch.save(network.state_dict(), model.with_suffix(".pt"))
    result = streamed(network, model, mixed(size.streams, size.distances, _random(_STREAM)), _SEED)
    say(f"{model}: certified, {result.sequences} streams interrupted {result.interruptions} times")
    return certificate.error, result
