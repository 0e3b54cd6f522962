"""What a file is tried with: random data, and what the original gives for it.

Also what is asked of the original before its numbers are believed: that it gives the same twice, that
its outputs do not look at the future, that the rows of a batch do not mix.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from runnel.errors import ExportError, NotStreamableError
from runnel.grouping import Blocks, Steps
from runnel.spec import Array, ModelSpec

from . import vectors
from .certificate import Check, Limits
from .checks import Trial, constant_outputs
from .errors import Finding, Tally, informed, judge
from .reference import Original
from .samples import Source, draw

STREAMS = 5
TICKS = 40  # beyond what the convolutions remember: enough for every state to matter
TICKS_BY_PREFIX = 24  # fewer, where each tick is a run of the original on its prefix
MAX_TICKS = 4096
FULL = 2  # sequences longer than what is remembered, where that is much
MUCH = 256  # ticks
_EXACT = 1e-9  # of the peak, for two float64 runs of the same arithmetic
_SHORT = 13  # ticks: less may be too few for a module's windows
_GIVEN_STREAMS, _GIVEN_TICKS, _GIVEN_PREFIXES = 4, 2048, 24  # how much of the user's data is used
# Beyond the lengths that people write into forward (512 samples of context, 100 ticks a block).
LONG, LONG_IF_SLOW, LONG_OF_STEPS = 2000, 600, 300
MAX_LONG = 16384
_LONG_PREFIXES = 5
_LONG_SECONDS = 1.0  # of the original; what would take longer is slow


@dataclass(frozen=True)
class Trials:
    """Random trials, one long one, trials on the user's data, and the checks of the original.

    `covered`: if the model takes blocks, sequences that it sees to their end. `short`: if it takes steps,
    sequences of a few ticks. `kept`: the one of which the file keeps the first ticks.
    """

    random: tuple[Trial, ...]
    long: Trial | None
    given: tuple[Trial, ...]
    checks: tuple[Check, ...]
    ticks: int
    long_ticks: int
    notes: tuple[str, ...]
    covered: tuple[Trial, ...]
    short: tuple[Trial, ...]
    kept: Trial


def make_trials(
    original: Original,
    single: Original,
    spec: ModelSpec,
    sources: Sequence[Source],
    given: Sequence[Mapping[str, Array]],
    remembered: int,
    rng: np.random.Generator,
    limits: Limits,
    report: Callable[[str], None] = lambda _: None,
) -> Trials:
    """Run the original on random and given data. `single` is the module in float32; `remembered` is how
    many ticks its convolutions and delays remember.

    Raises NotStreamableError where the original looks at the future, ExportError where it cannot be
    compared: it is not repeatable, it mixes the streams of a batch, it gives NaN.
    """
    unit = spec.framing.hop if spec.framing else 1
    ticks = min(MAX_TICKS, remembered + (TICKS if original.streams_all else TICKS_BY_PREFIX))
    shorter, up = 3, original.lengths.up
    if spec.steps:
        step = spec.steps.ticks
        ticks = up(min(max(MAX_TICKS, 8 * step), remembered + TICKS * step))
        shorter = max(3, step // 3 + 1)
    wanted = [ticks - shorter * i for i in range(STREAMS)]
    wanted[FULL:] = [min(t, max(MUCH, ticks - remembered) - shorter * i) for i, t in enumerate(wanted[FULL:])]
    chunks = [draw(sources, rng, up(t) * unit) for t in wanted]
    exact = replace(limits, tolerance=_EXACT) if original.doubled else limits
    report(f"on {STREAMS} sequences of about {ticks} ticks")
    random = [_case(original, single, chunks[0], None)]
    # Each of these is believed before the next, which would only say the same less clearly.
    checks = [_believed(_repeatable(original, random[0]), exact)]
    random += [_case(original, single, chunk, None) for chunk in chunks[1:]]
    if random[0].trial.final:  # started elsewhere than at the initial value
        for chunk in chunks[:3]:
            warm_up = draw(sources, rng, int(rng.integers(4, 12)) * unit)
            start = {n: _shaken(v, rng) for n, v in original.run(warm_up).states.items()}
            random.append(_case(original, single, chunk, start))
    checks.append(_believed(_unmixed(original, sources, rng, unit, spec.steps), limits))
    long_ticks = up(min(MAX_LONG, 2 * remembered + _long(original, spec, chunks[0], ticks)))
    report(f"on one of {long_ticks} ticks")
    long, notes = _long_case(original, single, draw(sources, rng, long_ticks * unit), unit, limits, rng)
    report("whether its past depends on its future")
    covered, kept, short = [], random[-1].trial, []
    if spec.steps:
        short = _short(original, single, spec.steps, sources, rng, remembered)
        kept = _covered(original, single, sources, rng, up(max(_SHORT, 4 * spec.steps.ticks)))
    if spec.blocks:
        checks.append(_lookahead(original, random, limits))
        covered = [_covered(original, single, sources, rng, t) for t in _lengths(spec.blocks)]
        kept = _covered(original, single, sources, rng, min(spec.blocks.window, vectors.room(kept)))
    else:
        cases = [*random, *([long] if long else [])]
        checks.append(_believed(_causal(original, cases, unit, rng, spec.steps), exact))
    known = [_known(original, single, chunk, unit) for chunk in given[:_GIVEN_STREAMS]]
    if original.doubled:
        checks.append(_rounding(random[0], limits))
    cases = [*random, *known, *([long] if long else [])]
    notes += [
        f"output {name!r} was constant on all the data, so the certificate says little about it: give data= "
        "that changes it"
        for name in constant_outputs([c.trial for c in cases])
    ]
    return Trials(
        random=tuple(c.trial for c in random),
        long=long.trial if long else None,
        given=tuple(c.trial for c in known),
        checks=tuple(checks),
        ticks=ticks,
        long_ticks=len(next(iter(long.trial.chunk.values()))) // unit if long else 0,
        notes=tuple(notes),
        covered=tuple(covered),
        short=tuple(short),
        kept=kept,
    )


@dataclass(frozen=True)
class _Case:
    """A trial, and its starting state as the module takes it."""

    trial: Trial
    start: Mapping[str, Tensor] | None


def _case(
    original: Original,
    single: Original,
    chunk: Mapping[str, Array],
    start: Mapping[str, Tensor] | None,
    at: Sequence[int] | None = None,
) -> _Case:
    run = original.run(chunk, start, at)
    for name, values in run.outputs.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise ExportError(
                f"output {name!r} of the original is NaN on data drawn like the example (its mean and "
                "spread, or its range of integers): give an example, or data=, with realistic values"
            )
    rows = None if start is None else original.rows_of(start)
    # What its own rounding decides is no error: an argmax between two equals, a channel of tiny numbers.
    rough = single.run(chunk, start, at).outputs
    return _Case(Trial(chunk, run.outputs, rows, original.rows_of(run.states), rough, run.at), start)


def _known(original: Original, single: Original, chunk: Mapping[str, Array], unit: int) -> _Case:
    """A trial on the user's data, with the prefixes of many-to-one outputs spread over its length."""
    most = _GIVEN_TICKS if original.at_once else LONG_IF_SLOW
    chunk = {name: array[: most * unit] for name, array in chunk.items()}
    ticks = len(next(iter(chunk.values()))) // unit
    if original.lengths.unit > 1:
        ticks -= ticks % original.lengths.unit
        chunk = {name: array[:ticks] for name, array in chunk.items()}
    at = sorted({round(t) for t in np.linspace(0, ticks - 1, _GIVEN_PREFIXES)})
    return _case(original, single, chunk, None, None if original.streams_all else at)


