"""Overlapping frames of a signal, for `frame`, `log_mel` and `mfcc`.

Frame k sees the samples ``[k*hop - lead, k*hop - lead + window)``. `lead` depends on the padding:

- ``none``: lead 0; the first frame comes after `window` samples. Latency window - hop.
- ``left``: lead window - hop zeros, so that each hop of samples makes a frame at once. Latency 0. (The
  framing of a model file.)
- ``center``: lead window // 2 zeros: frame k has sample k*hop in its middle. Latency window - window // 2 -
  hop, at least 0.
- ``mirror``: lead window // 2 - hop // 2 samples, which are the first samples mirrored: the middle of frame k
  is the middle of its hop. Latency window - lead - hop. (Kaldi's framing with ``snip_edges`` false.)

At the end the last frames are padded, or dropped. The padding is as few zeros as bring each sample into a
frame; for ``center`` window // 2 zeros; for ``mirror`` the last samples mirrored, until each whole half hop
has its frame.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable
from typing import Literal, get_args

import numpy as np

from runnel.errors import PipelineError, SnapshotError
from runnel.spec import Array, Signal
from runnel.stage import Arrays, Chunk, State, require_finite

from ._phased import PhasedStage

Padding = Literal["none", "left", "center", "mirror"]
Last = Literal["fill", "drop"]

MAX_WINDOW = 2**20  # samples that a stream may hold: 20 s of sound at 48 kHz

_BEGUN = np.array(True)
_NOT_BEGUN = np.array(False)


class Framed(PhasedStage):
    """A stage that makes one row of each frame of its only input.

    A subclass sets `name` and `outputs`, and defines `rows`.
    """

    def __init__(
        self, name: str, inputs: Signal, window: int, hop: int, padding: Padding, last: Last
    ) -> None:
        if len(inputs.tensors) != 1:
            raise PipelineError(f"{name} takes one array, but {inputs} arrive: drop the others before it")
        if not 1 <= window <= MAX_WINDOW:
            raise PipelineError(f"{name}: a window must have 1 to {MAX_WINDOW} samples, not {window}")
        if not 1 <= hop <= window:
            raise PipelineError(f"{name}: a hop must have 1 to {window} samples, the window, not {hop}")
        for what, value, kind in (("padding", padding, Padding), ("last", last, Last)):
            if value not in get_args(kind):
                raise PipelineError(f"{name}: {what} must be one of {get_args(kind)}, not {value!r}")
        self.name = name
        self.inputs = inputs
        self.window, self.hop, self.padding, self.last = window, hop, padding, last
        self.lead = {
            "none": 0, "left": window - hop, "center": window // 2, "mirror": window // 2 - hop // 2
        }[padding]  # fmt: skip
        self.mirrored = padding == "mirror"
        # At the mirrored end, an odd window may see the sample before its first one if hops are even.
        self._past = int(self.mirrored and window % 2 > hop % 2)
        self._seen = self._past + window
        self.ratio = (1, hop)
        self.latency = max(0, window - self.lead - hop)
        self._rate = inputs.rate / hop if inputs.rate else None
        (self._tensor,) = inputs.tensors
        zeros = 0 if self.mirrored else self.lead
        self._initial = np.zeros((zeros, *self._tensor.shape), self._tensor.dtype)

    @abc.abstractmethod
    def rows(self, frames: Array) -> Array:
        """Return a row per frame: (streams, n, window, ...) to (streams, n, ...), n >= 1.

        `frames` overlap in memory: do not write to them, and return no view of them.
        """

    def initial(self) -> Arrays:
        """The state.

        - `samples`: the samples that later frames will see, including zeros of the lead: (n, ...) in the
          input's dtype; n < `window`, or one more for some mirrored frames.
        - `begun`: bool (), whether a frame was made.
        """
        return {"samples": self._initial.copy(), "begun": _NOT_BEGUN.copy()}

    def phase(self, state: Arrays) -> Hashable:
        return len(state["samples"]), bool(state["begun"])

    def load(self, state: State, arrays: Arrays) -> State:
        """Load a state; SnapshotError for too many samples or too few.

        They would make too many frames, or never one.
        """
        held, begun = arrays["samples"], bool(arrays["begun"])
        least = self._seen - self.hop if begun else len(self._initial)
        if not least <= len(held) < self._seen or held.shape[1:] != self._tensor.shape:
            raise SnapshotError(
                f"{self.name}: the samples held have shape {held.shape}, expected {least} to "
                f"{self._seen - 1} of shape {self._tensor.shape}"
            )
        require_finite("samples", held, self.name)
        return super().load(state, arrays)

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        held = np.concatenate((state["samples"], chunk[self._tensor.name]), axis=1)
        begun = state["begun"]
        if self.mirrored and not begun[0] and held.shape[1] + self.lead >= self.window:
            held = np.concatenate((held[:, : self.lead + self._past][:, ::-1], held), axis=1)
        streams, length = held.shape[:2]
        count = (length - self._seen) // self.hop + 1
        if count <= 0:
            return {"samples": held, "begun": begun.copy()}, _nothing(streams, self.outputs)
        # Overlapping frames as a view: as numpy's sliding_window_view, but 10 µs faster.
        stream, sample = held.strides[:2]
        frames: Array = np.ndarray(
            (streams, count, self.window, *held.shape[2:]),
            held.dtype, held, self._past * sample, (stream, self.hop * sample, *held.strides[1:]),
        )  # fmt: skip
        after = {
            "samples": held[:, count * self.hop :].copy(),  # a copy: a view would keep all samples in memory
            "begun": begun | True,
        }
        return after, {self.outputs.tensors[0].name: self.rows(frames)}

    def flush(self, state: State) -> tuple[State, Chunk]:
        held, begun = state["samples"], bool(state["begun"])
        empty = not begun and len(held) == len(self._initial)  # no sample has arrived
        if self.last == "drop" or empty:
            return state, self.outputs.empty()
        if self.mirrored:
            if not begun:
                held = _mirrored(held, self._past + self.lead, 0)
            count = (len(held) - self._past - self.lead + self.hop // 2) // self.hop
            if count <= 0:
                return state, self.outputs.empty()
            held = _mirrored(held, 0, (count - 1) * self.hop + self._seen - len(held))
        else:
            missing = self.window // 2
            if self.padding != "center":
                # If a frame was made, window - hop of the samples held were in it.
                fresh = not begun or len(held) > self.window - self.hop
                missing = self.window - len(held) if fresh else 0
            held = np.concatenate((held, np.zeros((missing, *held.shape[1:]), held.dtype)))
        after, made = self.advance(
            {"samples": held[None], "begun": _BEGUN[None]}, {self._tensor.name: self._tensor.empty()[None]}
        )
        return {name: array[0, ...] for name, array in after.items()}, {n: a[0] for n, a in made.items()}


def _mirrored(samples: Array, before: int, after: int) -> Array:
    """Pad both ends with mirrored samples; the outermost sample occurs twice."""
    pads = [(before, after), *[(0, 0)] * (samples.ndim - 1)]
    padded: Array = np.pad(samples, pads, mode="symmetric")
    return padded


def _nothing(streams: int, signal: Signal) -> Chunk:
    return {t.name: np.zeros((streams, 0, *t.shape), t.dtype) for t in signal.tensors}
