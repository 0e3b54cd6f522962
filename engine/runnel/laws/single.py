"""The laws that can be checked on one stream; `checks` lists all laws by name.

Each docstring states a law and how to keep it. An author whose stage breaks the law is shown both.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from .. import snapshot as snapshots
from ..errors import SnapshotError
from ..spec import DTYPES, MAX_RANK, Array
from ..stage import Chunk, Stage, State, misdeclared
from .trial import LawBroken, Trial, copied, described, locked, memory, play, same

ROUNDS = 8  # how often `bounded` plays the samples to one stream
SPARE = 256  # bytes: what a state's array may hold in memory beyond twice its own size


def signal(trial: Trial) -> None:
    """The law: every output chunk has the names, dtypes and shapes of `outputs`, and one time axis.

    To keep it: declare the output in `outputs`, and start from `self.outputs.empty()` if there is none.
    """
    stage = trial.factory()
    if fault := misdeclared(stage):
        raise LawBroken("signal", fault)
    state, made = stage.open(), []
    _plain(stage, state, stage.initial(), "a new stream's")
    # First, as a stage that always fails must fail here.
    _stepped(stage, state, trial.part(0, trial.steps))
    for chunk in trial.cuts():
        state, out = _stepped(stage, state, chunk)
        made.append(out)
    made.append(stage.flush(state)[1])
    for out in made:
        conforms("signal", stage, out)


def _stepped(stage: Stage, state: State, chunk: Chunk) -> tuple[State, Chunk]:
    """Run `step`; report on which chunk it failed or what it returned."""
    steps = len(next(iter(chunk.values())))
    try:
        result = stage.step(state, chunk)
    except Exception as error:
        raise LawBroken(
            "signal" if steps else "empty",
            f"on a chunk of {steps} time steps the stage raised {type(error).__name__}: {error}",
        ) from error
    if not isinstance(result, tuple) or len(result) != 2:
        raise LawBroken("signal", f"`step` gave a {type(result).__name__}, not a pair: state, chunk")
    return result


def conforms(law: str, stage: Stage, out: Mapping[str, Array]) -> None:
    """Raise LawBroken unless the chunk is as the stage's outputs declare."""
    want = {t.name: (np.dtype(t.dtype), t.shape) for t in stage.outputs.tensors}
    if not all(isinstance(array, np.ndarray) for array in out.values()):
        kinds = ", ".join(f"{name}: {type(array).__name__}" for name, array in out.items())
        raise LawBroken(law, f"a chunk of {{{kinds}}} came out, and only numpy arrays may")
    got = {name: (array.dtype, array.shape[1:]) for name, array in out.items()}
    if got != want or any(not array.shape for array in out.values()):
        raise LawBroken(law, f"a chunk {described(out)} came out, but outputs say {stage.outputs}")
    if len({len(array) for array in out.values()}) > 1:
        raise LawBroken(law, f"the arrays of a chunk differ in length: {described(out)}")


def arrays(trial: Trial) -> None:
    """The law: a state is numpy arrays of plain numbers, with the names, dtypes and ranks of `initial`.

    To keep it: make all arrays in `initial`, with length 0 if they are empty at first, and return exactly
    those. A number is an array of shape (): np.array(3), and np.asarray(count + 1) after a sum.
    """
    stage = trial.factory()
    like = stage.initial()
    state = stage.open()
    _plain(stage, state, like, "a new stream's")
    for chunk in trial.cuts():
        state, _ = stage.step(state, chunk)
        _plain(stage, state, like, "after a step the")
    state, _ = stage.flush(state)
    _plain(stage, state, like, "after the flush the")


