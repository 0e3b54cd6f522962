"""CTC decoding: from the classes' scores per frame to tokens, by the best path.

The most likely class of each frame is taken. Of equal classes in a row the first is kept, and the class
`blank` is dropped, so a token occurs twice only if a blank lies between. (A. Graves, S. Fernández, F. Gomez,
J. Schmidhuber, Connectionist Temporal Classification, ICML 2006, "best path decoding".) A token is output at
its first frame: latency 0.
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

MAX_FRAMES = 2**53  # of a stream: more than any has, and well below the limit of int64
NONE = -1  # in the state: there was no frame before


class CtcGreedy(SparseStage):
    """Decode the outputs of a CTC model into tokens, one output row per token.

    Input: a float32 array (T, n), the scores or probabilities of n classes in each frame; `of` names it if
    there are several. Other arrays are dropped, because the output has a row per token, not per frame.
    Output:

    - ``token`` int64: the class;
    - ``frame`` int64: its first frame, counted from 0 at the stream's start;
    - ``score`` float32: its value in the array there.

    `blank` is the number of the class that means "no token"; -1 is the last one. Names of the classes, for
    sinks to write: `alphabet`, a text with one character per class, or `vocabulary`, a UTF-8 file with one
    name per line. There are n names, or n - 1 without the blank.

    Raises PipelineError if no such array arrives, if blank is not a class, and if the names are too many, too
    few or unreadable; NonFiniteError for a NaN in a chunk.
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
        """The state, both int64 ().

        `last`: the class of the last frame, -1 before the first. `frames`: frames so far.
        """
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
        # If a row has a NaN, argmax returns the NaN.
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
