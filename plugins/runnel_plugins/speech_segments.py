"""From the probability of speech, hop by hop, to segments of speech: where each starts and ends.

The rule is the one that Silero VAD publishes beside its models (``get_speech_timestamps_from_probs`` of
the package silero-vad), written as one step at a time. Speech begins at a hop with p >= threshold. It
ends where p first fell below neg_threshold, once min_silence_ms have passed without p >= threshold.
A segment of min_speech_ms or less is dropped. What stays is widened by pad_ms on both sides; two
segments nearer to each other than twice that share the silence between them.

A segment is given as soon as nothing that may still come can change it: how far its end is widened
depends on where the next one starts, so this can be some hops after its end.
"""

from __future__ import annotations

import math

import numpy as np

import runnel
from runnel.errors import PipelineError, SnapshotError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk, State, require_finite

NONE = -1  # in a state or a row: no such sample
MAX_SAMPLES = 2**53  # of a stream: what a float64 counts, and a thousand years and more


class SpeechSegments(runnel.StackedStage):
    """Turn speech probabilities into segments.

    Input: one float32 array with one number a time step, the probability of speech in one hop of `hop`
    samples at `rate` Hz. Output, one row a hop:

    - ``probability`` float32: as it came;
    - ``speech`` bool: whether this hop lies in speech, judged by the two thresholds alone;
    - ``start``, ``end`` int64: a segment decided at this hop, in samples since the stream began, or -1.
      They are samples at `rate`, the model's: where a resampler stands before it, not those that came in.

    The flush gives at most two rows more, for what only the end decides; their probability is 0. The end
    of the stream is taken to be that of the last hop. `neg_threshold` is threshold - 0.15 (at least 0.01)
    where it is not given. Latency 0: row t has the probability and the verdict of hop t.

    Raises PipelineError for other inputs, a threshold outside 0..1, negative durations, and where hop
    and rate contradict the signal's own rate; NonFiniteError for a NaN or an infinity in a chunk.
    """

    name = "speech_segments"

    def __init__(
        self,
        inputs: Signal,
        threshold: float = 0.5,
        neg_threshold: float | None = None,
        min_speech_ms: float = 250.0,
        min_silence_ms: float = 100.0,
        pad_ms: float = 30.0,
        hop: int = 512,
        rate: float = 16000.0,
    ) -> None:
        self._check(inputs, hop, rate)
        self.inputs = inputs
        self.outputs = Signal(
            (
                TensorSpec("probability", "float32"),
                TensorSpec("speech", "bool"),
                TensorSpec("start", "int64"),
                TensorSpec("end", "int64"),
            ),
            rate / hop,
        )
        self.threshold = threshold
        self.neg_threshold = max(threshold - 0.15, 0.01) if neg_threshold is None else neg_threshold
        if not 0 <= self.neg_threshold <= self.threshold <= 1:
            raise PipelineError(
                f"speech_segments: 0 <= neg_threshold <= threshold <= 1 must hold, but neg_threshold is "
                f"{self.neg_threshold:g} and threshold is {self.threshold:g}"
            )
        for name, value in (
            ("min_speech_ms", min_speech_ms), ("min_silence_ms", min_silence_ms), ("pad_ms", pad_ms)
        ):  # fmt: skip
            if not (math.isfinite(value) and value >= 0):
                raise PipelineError(f"speech_segments: {name} must be at least 0, not {value:g}")
        self.hop = hop
        self.min_speech, self.min_silence, self.pad = (  # in samples
            rate * ms / 1000 for ms in (min_speech_ms, min_silence_ms, pad_ms)
        )

    def _check(self, inputs: Signal, hop: int, rate: float) -> None:
        tensor = inputs.tensors[0]
        if len(inputs.tensors) != 1 or tensor.dtype != "float32" or math.prod(tensor.shape) != 1:
            raise PipelineError(f"speech_segments takes one float32 number a time step, but {inputs} arrives")
        if hop < 1 or not (math.isfinite(rate) and rate > 0):
            raise PipelineError(
                f"speech_segments: hop and rate must be positive, not {hop} samples and {rate:g} Hz"
            )
        if inputs.rate is not None and not math.isclose(inputs.rate * hop, rate, rel_tol=1e-6):
            raise PipelineError(
                f"speech_segments: hop {hop} at rate {rate:g} Hz makes {rate / hop:g} probabilities a "
                f"second, but they arrive at {inputs.rate:g} Hz: set hop and rate to those of the model"
            )

    def initial(self) -> Arrays:
        """All int64 (), in samples but for `hops`; -1 where there is none.

        `hops`: seen so far. `start`: the open segment's. `silence`: where it may have ended. `padded`: its
        widened start, once it is sure to be long enough. `last_end`: the end, not widened, of the last
        segment that stayed. `pending`: the widened start of that segment, until it is given."""
        return {name: np.array(0 if name == "hops" else NONE, np.int64) for name in _NAMES}

    def load(self, state: State, arrays: Arrays) -> State:
        samples = int(arrays["hops"]) * self.hop
        if not 0 <= samples <= MAX_SAMPLES:
            raise SnapshotError(
                f"speech_segments: {int(arrays['hops'])} hops are more than a stream can have"
            )
        for name in _NAMES[1:]:
            if not NONE <= int(arrays[name]) <= samples:
                raise SnapshotError(
                    f"speech_segments: {name} is {int(arrays[name])}, outside of the {samples} samples so far"
                )
        return super().load(state, arrays)

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        (name, given), *_ = chunk.items()
        require_finite(name, given, self.name)
        probability = np.array(given, np.float32).reshape(len(given))
        rows = np.full((2, len(probability)), NONE, np.int64)
        speech = np.zeros(len(probability), bool)
        track = _Track(self, state)
        for i, p in enumerate(probability.tolist()):
            found = track.hop(p)
            if found is not None:
                rows[:, i] = found
            speech[i] = track.start != NONE
        return track.state(), {
            "probability": probability, "speech": speech, "start": rows[0], "end": rows[1]
        }  # fmt: skip

    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        """`step` for many streams: the rule of `_Track`, a hop of all streams at a time."""
        (given,) = chunk.values()
        probability = given.reshape(given.shape[:2]).copy()
        rows = np.full((2, *probability.shape), NONE, np.int64)
        speech = np.zeros(probability.shape, bool)
        tracks = _Tracks(self, state)
        for i in range(probability.shape[1]):
            tracks.hop(probability[:, i].astype(np.float64), rows[:, :, i])
            speech[:, i] = tracks.start != NONE
        return tracks.state(), {
            "probability": probability, "speech": speech, "start": rows[0], "end": rows[1]
        }  # fmt: skip

    def flush(self, state: State) -> tuple[State, Chunk]:
        track = _Track(self, state)
        found = track.finish()
        rows = np.array(found, np.int64).reshape(len(found), 2)
        return track.state(), {
            "probability": np.zeros(len(found), np.float32),
            "speech": np.zeros(len(found), bool),
            "start": rows[:, 0],
            "end": rows[:, 1],
        }


