"""Threshold with hysteresis (a Schmitt trigger): on above one level, off below another.

    y[t] = true if x[t] >= on, false if x[t] < off, else y[t-1]        with off <= on, y[-1] = false

(O. Schmitt, A thermionic trigger, 1938.) Levels in the unit of the input; latency 0.
"""

from __future__ import annotations

import numpy as np

import runnel
from runnel.errors import PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Signal, TensorSpec
from runnel.stage import Arrays, Chunk

from ._choose import is_float, one, with_tensors

LARGEST = float(np.finfo(np.float32).max)


class Threshold(runnel.StackedStage):
    """Compare each number with a level, or with two: one to turn on, a lower one to turn off.

    Input: a float32 array (T, ...); `of` names it if there are several. Output: the same array as bool, each
    element judged alone; other arrays pass. `off` defaults to `on`: then there is no memory. `below` reverses
    it: on if x <= on, off if x > off, which is then at least `on`.

    Raises PipelineError if no such array arrives, a level is not finite, or `off` is on the wrong side of
    `on`; NonFiniteError for a NaN or an infinity in a chunk.
    """

    name = "threshold"

    def __init__(
        self,
        inputs: Signal,
        on: float = 0.5,
        off: float | None = None,
        below: bool = False,
        of: str | None = None,
    ) -> None:
        self._taken = one("threshold", inputs, of, is_float, "a float32 array")
        off = on if off is None else off
        if not (abs(on) <= LARGEST and abs(off) <= LARGEST):
            raise PipelineError(f"threshold: on and off must be finite, not {on:g} and {off:g}")
        if on > off if below else off > on:
            raise PipelineError(
                f"threshold: off must be at {'least' if below else 'most'} on, but off is {off:g} and on is "
                f"{on:g}" + ("" if below else "; to come on where x is low, say below = true")
            )
        # Rounded as the input was: a sample of 0.7 must reach a level of 0.7.
        self._on, self._off = np.float32(on), np.float32(off)
        self._below = below
        self.inputs = inputs
        made = TensorSpec(self._taken.name, "bool", self._taken.shape)
        self.outputs = with_tensors("threshold", inputs, self._taken, made)

    def initial(self) -> Arrays:
        """The state `on`: bool in the shape of one time step, the last output."""
        return {"on": np.zeros(self._taken.shape, bool)}

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        x, before = chunk[self._taken.name], state["on"][:, None]
        if self._below:
            on, off = x <= self._on, x > self._off
        else:
            on, off = x >= self._on, x < self._off
        steps = x.shape[1]
        if steps == 1:
            verdict = on | (before & ~off)
        else:
            # For each time step, the last one that decided; 0 is the state.
            numbers = np.arange(1, steps + 1).reshape(-1, *(1,) * len(self._taken.shape))
            decided = np.maximum.accumulate(np.where(on | off, numbers, 0), axis=1)
            verdict = np.take_along_axis(np.concatenate([before, on], axis=1), decided, axis=1)
        made = {n: verdict if n == self._taken.name else a.copy() for n, a in chunk.items()}
        return {"on": (verdict[:, -1] if steps else state["on"]).copy()}, made


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"threshold": Threshold}
