"""What it costs to look at the states of streams now and then, beside the same engine that never looks."""

from __future__ import annotations

from functools import partial

from runnel import Engine
from runnel.insight.health import EVERY, Settings

from . import loops
from .kit import LARGE, SMALL, File, Kit
from .measure import Loop, paired
from .report import Measured, Row, micros
from .rows_batch import STREAMS, TICKS, per_stream


def _engines(file: File) -> tuple[Engine, Engine]:
    """With looks, as by default, and without; over one pipeline, so that all else is the same."""
    looked = file.load()
    return looked, Engine(looked.pipeline, looked.max_streams, health=Settings(every=0))


def between_looks(loop: Loop) -> Loop:
    """As many steps a call as from one look to the next. The fastest of several shorter blocks has none."""
    return lambda calls: loop(calls * EVERY)


def _feed(which: str, kit: Kit) -> Measured:
    file: File = getattr(kit, which)
    on, off = (loops.feed(engine, file.ticks()) for engine in _engines(file))
    loops.agree(on, off, tolerance=0.0)
    steps = {"a_steps": EVERY, "b_steps": EVERY}
    found = paired(between_looks(on), between_looks(off), kit.effort, **steps)
    return Measured(found.ratio, [("with looks", micros(found.a)), ("without", micros(found.b))], on)


def _many(kit: Kit) -> Measured:
    file = kit.large
    chunks = per_stream(file.ticks(STREAMS, TICKS))
    engines = _engines(file)
    on, off = (loops.feed_many(engine, chunks) for engine in engines)
    for i, stream in enumerate(engines[0].streams.values()):
        stream._due = i % EVERY  # so that each call has a look: by chance the fastest has fewer
    loops.agree(on, off, tolerance=0.0)
    found = paired(on, off, kit.effort, a_steps=STREAMS, b_steps=STREAMS)
    beside = [("with looks, a step", micros(found.a)), ("without, a step", micros(found.b))]
    return Measured(found.ratio, beside, on)


_HOW = f"`stream.feed` of one tick in two engines, one of which looks at the states once in {EVERY} chunks."

ROWS = (
    Row("health-small", f"state health on ÷ off, `feed`, {SMALL}", _HOW, partial(_feed, "small"), 1.03),
    Row("health-large", f"state health on ÷ off, `feed`, {LARGE}", _HOW, partial(_feed, "large"), 1.03),
    Row(
        "health-many",
        f"state health on ÷ off, `feed_many`, {STREAMS} streams, {LARGE}",
        "The same with all streams in one `feed_many`; their looks fall in different calls.",
        _many,
        1.03,
    ),
)
