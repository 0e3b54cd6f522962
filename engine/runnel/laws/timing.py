"""The laws of timing: latency and flush."""

from __future__ import annotations

import numpy as np

from ..spec import Array
from .single import conforms
from .trial import LawBroken, Trial, play

POINTS = 8  # how many inputs are changed to see which outputs change


def latency(trial: Trial) -> None:
    """The law: the stated latency and ratio are the true ones, as far as can be seen from outside.

    Output time step j lies at input time j * down / up. Two things are checked: how many inputs are needed
    before it comes, and whether the one that should describe input k changes if input k does. It stands for
    down/up inputs, and the stated latency may lie anywhere within those. If a stage has unlimited memory, its
    output does not show what it describes, and only the first is checked.

    To keep it: set `latency`, in input time steps, and `ratio`, (up, down); set ratio None if output comes at
    irregular times.
    """
    stage = trial.factory()
    if stage.ratio is None:
        return  # irregular output: nothing is stated that could be wrong
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
        return  # all output is held until the flush: longer samples would show more
    if stage.latency <= held - grain:
        raise LawBroken(
            "latency",
            f"{stage.latency} is stated, but a row came {held} inputs late at a ratio of {up}/{down}",
        )
    shift = max(0, stage.latency - held)  # the rest of the latency must be in the content of the outputs
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


def flush(trial: Trial) -> None:
    """The law: the flush returns what is still inside; on a new stream it is no error. If every time step
    makes rows, those of the last steps have come by then.

    To keep it: return from `flush` what `step` holds back, and let it work also if nothing is held.
    """
    stage = trial.factory()
    conforms("flush", stage, stage.flush(stage.open())[1])
    if stage.ratio is None or stage.ratio[1] != 1:
        return  # one output for several steps: the last steps may be too few for it
    rows = len(next(iter(play(trial.factory(), [trial.part(0, trial.steps)]).values())))
    missing = trial.steps - rows // stage.ratio[0]
    points = _points(trial.steps, 2 * missing)
    if missing <= 0 or not points or not all(_shows(trial, k) for k in points):
        return  # if not every change shows, a change that does not show proves nothing
    if not _shows(trial, trial.steps - 1):
        raise LawBroken(
            "flush",
            f"{trial.steps} time steps made {rows} rows, not {trial.steps * stage.ratio[0]}, and the last "
            "step shows in none of them",
        )


def _shows(trial: Trial, k: int) -> bool:
    return any(_changed(trial, k, sign).size for sign in (1, -1))


def _points(steps: int, shift: int) -> list[int]:
    last = steps - shift - 1
    return sorted({int(k) for k in np.linspace(steps // 4, last, POINTS)}) if last >= steps // 4 else []


def _changed(trial: Trial, k: int, sign: int = 1) -> Array:
    """Return the output time steps that change if input k changes."""
    other = trial.part(0, trial.steps)
    for array in other.values():
        if array.dtype.kind == "f":
            array[k] += sign * (1 + 4 * np.std(array))
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
