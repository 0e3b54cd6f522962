"""The most likely classes of each time step, by number and name.

label[0] = argmax over i of x[i], label[1] the next, and so on; of equal ones the lower number is first. No
unit, latency 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import runnel
from runnel.errors import NonFiniteError, PipelineError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Chunk

from . import _names
from ._choose import is_classes, one, with_tensors

FEW = 16  # up to this k one by one, which is faster than sorting all classes


class Labels(runnel.RowStage):
    """Find the `k` most likely classes of each time step.

    Input: a float32 array (T, ..., n) with one number for each of n classes on its last axis: scores or
    probabilities; `of` names it if there are several such arrays. Output, in its place:

    - ``label`` int64 (T, ..., k), with k = 1 (T, ...): the classes' numbers, the most likely first;
    - ``score`` float32, of the same shape: their values in the array.

    Other arrays pass. `names`, or `names_file` with one name per line: the names of all n classes in order;
    sinks then write names in place of numbers.

    Raises PipelineError if no such array arrives, for a k outside 1..n, and for names that are not n or
    unreadable; NonFiniteError if a time step has a NaN, because no class is then the most likely.
    """

    name = "labels"

    def __init__(
        self,
        inputs: Signal,
        names: list[str] | None = None,
        names_file: Path | None = None,
        k: int = 1,
        of: str | None = None,
    ) -> None:
        taken = one("labels", inputs, of, is_classes, "a float32 array with classes on its last axis")
        classes = taken.shape[-1]
        if not 1 <= k <= classes:
            raise PipelineError(f"labels: k must be in 1..{classes}, the number of classes, not {k}")
        called = _names.given("labels", "names and names_file", names, names_file)
        if called is not None:
            _names.check_count("labels", called, classes)
        shape = taken.shape[:-1] if k == 1 else (*taken.shape[:-1], k)
        self.inputs = inputs
        self.outputs = with_tensors(
            "labels", inputs, taken,
            TensorSpec("label", "int64", shape, called or ()), TensorSpec("score", "float32", shape),
        )  # fmt: skip
        self._of, self._k, self._rank = taken.name, k, len(taken.shape)
        self._pass = tuple(n for n in inputs.names if n != taken.name)

    def rows(self, arrays: Chunk) -> Chunk:
        given = arrays[self._of]
        flat = given.reshape(-1, given.shape[-1])
        ids, scores = top(flat, self._k)
        # numpy treats NaN as the largest, so the first class found shows it.
        first = scores[:, 0]
        if np.isnan(first).any():
            where = np.unravel_index(int(np.isnan(first).argmax()), given.shape[:-1])
            step = int(where[given.ndim - 1 - self._rank])
            raise NonFiniteError(
                f"labels: {self._of!r} has nan at time step {step}; the chunk was not applied"
            )
        shape = given.shape[:-1] if self._k == 1 else (*given.shape[:-1], self._k)
        made = {"label": ids.reshape(shape), "score": scores.reshape(shape)}
        for name in self._pass:
            made[name] = arrays[name]
        return made


def top(flat: Array, k: int) -> tuple[Array, Array]:
    """Return the indices and values of the k largest of each row, largest first.

    Of equal ones the first is taken. The first value of a row with a NaN is NaN.
    """
    at = np.arange(len(flat))
    if k == 1:
        ids = flat.argmax(-1)
        return ids.astype(np.int64, copy=False)[:, None], flat[at, ids][:, None]
    ids = np.empty((len(flat), k), np.int64)
    if k <= FEW:
        rest = flat.copy()
        for j in range(k):
            ids[:, j] = best = rest.argmax(-1)
            rest[at, best] = -np.inf
        scores = flat[at[:, None], ids]
        if not (scores == -np.inf).any():  # else a class already taken looks like one with -inf
            return ids, scores
    ids[:] = np.argsort(-flat, axis=-1, kind="stable")[:, :k]
    scores = flat[at[:, None], ids]
    scores[np.isnan(flat).any(-1), 0] = np.nan  # sorting puts it last
    return ids, scores


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"labels": Labels}
