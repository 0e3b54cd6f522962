"""Many streams: what batching costs beside the bare batch, and what it wins over one by one."""

from __future__ import annotations

import numpy as np

from runnel.spec import Array

from . import loops
from .kit import LARGE, Kit
from .measure import alone, paired
from .report import Measured, Row, micros

STREAMS = 256
TICKS = 5  # of data, used in turn: as many chunks stay in the cache, as ones that have just come in do


def per_stream(ticks: list[Array]) -> list[list[Array]]:
    """Each tick as one chunk a stream: (slots, features) to slots × (1, features)."""
    return [[np.ascontiguousarray(row[None]) for row in tick] for tick in ticks]


def _bare(kit: Kit) -> Measured:
    file = kit.large
    ticks = file.ticks(STREAMS, TICKS)
    ours = loops.feed_many(file.load(), per_stream(ticks))
    bare = loops.hand_for(file.path, file.spec, ticks, STREAMS)
    loops.agree(ours, bare)
    found = paired(ours, bare, kit.effort, a_steps=STREAMS, b_steps=STREAMS)
    beside = [("feed_many, a step", micros(found.a)), ("bare batch, a step", micros(found.b))]
    return Measured(found.ratio, beside, ours)


def _one_by_one(kit: Kit) -> Measured:
    file = kit.large
    ticks = file.ticks(STREAMS, TICKS)
    chunks = per_stream(ticks)
    ours, each = loops.feed_many(file.load(), chunks), loops.feed_each(file.load(), chunks)
    loops.agree(ours, each)
    found = paired(ours, each, kit.effort, a_steps=STREAMS, b_steps=STREAMS)
    bare = alone(loops.hand_for(file.path, file.spec, ticks, STREAMS), kit.effort, steps=STREAMS)
    beside = [
        ("feed_many, a step", micros(found.a)),
        ("feed, a step", micros(found.b)),
        ("bare batch, a step", micros(bare)),
        ("the ratio if `feed_many` cost no more than the bare batch", f"{bare.median / found.b.median:.3f}"),
    ]
    return Measured(found.ratio, beside, ours)


ROWS = (
    Row(
        "batch-bare",
        f"`feed_many`, {STREAMS} streams ÷ bare `session.run` at batch {STREAMS}, {LARGE}",
        "The bare run gets its batch ready-made in one array and keeps its states as one batch; `feed_many` "
        f"takes {STREAMS} chunks, checks, gathers and scatters, and gives {STREAMS} outputs.",
        _bare,
        1.3,
    ),
    Row(
        "batch-single",
        f"`feed_many`, {STREAMS} streams ÷ the same fed one by one, {LARGE}",
        "The same streams and chunks in one `feed_many`, and in a loop of `stream.feed`.",
        _one_by_one,
        1 / 8,
    ),
)