def _long(original: Original, spec: ModelSpec, chunk: Mapping[str, Array], ticks: int) -> int:
    """How long the long sequence is to be, besides what is remembered: less where the module is slow."""
    if not original.over_time:
        return LONG_OF_STEPS  # it sees one tick at a time, and cannot know how many there are
    began = time.perf_counter()
    original.run(chunk, at=())
    seconds = time.perf_counter() - began
    if spec.steps:
        fast = seconds * LONG / ticks <= _LONG_SECONDS
        return max(LONG if fast else LONG_IF_SLOW, 20 * spec.steps.ticks)
    if spec.blocks:  # each block runs all of the past again: four times the work for twice the ticks
        return max(ticks, min(LONG_IF_SLOW, int(ticks * math.sqrt(_LONG_SECONDS / seconds))))
    return LONG_IF_SLOW if seconds * LONG / ticks > _LONG_SECONDS or spec.framing else LONG


def _long_case(
    original: Original,
    single: Original,
    chunk: Mapping[str, Array],
    unit: int,
    limits: Limits,
    rng: np.random.Generator,
) -> tuple[_Case | None, list[str]]:
    """One long sequence, as far as the module's own float32 stays with its float64, and a note if not."""
    ticks = len(next(iter(chunk.values()))) // unit
    at = sorted({ticks - 1, *map(int, rng.integers(ticks // 4, ticks, _LONG_PREFIXES - 1))})
    prefixes = None if original.streams_all else at
    exact, rough = (o.run(chunk, at=prefixes) for o in (original, single))
    end = 2**62
    for name, values in exact.outputs.items():
        if values.dtype.kind != "f":
            continue
        finite = np.isfinite(values)
        peak = np.abs(values[finite]).max(initial=0.0) or 1.0
        with np.errstate(invalid="ignore"):
            near = np.abs(rough.outputs[name] - values) <= 0.1 * limits.tolerance * peak
        left = np.flatnonzero(~(near | (rough.outputs[name] == values)).reshape(len(values), -1).all(axis=1))
        if left.size:
            end = min(end, int(exact.at[name][left[0]] if name in exact.at else left[0]))
    whole = max(
        (len(values) for name, values in exact.outputs.items() if name not in exact.at), default=ticks
    )
    end = ticks if end >= whole else original.lengths.up(end * ticks // whole)
    if end == ticks:
        rows = original.rows_of(exact.states)
        return _Case(Trial(chunk, exact.outputs, None, rows, rough.outputs, exact.at), None), []
    note = (
        f"from tick {end} of {ticks} on the module's own float32 is not its float64 (it grows, or it is "
        "chaotic), so nothing is compared from there on"
    )
    if end < TICKS:
        return None, [note]
    chunk = {name: array[: end * unit] for name, array in chunk.items()}
    return _case(original, single, chunk, None, None if original.streams_all else [end - 1]), [note]


def _shaken(state: Tensor, rng: np.random.Generator) -> Tensor:
    """A state that the module can reach, moved by a tenth without changing signs; float32 as the engine's."""
    if not state.is_floating_point():
        return state
    factor = torch.from_numpy(1 + 0.1 * rng.uniform(-1, 1, tuple(state.shape)))
    return (state * factor).to(torch.float32)


def _repeatable(original: Original, case: _Case) -> Finding:
    tally = Tally()
    case.trial.compare(original.run(case.trial.chunk, case.start).outputs, tally)
    return tally.finding("repeatable", "the original run twice")


def _causal(
    original: Original,
    cases: Sequence[_Case],
    unit: int,
    rng: np.random.Generator,
    steps: Steps | None = None,
) -> Finding:
    """The original on a prefix against the original on the whole: outputs must not look ahead.

    Only outputs with a time axis can; what a many-to-one output is compared with is made of prefixes. If the
    model takes `steps`, then no further ahead than its delay: the rows that a stream has given by then.
    """
    tally = Tally()
    for case in cases if original.sequence_outputs else []:
        chunk, expected = case.trial.chunk, case.trial.expected
        size = len(next(iter(chunk.values()))) // unit
        chosen = {2, size - 1, *map(int, rng.integers(2, size, 3))}
        if steps:
            chosen = {min(size, original.lengths.up(max(_SHORT, t))) for t in chosen}
        for ticks in sorted(chosen):
            prefix = {name: array[: ticks * unit] for name, array in chunk.items()}
            outputs = original.run(prefix, case.start, at=()).outputs
            rows = ticks
            if steps:
                rows = max(0, ticks // steps.ticks * steps.ticks - steps.delay) * steps.rows // steps.ticks
            for name, values in outputs.items():
                tally.add(name, values[:rows], expected[name][:rows])
    return tally.finding("causal", "the original on random prefixes")


def _lengths(blocks: Blocks) -> list[int]:
    """Sequences that the first window covers: all of it, some of it, a part of a block, one tick."""
    return sorted({blocks.window, blocks.window - blocks.ticks // 2 - 1, blocks.ticks // 2 + 1, 1} - {0, -1})


def _short(
    original: Original,
    single: Original,
    steps: Steps,
    sources: Sequence[Source],
    rng: np.random.Generator,
    remembered: int,
) -> list[Trial]:
    """Sequences shorter than a step, than the delay, than what the model sees, if forward takes them."""
    n, least = steps.ticks, original.lengths.least
    wanted = {1, 2, 3, n - 1, n, n + 1, 2 * n + 1, steps.delay, steps.delay + 1, remembered // 2, least + 1}
    tried = sorted({original.lengths.up(t) for t in wanted})
    found = []
    for ticks in tried:
        try:
            found.append(_covered(original, single, sources, rng, ticks))
        except ExportError:  # too short for the module itself
            continue
    return found


def _covered(
    original: Original, single: Original, sources: Sequence[Source], rng: np.random.Generator, ticks: int
) -> Trial:
    """A sequence with what the original gives for it as it was written, with no bound to its lookahead."""
    chunk = draw(sources, rng, ticks)
    return Trial(chunk, original.whole(chunk).outputs, rough=single.whole(chunk).outputs)


def _lookahead(original: Original, cases: Sequence[_Case], limits: Limits) -> Check:
    """For information: what the bound to the lookahead changes, on random data."""
    tally = Tally()
    for case in cases:
        Trial(case.trial.chunk, original.whole(case.trial.chunk).outputs).compare(case.trial.expected, tally)
    return informed(tally.finding("lookahead", "for comparison, against a lookahead without end"), limits)


def _unmixed(
    original: Original,
    sources: Sequence[Source],
    rng: np.random.Generator,
    unit: int,
    steps: Steps | None = None,
) -> Finding:
    """The original on a batch of three against each alone."""
    ticks = original.lengths.up(_SHORT) if steps else 6
    chunks = [draw(sources, rng, ticks * unit) for _ in range(3)]
    tally = Tally()
    for name, row, alone in original.rows(chunks):
        tally.add(name, row.ravel(), alone.ravel())
    return tally.finding("unmixed", "the original on a batch against each stream alone")


def _rounding(case: _Case, limits: Limits) -> Check:
    """For information: how far the original's own float32 is from its float64."""
    tally = Tally()
    for name, values in case.trial.expected.items():
        tally.add(name, case.trial.rough[name], values)
    return informed(tally.finding("rounding", "for comparison, the original in float32"), limits)


_BELIEF = {
    "repeatable": (
        ExportError,
        "the module gives other numbers when it is run again on the same data: is there randomness in its "
        "forward, or state that it keeps in itself between calls? Pass that state in and out instead: "
        "export(..., state={...})",
    ),
    "causal": (
        NotStreamableError,
        "an output of the module changes when later ticks are added, so it looks at the future (or depends "
        "on the sequence's length): it cannot be streamed exactly",
    ),
    "unmixed": (
        ExportError,
        "a row of a batch comes out otherwise than alone: the module mixes the streams of a batch. Is an "
        "axis taken for another (batch_first), or a batch statistic used?",
    ),
}


def _believed(finding: Finding, limits: Limits) -> Check:
    """The verdict; raises where the original's numbers cannot serve as a reference."""
    (check,) = judge([finding], limits)
    if not check.passed:
        kind, why = _BELIEF[check.name]
        raise kind(f"{why}\n{check.row()}")
    return check
