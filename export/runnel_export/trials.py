"""What a file is tried with: random data, and what the original gives for it.

Also what is asked of the original before its numbers are believed: that it gives the same twice, that
its outputs do not look at the future, that the rows of a batch do not mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from runnel.errors import ExportError, NotStreamableError, RunnelError
from runnel.spec import Array, ModelSpec

from .certificate import Check, Limits, judge
from .original import Original
from .proofs import Tally, Trial
from .samples import Source, draw

STREAMS = 5
TICKS = 40  # beyond what the convolutions remember: enough for every state to matter
TICKS_BY_PREFIX = 24  # fewer, where each tick is a run of the original on its prefix
MAX_TICKS = 4096
_EXACT = 1e-9  # of the peak, for two float64 runs of the same arithmetic
_GIVEN_STREAMS, _GIVEN_TICKS, _GIVEN_PREFIXES = 4, 512, 64  # how much of the user's data is used


@dataclass(frozen=True)
class Trials:
    """Random trials, trials on the user's data, and the checks of the original."""

    random: tuple[Trial, ...]
    given: tuple[Trial, ...]
    checks: tuple[Check, ...]
    ticks: int


def make_trials(
    original: Original,
    single: Original,
    spec: ModelSpec,
    sources: Sequence[Source],
    given: Sequence[Mapping[str, Array]],
    rng: np.random.Generator,
    limits: Limits,
) -> Trials:
    """Run the original on random and given data. `single` is the module in float32.

    Raises NotStreamableError where the original looks at the future, ExportError where it cannot be
    compared: it is not repeatable, it mixes the streams of a batch, it gives NaN.
    """
    unit = spec.framing.hop if spec.framing else 1
    remembered = sum(s.row_shape[-1] for s in spec.states if s.input.endswith(".cache"))
    ticks = min(MAX_TICKS, remembered + (TICKS if original.streams_all else TICKS_BY_PREFIX))
    chunks = [draw(sources, rng, (ticks - 3 * i) * unit) for i in range(STREAMS)]
    random = [_case(original, single, chunk, None) for chunk in chunks]
    if random[0].trial.final:  # started elsewhere than at the initial value
        for chunk in chunks[:3]:
            warm_up = draw(sources, rng, int(rng.integers(4, 12)) * unit)
            start = {n: _shaken(v, rng) for n, v in original.run(warm_up).states.items()}
            random.append(_case(original, single, chunk, start))
    most = _GIVEN_TICKS if original.streams_all else _GIVEN_PREFIXES
    known = [
        _case(original, single, {n: a[: most * unit] for n, a in chunk.items()}, None)
        for chunk in given[:_GIVEN_STREAMS]
    ]
    checks = [_repeatable(original, random[0]), _causal(original, random, unit, rng)]
    checks = [*judge(checks, Limits(_EXACT if original.doubled else limits.tolerance, 0.0))]
    checks += judge([_unmixed(original, sources, rng, unit)], limits)
    for check in checks:
        _believe(check)
    if original.doubled:
        checks.append(_rounding(single, random[0]))
    return Trials(tuple(c.trial for c in random), tuple(c.trial for c in known), tuple(checks), ticks)


@dataclass(frozen=True)
class _Case:
    """A trial, and its starting state as the module takes it."""

    trial: Trial
    start: Mapping[str, Tensor] | None


def _case(
    original: Original, single: Original, chunk: Mapping[str, Array], start: Mapping[str, Tensor] | None
) -> _Case:
    try:
        run = original.run(chunk, start)
    except RunnelError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ExportError(
            "the module itself fails on data like the example, or on the data given: "
            f"{type(error).__name__}: {error}"
        ) from error
    for name, values in run.outputs.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise ExportError(
                f"output {name!r} of the original is NaN on data drawn like the example (its mean and "
                "spread, or its range of integers): give an example, or data=, with realistic values"
            )
    rows = None if start is None else original.rows_of(start)
    trial = Trial(chunk, run.outputs, rows, original.rows_of(run.states))
    counted = [name for name, values in run.outputs.items() if values.dtype.kind != "f"]
    if not counted:
        return _Case(trial, start)
    # An argmax between two equals, a threshold met exactly: rounding decides, so neither is wrong.
    rough = single.run(chunk, start).outputs
    doubtful = {n: rough[n] != run.outputs[n] for n in counted}
    return _Case(replace(trial, doubtful=doubtful), start)


def _shaken(state: Tensor, rng: np.random.Generator) -> Tensor:
    """A state that the module can reach, moved by a tenth without changing signs; float32 as the engine's."""
    if not state.is_floating_point():
        return state
    factor = torch.from_numpy(1 + 0.1 * rng.uniform(-1, 1, tuple(state.shape)))
    return (state * factor).to(torch.float32)


def _repeatable(original: Original, case: _Case) -> Check:
    tally = Tally()
    tally.outputs(original.run(case.trial.chunk, case.start).outputs, case.trial)
    return tally.check("repeatable", "the original run twice")


def _causal(original: Original, cases: Sequence[_Case], unit: int, rng: np.random.Generator) -> Check:
    """The original on a prefix against the original on the whole: outputs must not look ahead.

    Only outputs with a time axis can; what a many-to-one output is compared with is made of prefixes.
    """
    tally = Tally()
    for case in cases if original.sequence_outputs else []:
        chunk, expected = case.trial.chunk, case.trial.expected
        size = len(next(iter(chunk.values()))) // unit
        for ticks in {2, size - 1, *map(int, rng.integers(2, size, 3))}:
            prefix = {name: array[: ticks * unit] for name, array in chunk.items()}
            outputs = original.run(prefix, case.start, sequences_only=True).outputs
            for name, values in outputs.items():
                tally.add(name, values, expected[name][:ticks])
    return tally.check("causal", "the original on random prefixes")


def _unmixed(original: Original, sources: Sequence[Source], rng: np.random.Generator, unit: int) -> Check:
    """The original on a batch of three against each alone."""
    chunks = [draw(sources, rng, 6 * unit) for _ in range(3)]
    tally = Tally()
    for name, row, alone in original.rows(chunks):
        tally.add(name, row, alone)
    return tally.check("unmixed", "the original on a batch against each stream alone")


def _rounding(single: Original, case: _Case) -> Check:
    """For information: how far the original's own float32 is from its float64."""
    tally = Tally()
    tally.outputs(single.run(case.trial.chunk, case.start).outputs, case.trial)
    return tally.check("rounding", "for comparison, the original in float32")


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


def _believe(check: Check) -> None:
    if not check.passed:
        kind, why = _BELIEF[check.name]
        raise kind(f"{why}\n{check.row()}")
