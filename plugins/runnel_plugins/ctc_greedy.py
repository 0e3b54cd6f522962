"""From the classes' scores, frame by frame, to what was said: connectionist temporal classification, decoded
greedily.

The likeliest class of each frame is taken; of classes that follow each other and are the same, the first
stays; the class `blank` is dropped. So a token counts twice only where a blank lies between. (A. Graves, S.
Fernández, F. Gomez, J. Schmidhuber, Connectionist Temporal Classification, ICML 2006, "best path
decoding".) A token is given at its first frame: latency 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import runnel
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk, State

from . import _names
from ._choose import one
from ._sparse import SparseStage

MAX_FRAMES = 2**53  # of a stream: more than any has, and far from where int64 ends
NONE = -1  # in the state: there was no frame before


class CtcGreedy(SparseStage):
    """Give the tokens that a CTC model's outputs spell, one row a token.

    Input: a float32 array (T, n), the scores or probabilities of n classes in each frame; `of` names it where
    there are several. The others end here: their rows are frames, the output's are tokens. Output:

    - ``token`` int64: the class;
    - ``frame`` int64: the frame where it begins, counted from 0 at the stream's start;
    - ``score`` float32: what the array holds for it there.

    `blank` is the number of the class that means "no token"; -1 is the last one. What the classes are
    called is for the sinks to write: `alphabet`, a text with one character a class, or `vocabulary`, a
    UTF-8 file with one name a line; n of them, or n - 1 that leave the blank out.

    Raises PipelineError where no such array arrives, for a blank that is none of the classes, and for names
    that are too many, too few or cannot be read; NonFiniteError for a NaN in a chunk.
    """

    name = "ctc_greedy"

    def __init__(
        self,
        inputs: Signal,
        blank: int = 0,
        alphabet: str | None = None,
        vocabulary: Path | None = None,
        of: str | None = None,
    ) -> None:
        taken = one("ctc_greedy", inputs, of, _fits, "a float32 array (T, n) with n classes")
        (classes,) = taken.shape
        if not -classes <= blank < classes:
            raise PipelineError(f"ctc_greedy: blank must be one of the {classes} classes, not {blank}")
        self._of, self._classes, self._blank = taken.name, classes, blank % classes
        called = _names.given("ctc_greedy", "alphabet and vocabulary", alphabet, vocabulary)
        if called is not None and len(called) == classes - 1:
            called = (*called[: self._blank], "", *called[self._blank :])
        if called is not None:
            _names.check_count("ctc_greedy", called, classes)
        self.inputs = inputs
        self.outputs = Signal(
            (
                TensorSpec("token", "int64", (), called or ()),
                TensorSpec("frame", "int64"),
                TensorSpec("score", "float32"),
            )
        )

    def initial(self) -> Arrays:
        """Both int64 (). `last`: the class of the last frame, -1 before the first. `frames`: seen so far."""
        return {"last": np.array(NONE, np.int64), "frames": np.array(0, np.int64)}

    def load(self, state: State, arrays: Arrays) -> State:
        last, frames = int(arrays["last"]), int(arrays["frames"])
        if not NONE <= last < self._classes or not 0 <= frames <= MAX_FRAMES:
            raise SnapshotError(
                f"ctc_greedy: class {last} after {frames} frames is nothing that a stream of "
                f"{self._classes} classes can have"
            )
        return super().load(state, arrays)

    def find(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Array, Chunk]:
        scores = chunk[self._of]
        steps = scores.shape[1]
        best = scores.argmax(-1)
        seen = np.concatenate([state["last"][:, None], best], axis=1)
        owners, at = np.nonzero((best != seen[:, :-1]) & (best != self._blank))
        # To argmax the largest of a row with a NaN is the NaN.
        bad = np.isnan(np.take_along_axis(scores, best[..., None], -1))
        if bad.any():
            raise NonFiniteError(
                f"ctc_greedy: {self._of!r} has nan at time step {int(np.nonzero(bad)[1][0])}; the chunk was "
                "not applied"
            )
        tokens = best[owners, at]
        rows = {
            "token": tokens.astype(np.int64, copy=False),
            "frame": state["frames"][owners] + at,
            "score": scores[owners, at, tokens],
        }
        return {"last": seen[:, -1].copy(), "frames": state["frames"] + steps}, owners, rows


def _fits(tensor: TensorSpec) -> bool:
    return tensor.dtype == "float32" and len(tensor.shape) == 1


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"ctc_greedy": CtcGreedy}
