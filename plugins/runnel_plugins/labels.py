"""The likeliest classes of a row, the likeliest first, by their numbers and names.

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

FEW = 16  # up to so many are found one by one, which is faster than to sort all classes


class Labels(runnel.RowStage):
    """Give the `k` likeliest classes of each row.

    Input: a float32 array (T, ..., n) with one number for each of n classes on its last axis: scores or
    probabilities; `of` names it where there are several such arrays. Output, in its place:

    - ``label`` int64 (T, ..., k), with k = 1 (T, ...): the classes' numbers, the likeliest first;
    - ``score`` float32, of the same shape: what the array holds for them.

    Other arrays pass. `names`, or `names_file` with a name a line: what the classes are called, all n of them
    in order; sinks then write names in place of numbers.

    Raises PipelineError where no such array arrives, for a k outside 1..n, and for names that are not n or
    cannot be read; NonFiniteError for a row with a NaN, since there is no likeliest then.
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
        # The largest of a row with a NaN is NaN to numpy, so that the first found shows it.
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
    """The k largest of each row of (rows, n), largest first and of equal ones the first: which, and what.

    A row with a NaN gives NaN first.
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
        if not (scores == -np.inf).any():  # else what was found cannot be told from what was there
            return ids, scores
    ids[:] = np.argsort(-flat, axis=-1, kind="stable")[:, :k]
    scores = flat[at[:, None], ids]
    scores[np.isnan(flat).any(-1), 0] = np.nan  # sorting puts it last
    return ids, scores


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"labels": Labels}