def _plain(stage: Stage, state: State, like: Mapping[str, Array], when: str) -> None:
    laid = stage.dump(state)
    if not isinstance(laid, Mapping):
        raise LawBroken("arrays", f"{when} state is a {type(laid).__name__}, not a dict of arrays")
    for name, value in laid.items():
        if not isinstance(value, np.ndarray) or value.dtype.name not in DTYPES or value.ndim > MAX_RANK:
            kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            raise LawBroken("arrays", f"{when} state {name!r} is a {kind}, not an array of numbers")
    try:
        snapshots.fit(stage.name, laid, like)
    except SnapshotError as error:
        raise LawBroken("arrays", f"{when} state is not as `initial` made it: {error}") from None


def determinism(trial: Trial) -> None:
    """The law: the same samples give the same outputs, bit by bit.

    To keep it: use no clock and no global random generator; draw random numbers from a generator whose state
    is in the stream's state.
    """
    first = play(trial.factory(), trial.cuts())
    again = play(trial.factory(), trial.cuts())
    same("determinism", first, again, "the same chunks, played twice")


def chunking(trial: Trial) -> None:
    """The law: however the samples are cut, the outputs and the flush concatenated are the same.

    To keep it: store in the state all earlier samples that an output needs; compute nothing per chunk (a
    mean, a first value, a rounding of lengths).
    """
    whole = play(trial.factory(), [trial.part(0, trial.steps)])
    single = play(trial.factory(), [trial.part(t, t + 1) for t in range(trial.steps)])
    same("chunking", whole, single, "one chunk, and one time step at a time", trial.tolerance)
    cut = play(trial.factory(), trial.cuts())
    same("chunking", whole, cut, "one chunk, and random cuts", trial.tolerance)


