"""The laws of batches: a stream behaves in a batch as it does alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..batch import Batch
from ..errors import RunnelError
from ..stage import Arrays, Chunk, Stage
from .single import scribble
from .trial import LawBroken, Trial, copied, join, play, same


def isolation(trial: Trial) -> None:
    """The law: streams that take turns at one stage object equal streams that have it to themselves.

    To keep it: write to nothing of `self` after `__init__`; what must be remembered is in the state.
    """
    ours = trial.cuts()
    theirs = [{n: a[::-1].copy() for n, a in chunk.items()} for chunk in reversed(ours)]
    alone = [play(trial.factory(), chunks) for chunks in (ours, theirs)]
    stage = trial.factory()
    states = [stage.open(), stage.open()]
    made: list[list[Chunk]] = [[], []]
    for turn in zip(ours, theirs, strict=True):
        for who, chunk in enumerate(turn):
            states[who], out = stage.step(states[who], chunk)
            made[who].append(copied(out))
    for who in (0, 1):
        made[who].append(copied(stage.flush(states[who])[1]))
        same("isolation", alone[who], join(made[who]), "a stream alone, and beside another", trial.tolerance)


@dataclass(frozen=True)
class _Case:
    """Some streams, each with a past, and their next chunks for `step_many`."""

    what: str
    pasts: Sequence[Chunk]
    chunks: Sequence[Chunk]

    def stacked(self, what: str) -> _Case:
        names = self.chunks[0]
        batch = Batch({name: np.stack([chunk[name] for chunk in self.chunks]) for name in names})
        return _Case(what, self.pasts, batch)


def batched(trial: Trial) -> None:
    """The law: `step_many` equals `step` stream by stream, for any neighbours in any order; an error takes
    the place of its own stream's result and affects no other.

    To keep it: make the stage a `runnel.RowStage` or a `runnel.StackedStage`, and count axes from the last;
    or leave `step_many` as it is.
    """
    one, many = trial.factory(), trial.factory()
    for case in _cases(trial):
        _compare(one, many, case, trial.tolerance)


def _cases(trial: Trial) -> Iterator[_Case]:
    steps = trial.steps
    edges = [0, 1, steps // 4, steps // 2, steps // 2 + 1]  # each stream has its own past
    pasts = [trial.part(0, edge) for edge in edges]
    ragged = [trial.part(a, steps - a // 2) for a in edges[:-1]] + [trial.part(0, 0)]
    yield _Case("a list of chunks of unequal length", pasts, ragged)
    length = steps - edges[-1]
    equal = [trial.part(a, a + length) for a in edges]
    case = _Case("a list of chunks of equal length", pasts, equal)
    yield case
    yield case.stacked("a Batch")
    yield _Case("", pasts[::-1], equal[::-1]).stacked("a Batch in another order")
    yield _Case("", pasts[:1], equal[:1]).stacked("a Batch of one")
    for n in (1, 0):
        single = [trial.part(a, a + n) for a in edges]
        yield _Case("", pasts, single).stacked(f"a Batch of {n} time steps")
    poisoned = trial.poisoned(edges[1])
    ragged[1], equal[1] = poisoned, {name: array[-length:] for name, array in poisoned.items()}
    yield _Case("a list of chunks of unequal length, one with NaN", pasts, ragged)
    yield _Case("", pasts, equal).stacked("a Batch with NaN in one")


def _compare(one: Stage, many: Stage, case: _Case, tolerance: float) -> None:
    singles = [_alone(one, past, chunk) for past, chunk in zip(case.pasts, case.chunks, strict=True)]
    states = [many.step(many.open(), past)[0] for past in case.pasts]
    before = [copied(many.dump(state)) for state in states]
    given = [copied(chunk) for chunk in case.chunks]
    results = many.step_many(states, case.chunks)
    if len(results) != len(states):
        raise LawBroken("batched", f"{case.what}: {len(states)} streams, but {len(results)} results")
    for i, single in enumerate(singles):
        where = f"{case.what}: stream {i}"
        same("batched", given[i], case.chunks[i], f"{where}: its chunk was changed")
        same("batched", before[i], many.dump(states[i]), f"{where}: the state that was given was changed")
        result = results[i]
        if isinstance(result, RunnelError) or isinstance(single, Exception):
            if not (isinstance(result, RunnelError) and isinstance(single, Exception)):
                raise LawBroken("batched", f"{where} gave {_short(result)}, alone it gave {_short(single)}")
            continue
        same("batched", single[1], result[1], f"{where}: alone, and in the batch", tolerance)
        same(
            "batched", single[0], many.dump(result[0]),
            f"{where}: its state alone, and in the batch", tolerance,
        )  # fmt: skip
    _owned(many, case, results)
    for state in states:
        many.close(state)


def _owned(stage: Stage, case: _Case, results: Sequence[object]) -> None:
    """Check that no state shares memory with an input or output chunk."""
    good = [result for result in results if isinstance(result, tuple)]
    after = [copied(stage.dump(state)) for state, _ in good]
    for chunk in (*case.chunks, *(out for _, out in good)):
        scribble(chunk)
    for (state, _), held in zip(good, after, strict=True):
        same(
            "batched", held, stage.dump(state),
            f"{case.what}: writing to chunks that went in or came out later changed a state",
        )  # fmt: skip


def _alone(stage: Stage, past: Chunk, chunk: Chunk) -> tuple[Arrays, Chunk] | Exception:
    """Return a stream's state and output after the chunk, or its error."""
    state, _ = stage.step(stage.open(), past)
    try:
        after, out = stage.step(state, copied(chunk))
        return copied(stage.dump(after)), copied(out)
    except Exception as error:
        return error
    finally:
        stage.close(state)


def _short(outcome: object) -> str:
    return f"{type(outcome).__name__}: {outcome}" if isinstance(outcome, Exception) else "a result"
