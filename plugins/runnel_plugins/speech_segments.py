"""Speech segments: start and end of speech, from the probability of speech in each hop.

The rule is the one that Silero VAD publishes beside its models (``get_speech_timestamps_from_probs`` of the
package silero-vad), rewritten for one hop at a time. Speech begins at a hop with p >= threshold. It ends
where p first fell below neg_threshold, once min_silence_ms have passed without p >= threshold. A segment of
min_speech_ms or less is dropped. The others are widened by pad_ms on both sides; two segments nearer to each
other than twice that share the silence between them.

A segment is output as soon as no later hop can change it. How far its end is widened depends on the start of
the next one, so this can be some hops after its end.
"""

from __future__ import annotations

import math

import numpy as np

import runnel
from runnel.errors import PipelineError, SnapshotError
from runnel.hookspecs import StageFactory
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays, Chunk, State, require_finite

NONE = -1  # in a state or an output: no such sample
MAX_SAMPLES = 2**53  # of a stream: the largest count that float64 holds, more than a thousand years


class SpeechSegments(runnel.StackedStage):
    """Turn speech probabilities into segments.

    Input: one float32 array with one number per time step, the probability of speech in one hop of `hop`
    samples at `rate` Hz. Output, one time step per hop:

    - ``probability`` float32: as in the input;
    - ``speech`` bool: whether this hop lies in speech, by the two thresholds alone;
    - ``start``, ``end`` int64: a segment decided at this hop, in samples since the stream began, or -1. They
      count samples at `rate`, the model's: after a resampler, these are not the samples of the input.

    The flush outputs at most two more time steps, with probability 0, for segments that only the end decides.
    The end of the stream is taken to be that of the last hop. `neg_threshold` defaults to threshold - 0.15
    (at least 0.01). Latency 0: time step t has the probability and the decision of hop t.

    Raises PipelineError for other inputs, a threshold outside 0..1, negative durations, and if hop and rate
    contradict the signal's own rate; NonFiniteError for a NaN or an infinity in a chunk.
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
        """The state: all int64 (), in samples except `hops`; -1 for none.

        - `hops`: hops so far.
        - `start`: the start of the open segment.
        - `silence`: where the open segment may have ended.
        - `padded`: its widened start, once it is certain to be long enough.
        - `last_end`: the end, not widened, of the last segment that was kept.
        - `pending`: the widened start of that segment, until it is output.
        """
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
        """Run `step` for many streams, one hop of all streams at a time."""
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
    """One stream's state as plain ints during one call."""

    def __init__(self, rule: SpeechSegments, state: State) -> None:
        self.rule = rule
        self.hops, self.start, self.silence, self.padded, self.last_end, self.pending = (
            int(state[name]) for name in _NAMES
        )

    def state(self) -> Arrays:
        """Return the state as `SpeechSegments.initial` describes it."""
        return {name: np.array(getattr(self, name), np.int64) for name in _NAMES}

    def hop(self, p: float) -> tuple[int, int] | None:
        """Take one hop's probability; return the segment that it decides, or None.

        It never decides two: a segment is known to be kept before its end is known, and at that moment the
        segment before it is output.
        """
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
            # Its end will be here or later, so it is now certain to be kept.
            earliest_end = after if self.silence == NONE else self.silence
            if earliest_end - self.start > rule.min_speech:
                return self._keep()
        elif self.start == NONE and self.pending != NONE and after - self.last_end >= 2 * rule.pad:
            return self._give(int(self.last_end + rule.pad))  # any next segment starts too late to matter
        return None

    def finish(self) -> list[tuple[int, int]]:
        """End the stream; return the segments that this decides."""
        found, end = [], self.hops * self.rule.hop
        if self.start != NONE and end - self.start > self.rule.min_speech:
            if self.padded == NONE and (before := self._keep()):
                found.append(before)
            self._close(end)
        if self.pending != NONE:
            found.append(self._give(int(min(end, self.last_end + self.rule.pad))))
        return found

    def _keep(self) -> tuple[int, int] | None:
        """Keep the open segment: widen its start, and return the segment before it, if pending."""
        before = None
        share = self.rule.pad
        if self.last_end != NONE and self.start - self.last_end < 2 * self.rule.pad:
            share = (self.start - self.last_end) // 2
            if self.pending != NONE:
                before = self._give(self.last_end + share)
        self.padded = int(max(0, self.start - share))
        return before

    def _close(self, end: int) -> None:
        """End the open segment, and drop it unless it was certain to be kept."""
        if self.padded != NONE:
            self.pending, self.last_end = self.padded, end
        self.start = self.silence = self.padded = NONE

    def _give(self, end: int) -> tuple[int, int]:
        segment = (self.pending, end)
        self.pending = NONE
        return segment


class _Tracks:
    """Many streams' states during one call: as `_Track`, with masks instead of ifs.

    256 streams take a fifth of the time.
    """

    def __init__(self, rule: SpeechSegments, state: Arrays) -> None:
        self.rule = rule
        self.hops, self.start, self.silence, self.padded, self.last_end, self.pending = (
            state[name].copy() for name in _NAMES
        )

    def state(self) -> Arrays:
        return {name: getattr(self, name) for name in _NAMES}

    def hop(self, p: Array, rows: Array) -> None:
        """Take one hop of each stream; write the decided segments to `rows` (2, streams)."""
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