def empty(trial: Trial) -> None:
    """The law: an empty chunk gives no output and changes nothing after it.

    To keep it: make `step` work for arrays of length 0; an early `return state, self.outputs.empty()` does.
    """
    stage = trial.factory()
    for at in (0, trial.steps // 2):
        state, _ = stage.step(stage.open(), trial.part(0, at)) if at else (stage.open(), None)
        before = copied(stage.dump(state))
        state, out = stage.step(state, trial.part(0, 0))
        if any(len(array) for array in out.values()):
            raise LawBroken("empty", f"an empty chunk gave rows: {described(out)}")
        rest = play(stage, [trial.part(at, trial.steps)], state)
        without = play(stage, [trial.part(at, trial.steps)], stage.load(stage.open(), before))
        same("empty", rest, without, f"after an empty chunk at time step {at}, and without it")


def commit(trial: Trial) -> None:
    """The law: no step, failed step, flush or load changes the state or the arrays that it is given.

    To keep it: copy before you write (`level = state["level"].copy()`), and make new arrays for the output.
    In a pipeline the arrays given to a stage are read-only, even for a change that is undone afterwards.
    """
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
    initial = copied(stage.initial())
    stage.load(state, initial)
    same("commit", before, stage.dump(state), "a load changed the state whose place it was given")
    same("commit", copied(stage.initial()), initial, "a load changed the arrays that it was given")
    if own_state(stage):
        state = locked(stage.load(stage.open(), before))
        stage.flush(stage.step(state, locked(trial.part(half, trial.steps)))[0])


def own_state(stage: Stage) -> bool:
    """Whether the state holds the arrays themselves, unlike the model's."""
    return type(stage).open is Stage.open


def ownership(trial: Trial) -> None:
    """The law: a state shares no memory with a chunk: callers refill their buffers, and write to their
    outputs.

    To keep it: `.copy()` what goes into the state, or what goes out of it.
    """
    stage = trial.factory()
    chunk = trial.part(0, trial.steps)
    state, out = stage.step(stage.open(), chunk)
    before = copied(stage.dump(state))
    for what, held in (("input", chunk), ("output", out)):
        scribble(held)
        same("ownership", before, stage.dump(state), f"writing to the {what} chunk later changed the state")
    state, out = stage.flush(state)
    before = copied(stage.dump(state))
    scribble(out)
    same("ownership", before, stage.dump(state), "writing to what the flush gave changed the state")


def scribble(chunk: Mapping[str, Array]) -> None:
    """Write other numbers into every writable array of the chunk."""
    for array in chunk.values():
        if array.flags.writeable:
            array[...] = ~array if array.dtype == bool else array + 1


def round_trip(trial: Trial) -> None:
    """The law: a stream restored from a snapshot's bytes continues exactly as it would have.

    To keep it: keep everything in the state; if you define `load`, accept what `dump` returned, as read-only
    arrays.
    """
    for at in (0, 1, trial.steps // 2):
        stage, other = trial.factory(), trial.factory()
        state = stage.step(stage.open(), trial.part(0, at))[0] if at else stage.open()
        moved = other.load(other.open(), _by_bytes(stage, state))
        rest = [trial.part(at, at + 1), trial.part(at + 1, trial.steps)]
        same(
            "return", play(stage, rest, state), play(other, rest, moved),
            f"the stream after time step {at}, and its copy from a snapshot",
        )  # fmt: skip
    stage = trial.factory()
    ended, _ = stage.flush(stage.step(stage.open(), trial.part(0, trial.steps))[0])
    stage.load(stage.open(), _by_bytes(stage, ended))


def _by_bytes(stage: Stage, state: State) -> Mapping[str, Array]:
    """Return the state as `Engine.restore` passes it: read from a snapshot's bytes, locked."""
    blob = snapshots.encode(snapshots.Snapshot("", 0, False, ((stage.name, stage.dump(state)),)))
    ((_, laid),) = snapshots.decode(blob).stages
    return laid


def reset(trial: Trial) -> None:
    """The law: the initial state loaded into a used or flushed stream makes it a new one.

    To keep it: `open` returns the values of `initial`, and `load` keeps nothing of the state that it
    replaces.
    """
    stage = trial.factory()
    same(
        "reset", copied(stage.initial()), stage.dump(stage.open()), "`initial()`, and what a new stream holds"
    )
    fresh = play(trial.factory(), [trial.part(0, trial.steps)])
    for what in ("used", "flushed"):
        used, _ = stage.step(stage.open(), trial.part(0, trial.steps // 2))
        if what == "flushed":
            used, _ = stage.flush(used)
        again = play(stage, [trial.part(0, trial.steps)], stage.load(used, stage.initial()))
        same("reset", fresh, again, f"a new stream, and one that was {what} and reset")


def finite(trial: Trial) -> None:
    """The law: a NaN or an infinity is refused or passed on, never stored: a stream would carry it for ever.

    To keep it: call `runnel.stage.require_finite(name, array, self.name)` on what is about to be stored; a
    `StackedStage` does that for all its inputs.
    """
    half = trial.steps // 2
    for value in (np.nan, np.inf):
        stage = trial.factory()
        state, _ = stage.step(stage.open(), trial.part(0, half))
        try:
            with np.errstate(all="ignore"):
                state, _ = stage.step(state, trial.poisoned(half, value))
        except Exception:
            continue
        for name, held in stage.dump(state).items():
            if held.dtype.kind == "f" and not np.isfinite(held).all():
                raise LawBroken(
                    "finite", f"{value} in a chunk is {held[~np.isfinite(held)][0]} in state {name!r}"
                )


def bounded(trial: Trial) -> None:
    """The law: however long a stream lives, its state does not grow, nor does the memory behind it.

    To keep it: cut the stored arrays to a length that the options set, and `.copy()` them: a slice keeps the
    whole sliced array alive. If a stage may store more than the samples here fill, pass longer `samples`.
    """
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
            f"the state grew each time that {trial.steps} time steps were played again, at last to "
            f"{late[-1]} bytes",
        )
    if not own_state(stage):
        return
    state, _ = stage.step(stage.open(), trial.part(0, trial.steps))
    for name, value in stage.dump(state).items():
        if (behind := memory(value)) > 2 * value.nbytes + SPARE:
            raise LawBroken(
                "bounded",
                f"state {name!r} has {value.nbytes} bytes and is part of an array of {behind}, which stays "
                "in memory as long as it does",
            )