_NAMES = ("hops", "start", "silence", "padded", "last_end", "pending")


class _Track:
    """One stream's state laid out as plain ints for the length of one call."""

    def __init__(self, rule: SpeechSegments, state: State) -> None:
        self.rule = rule
        self.hops, self.start, self.silence, self.padded, self.last_end, self.pending = (
            int(state[name]) for name in _NAMES
        )

    def state(self) -> Arrays:
        """What `SpeechSegments.initial` describes."""
        return {name: np.array(getattr(self, name), np.int64) for name in _NAMES}

    def hop(self, p: float) -> tuple[int, int] | None:
        """Take one hop's probability; the segment that this decides. It can never decide two: a segment is
        known to stay before its end is seen, and that is when the one before it is given."""
        rule = self.rule
        now = self.hops * rule.hop
        self.hops += 1
        if p >= rule.threshold:
            self.silence = NONE
            if self.start == NONE:
                self.start = now
        elif p < rule.neg_threshold and self.start != NONE:
            if self.silence == NONE:
                self.silence = now
            if now - self.silence >= rule.min_silence:
                self._close(self.silence)
        after = now + rule.hop
        if self.start != NONE and self.padded == NONE:
            # Its end will lie here or later, so this is when it is sure to stay.
            earliest_end = after if self.silence == NONE else self.silence
            if earliest_end - self.start > rule.min_speech:
                return self._keep()
        elif self.start == NONE and self.pending != NONE and after - self.last_end >= 2 * rule.pad:
            return self._give(int(self.last_end + rule.pad))  # a next segment would start too late to matter
        return None

    def finish(self) -> list[tuple[int, int]]:
        """The end of the stream: the segments that it decides."""
        found, end = [], self.hops * self.rule.hop
        if self.start != NONE and end - self.start > self.rule.min_speech:
            if self.padded == NONE and (before := self._keep()):
                found.append(before)
            self._close(end)
        if self.pending != NONE:
            found.append(self._give(int(min(end, self.last_end + self.rule.pad))))
        return found

    def _keep(self) -> tuple[int, int] | None:
        """The open segment will stay: widen its start, and give the one that waited for it."""
        before = None
        share = self.rule.pad
        if self.last_end != NONE and self.start - self.last_end < 2 * self.rule.pad:
            share = (self.start - self.last_end) // 2
            if self.pending != NONE:
                before = self._give(self.last_end + share)
        self.padded = int(max(0, self.start - share))
        return before

    def _close(self, end: int) -> None:
        """The open segment ends; unless it was sure to stay, it is forgotten."""
        if self.padded != NONE:
            self.pending, self.last_end = self.padded, end
        self.start = self.silence = self.padded = NONE

    def _give(self, end: int) -> tuple[int, int]:
        segment = (self.pending, end)
        self.pending = NONE
        return segment


