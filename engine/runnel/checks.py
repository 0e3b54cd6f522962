"""The laws that every stage keeps, as checks that an author's own tests can run.

    from runnel.checks import check_stage

    def test_gain_keeps_the_laws():
        check_stage(lambda: Gain(Signal((TensorSpec("x", "float32"),)), factor=0.5))

`LAWS` names them, each a function of a `Trial`; `check_stage` runs them all. They need numpy alone, and a
seed gives the same trial again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import numpy as np

from .errors import RunnelError
from .spec import Array
from .stage import Chunk, Stage, State
from .trial import LawBroken, Trial, copied, described, join, noise, play, same

ROUNDS = 8  # how often `bounded` plays the samples to one stream
POINTS = 8  # how many inputs `latency` changes


def check_stage(
    factory: Callable[[], Stage],
    samples: Chunk | None = None,
    seed: int = 0,
    tolerance: float = 1e-5,
) -> None:
    """Try every law of `LAWS` on the stage that `factory` makes; raise LawBroken for the first broken one.

    `factory` takes nothing and makes a new stage at each call. `samples` is one chunk of the stage's inputs,
    at least 16 time steps; without it, 256 steps of noise: give real ones to a stage for which noise means
    nothing (tokens, probabilities). Floats may differ by `tolerance` times the output's peak where the law
    lets the arithmetic be done in another order (chunking, isolation, batched); everything else is exact.
    """
    stage = factory()
    given = noise(stage, seed) if samples is None else {n: np.asarray(a) for n, a in samples.items()}
    if sorted(given) != sorted(stage.inputs.names) or any(len(a) < 16 for a in given.values()):
        raise ValueError(f"samples must hold at least 16 time steps of {stage.inputs}, not {sorted(given)}")
    trial = Trial(factory, given, seed, tolerance)
    for name, law in LAWS.items():
        try:
            law(trial)
        except LawBroken:
            raise
        except Exception as error:
            raise LawBroken(name, f"the stage raised {type(error).__name__}: {error}") from error


def signal(trial: Trial) -> None:
    """Every chunk that comes out has the names, dtypes and shapes of `outputs`, and one time axis."""
    stage = trial.factory()
    state, made = stage.open(), []
    for chunk in trial.cuts():
        state, out = stage.step(state, chunk)
        made.append(out)
    made.append(stage.flush(state)[1])
    want = {t.name: (np.dtype(t.dtype), t.shape) for t in stage.outputs.tensors}
    for out in made:
        got = {name: (array.dtype, array.shape[1:]) for name, array in out.items()}
        if got != want:
            raise LawBroken("signal", f"a chunk {described(out)} came out, but outputs say {stage.outputs}")
        if len({len(array) for array in out.values()}) > 1:
            raise LawBroken("signal", f"the arrays of a chunk differ in length: {described(out)}")


def arrays(trial: Trial) -> None:
    """A state is numpy arrays of plain numbers under names, and nothing else."""
    stage = trial.factory()
    state = stage.open()
    for chunk in trial.cuts():
        state, _ = stage.step(state, chunk)
        for name, value in stage.dump(state).items():
            if (
                not isinstance(name, str)
                or not isinstance(value, np.ndarray)
                or value.dtype.kind not in "biuf"
            ):
                kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
                raise LawBroken("arrays", f"state {name!r} is a {kind}, not an array of numbers")


def determinism(trial: Trial) -> None:
    """The same samples give the same outputs, bit by bit."""
    first = play(trial.factory(), trial.cuts())
    again = play(trial.factory(), trial.cuts())
    same("determinism", first, again, "the same chunks, played twice")


def chunking(trial: Trial) -> None:
    """However the samples are cut, the outputs and the flush concatenated are the same."""
    whole = play(trial.factory(), [trial.part(0, trial.steps)])
    single = play(trial.factory(), [trial.part(t, t + 1) for t in range(trial.steps)])
    same("chunking", whole, single, "one chunk, and one time step at a time", trial.tolerance)
    same(
        "chunking", whole, play(trial.factory(), trial.cuts()), "one chunk, and random cuts", trial.tolerance
    )


def empty(trial: Trial) -> None:
    """An empty chunk gives no rows and changes nothing after it."""
    stage = trial.factory()
    half = trial.steps // 2
    state, _ = stage.step(stage.open(), trial.part(0, half))
    before = copied(stage.dump(state))
    state, out = stage.step(state, trial.part(0, 0))
    if any(len(array) for array in out.values()):
        raise LawBroken("empty", f"an empty chunk gave rows: {described(out)}")
    rest = play(stage, [trial.part(half, trial.steps)], state)
    without = play(stage, [trial.part(half, trial.steps)], stage.load(stage.open(), before))
    same("empty", rest, without, "after an empty chunk, and without it")


def commit(trial: Trial) -> None:
    """Neither a step, nor one that fails, nor a flush changes the state or the chunk that it is given."""
    stage = trial.factory()
    half = trial.steps // 2
    state, _ = stage.step(stage.open(), trial.part(0, half))
    before = copied(stage.dump(state))
    for what, chunk in (("a step", trial.part(half, trial.steps)), ("a step on NaN", trial.poisoned(half))):
        given = copied(chunk)
        try:
            stage.step(state, chunk)
        except Exception:
            if what == "a step":
                raise
        same("commit", given, chunk, f"{what} changed its chunk")
        same("commit", before, stage.dump(state), f"{what} changed the state that it was given")
    stage.flush(state)
    same("commit", before, stage.dump(state), "a flush changed the state that it was given")


def ownership(trial: Trial) -> None:
    """A state shares no memory with a chunk: callers fill their buffers anew, and write to what they got."""
    stage = trial.factory()
    chunk = trial.part(0, trial.steps)
    state, out = stage.step(stage.open(), chunk)
    before = copied(stage.dump(state))
    for what, held in (("input", chunk), ("output", out)):
        for array in held.values():
            if array.flags.writeable:
                array[...] = ~array if array.dtype == bool else array + 1
        same("ownership", before, stage.dump(state), f"writing to the {what} chunk later changed the state")


def isolation(trial: Trial) -> None:
    """Streams that take turns at one stage object equal streams that have it to themselves."""
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


def round_trip(trial: Trial) -> None:
    """A state laid open and loaded elsewhere continues exactly as the stream itself does."""
    stage, other = trial.factory(), trial.factory()
    half = trial.steps // 2
    state, _ = stage.step(stage.open(), trial.part(0, half))
    moved = other.load(other.open(), copied(stage.dump(state)))
    rest = [trial.part(half, half + 1), trial.part(half + 1, trial.steps)]
    same("return", play(stage, rest, state), play(other, rest, moved), "the stream, and its copy from dump")


def reset(trial: Trial) -> None:
    """The initial state loaded into a used stream makes it a new one."""
    stage = trial.factory()
    same("reset", copied(stage.initial()), stage.dump(stage.open()), "a new stream does not hold `initial()`")
    used, _ = stage.step(stage.open(), trial.part(0, trial.steps // 2))
    fresh = play(trial.factory(), [trial.part(0, trial.steps)])
    again = play(stage, [trial.part(0, trial.steps)], stage.load(used, stage.initial()))
    same("reset", fresh, again, "a new stream, and one that was reset")


def batched(trial: Trial) -> None:
    """`step_many` equals `step` stream by stream; an error stands in its own place and touches no other."""
    one, many = trial.factory(), trial.factory()
    edges = [0, 1, trial.steps // 4, trial.steps // 2, trial.steps // 2 + 1]  # each stream has its own past
    chunks = [trial.part(a, trial.steps - a // 2) for a in edges[:-1]] + [trial.part(0, 0)]
    bad = trial.steps // 4
    for poisoned in (False, True):
        if poisoned:
            chunks[1] = trial.poisoned(bad)
        singles = [
            _single(one, one.step(one.open(), trial.part(0, a))[0], c)
            for a, c in zip(edges, chunks, strict=True)
        ]
        states = [many.step(many.open(), trial.part(0, a))[0] for a in edges]
        results = many.step_many(states, chunks)
        if len(results) != len(chunks):
            raise LawBroken("batched", f"{len(chunks)} streams went in, {len(results)} results came out")
        for i, (single, result) in enumerate(zip(singles, results, strict=True)):
            if isinstance(result, RunnelError) or isinstance(single, Exception):
                if not (isinstance(result, RunnelError) and isinstance(single, Exception)):
                    raise LawBroken(
                        "batched", f"stream {i} of a batch gave {result!r}, alone it gave {single!r}"
                    )
                continue
            same("batched", single[1], result[1], f"stream {i} alone, and in a batch", trial.tolerance)
            same(
                "batched", one.dump(single[0]), many.dump(result[0]),
                f"the state of stream {i} alone, and in a batch", trial.tolerance,
            )  # fmt: skip


def finite(trial: Trial) -> None:
    """A NaN is refused or passed on, never kept: a stream would carry it for ever."""
    stage = trial.factory()
    half = trial.steps // 2
    state, _ = stage.step(stage.open(), trial.part(0, half))
    try:
        state, _ = stage.step(state, trial.poisoned(half))
    except Exception:
        return
    for name, value in stage.dump(state).items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise LawBroken(
                "finite", f"a NaN of the chunk is in state {name!r}: call require_finite before it is kept"
            )


def bounded(trial: Trial) -> None:
    """However long a stream lives, its state does not grow."""
    stage = trial.factory()
    state, peaks = stage.open(), []
    for _ in range(ROUNDS):
        peak = 0
        for t in range(trial.steps):
            state, _ = stage.step(state, trial.part(t, t + 1))
            peak = max(peak, sum(value.nbytes for value in stage.dump(state).values()))
        peaks.append(peak)
    late = peaks[ROUNDS // 2 :]
    if all(a < b for a, b in pairwise(late)):
        raise LawBroken(
            "bounded",
            f"the state grew each time that {trial.steps} time steps were played again, at last to {late} "
            "bytes; a stage that may hold more than that needs longer samples here",
        )


def latency(trial: Trial) -> None:
    """The stated latency and ratio are the true ones, so far as they can be seen from outside.

    Row j lies at input time j * down / up. Two things are seen: how many inputs must be in before it comes
    out, and whether the row that is said to describe input k changes when input k does. A row stands for
    down/up inputs, and the stated latency may lie anywhere within those. What a stage with endless memory
    describes cannot be told from its rows; there only the first of the two is checked.
    """
    stage = trial.factory()
    if stage.ratio is None:
        return  # its rows come when they come: nothing is stated that could be wrong
    up, down = stage.ratio
    grain = -(-down // up)
    held, rows = 0, 0
    state = stage.open()
    for t in range(trial.steps):
        state, out = stage.step(state, trial.part(t, t + 1))
        for _ in range(len(next(iter(out.values())))):
            wait = t - rows * down // up
            if wait < 0:
                raise LawBroken(
                    "latency", f"row {rows} came at input {t}: too early for a ratio of {up}/{down}"
                )
            held, rows = max(held, wait), rows + 1
    if not rows:
        return  # all of it is held until the flush: longer samples would show more
    if stage.latency <= held - grain:
        raise LawBroken(
            "latency",
            f"{stage.latency} is stated, but a row came {held} inputs late at a ratio of {up}/{down}",
        )
    shift = max(0, stage.latency - held)  # what is not held back must be in the rows' content
    reached = {k: _changed(trial, k) for k in _points(trial.steps, shift)}
    if not any(changed.size for changed in reached.values()):
        return
    if not any((np.abs(rows * down // up - shift - k) < grain).any() for k, rows in reached.items()):
        k, changed = next((k, changed) for k, changed in reached.items() if changed.size)
        raise LawBroken(
            "latency",
            f"{stage.latency} is stated, so row {(k + shift) * up // down} is to describe input {k}; but a "
            f"change of that input shows in row {changed[0]} first, and not there",
        )


LAWS: Mapping[str, Callable[[Trial], None]] = {
    "signal": signal,
    "arrays": arrays,
    "determinism": determinism,
    "commit": commit,
    "ownership": ownership,
    "isolation": isolation,
    "return": round_trip,
    "reset": reset,
    "empty": empty,
    "chunking": chunking,
    "batched": batched,
    "finite": finite,
    "bounded": bounded,
    "latency": latency,
}
"""The laws by name, in the order in which `check_stage` tries them: what others rest on comes first."""


def _points(steps: int, shift: int) -> Iterable[int]:
    last = steps - shift - 1
    return sorted({int(k) for k in np.linspace(steps // 4, last, POINTS)}) if last >= steps // 4 else ()


def _changed(trial: Trial, k: int) -> Array:
    """The rows that differ when input k is another."""
    other = trial.part(0, trial.steps)
    for array in other.values():
        if array.dtype.kind == "f":
            array[k] += 1 + 4 * np.std(array)
        else:
            values = np.unique(array)
            array[k] = np.where(array[k] == values[0], values[-1], values[0])
    plain = play(trial.factory(), [trial.part(0, trial.steps)])
    moved = play(trial.factory(), [other])
    rows = min(len(next(iter(chunk.values()))) for chunk in (plain, moved))
    differs = np.zeros(rows, bool)
    for name, array in plain.items():
        differs |= (array[:rows] != moved[name][:rows]).reshape(rows, -1).any(axis=1)
    return np.flatnonzero(differs)


def _single(stage: Stage, state: State, chunk: Chunk) -> tuple[State, Chunk] | Exception:
    try:
        return stage.step(state, chunk)
    except Exception as error:
        return error
