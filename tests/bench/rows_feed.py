"""One stream: what the engine's promises cost, and what its bindings win, beside a hand-written loop."""

from __future__ import annotations

from functools import partial

import numpy as np

from . import loops
from .kit import LARGE, SMALL, File, Kit
from .measure import alone, paired
from .report import Measured, Row, micros

CHUNKS = (1, 8, 64)


def _feed(which: str, kit: Kit) -> Measured:
    file: File = getattr(kit, which)
    ticks = file.ticks()
    ours, by_hand = loops.feed(file.load(), ticks), loops.hand_for(file.path, file.spec, ticks)
    loops.agree(ours, by_hand)
    found = paired(ours, by_hand, kit.effort)
    return Measured(found.ratio, [("feed", micros(found.a)), ("by hand", micros(found.b))], ours)


def _chunks(kit: Kit) -> Measured:
    file = kit.large
    engine, data = file.load(), np.concatenate(file.ticks(count=max(CHUNKS)))
    costs = {
        k: alone(loops.feed(engine, np.split(data, len(data) // k)), kit.effort, steps=k) for k in CHUNKS
    }
    last = costs[CHUNKS[-1]]
    microseconds = type(last)(last.median * 1e6, last.low * 1e6, last.high * 1e6)
    return Measured(microseconds, [(f"a tick, in chunks of {k}", micros(c)) for k, c in costs.items()])


_HOW = (
    "`stream.feed` of one tick beside a loop of `session.run` on the same file that feeds the states back "
    "by name and checks nothing; both get ready-made float32 arrays."
)

ROWS = (
    Row("feed-small", f"`stream.feed` ÷ hand-written loop, {SMALL}", _HOW, partial(_feed, "small"), 0.85),
    Row("feed-large", f"`stream.feed` ÷ hand-written loop, {LARGE}", _HOW, partial(_feed, "large"), 0.85),
    Row(
        "chunks",
        f"`stream.feed` a tick, in chunks of {CHUNKS[-1]}, {LARGE}",
        "The cost of a tick falls with the ticks in a chunk, since they are one call of the model.",
        _chunks,
        unit="µs",
        digits=1,
    ),
)