class _Tracks:
    """Many streams' states side by side for the length of one call: what `_Track` does, with masks for ifs.

    Worth its lines: 256 streams in a fifth of the time."""

    def __init__(self, rule: SpeechSegments, state: Arrays) -> None:
        self.rule = rule
        self.hops, self.start, self.silence, self.padded, self.last_end, self.pending = (
            state[name].copy() for name in _NAMES
        )

    def state(self) -> Arrays:
        return {name: getattr(self, name) for name in _NAMES}

    def hop(self, p: Array, rows: Array) -> None:
        """Take a hop of each stream; what it decides goes into `rows` (2, streams)."""
        rule = self.rule
        now = self.hops * rule.hop
        self.hops += 1
        after = self.hops * rule.hop
        loud = p >= rule.threshold
        low = ~loud & (p < rule.neg_threshold) & (self.start != NONE)
        self.silence[loud] = NONE
        self.start = np.where(loud & (self.start == NONE), now, self.start)
        self.silence = np.where(low & (self.silence == NONE), now, self.silence)
        closed = low & (now - self.silence >= rule.min_silence)
        if closed.any():
            stays = closed & (self.padded != NONE)
            self.pending = np.where(stays, self.padded, self.pending)
            self.last_end = np.where(stays, self.silence, self.last_end)
            for values in (self.start, self.silence, self.padded):
                values[closed] = NONE
        young = (self.start != NONE) & (self.padded == NONE)
        keeps = young & (np.where(self.silence == NONE, after, self.silence) - self.start > rule.min_speech)
        if keeps.any():
            gap = self.start - self.last_end
            near = keeps & (self.last_end != NONE) & (gap < 2 * rule.pad)
            share = np.where(near, gap // 2, rule.pad)
            self._give(near, self.last_end + share, rows)
            widened = np.maximum(0, self.start - share).astype(np.int64)
            self.padded = np.where(keeps, widened, self.padded)
        over = (self.start == NONE) & (after - self.last_end >= 2 * rule.pad)
        self._give(over, self.last_end + rule.pad, rows)

    def _give(self, which: Array, end: Array, rows: Array) -> None:
        which = which & (self.pending != NONE)
        if which.any():
            rows[0, which], rows[1, which] = self.pending[which], end[which]
            self.pending[which] = NONE


@runnel.hookimpl
def runnel_stages() -> dict[str, StageFactory]:
    return {"speech_segments": SpeechSegments}
