"""speech_segments: the segments that silero-vad's own function finds, one hop at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel import Signal, TensorSpec
from runnel.checks import check_stage
from runnel.errors import NonFiniteError, PipelineError, SnapshotError
from runnel_plugins.speech_segments import SpeechSegments

SIGNAL = Signal((TensorSpec("output", "float32", (1,)),), 16000 / 512)


def rows(stage, probabilities, cuts=()):
    """Return all output of one stream as one chunk, and the number of time steps before the flush."""
    p = np.asarray(probabilities, np.float32).reshape(-1, 1)
    state, made, edges = stage.open(), [], [0, *sorted(cuts), len(p)]
    for a, b in itertools.pairwise(edges):
        state, out = stage.step(state, {"output": p[a:b]})
        made.append(out)
    made.append(stage.flush(state)[1])
    return {n: np.concatenate([m[n] for m in made]) for n in stage.outputs.names}


def segments(stage, probabilities, cuts=()):
    made = rows(stage, probabilities, cuts)
    return [(int(s), int(e)) for s, e in zip(made["start"], made["end"], strict=True) if e >= 0]


def batched_segments(stage, probabilities, cut):
    """Find the segments with two other streams in every batch."""
    p = np.asarray(probabilities, np.float32).reshape(-1, 1)
    streams = [1 - p, p, p[::-1]]
    states, found = [stage.open() for _ in streams], []
    for part in (slice(None, cut), slice(cut, None)):
        done = stage.step_many(states, [{"output": x[part]} for x in streams])
        states = [state for state, _ in done]
        found.append(done[1][1])
    found.append(stage.flush(states[1])[1])
    return [(int(s), int(e)) for f in found for s, e in zip(f["start"], f["end"], strict=True) if e >= 0]


# Levels on both sides of every threshold, and runs of them, which noise alone seldom makes.
levels = st.sampled_from([0.0, 0.1, 0.3, 0.36, 0.45, 0.5, 0.55, 0.8, 1.0])
runs = st.lists(st.tuples(levels, st.integers(1, 12)), max_size=25)


@settings(max_examples=300)  # many rules: more cases than the profile gives
@given(
    runs=runs,
    cuts=st.lists(st.integers(0, 100), max_size=4),
    threshold=st.sampled_from([0.1, 0.5, 0.8]),
    gap=st.sampled_from([None, 0.05, 0.3]),
    min_speech=st.sampled_from([0, 31.9, 32, 64, 250]),
    min_silence=st.sampled_from([0, 32, 33.3, 100, 300]),
    pad=st.sampled_from([0, 10, 16, 30, 31.3, 100, 300]),
    rate=st.sampled_from([8000, 16000]),
)
def test_segments_equal_silero_vads(runs, cuts, threshold, gap, min_speech, min_silence, pad, rate):
    oracle = pytest.importorskip("silero_vad").get_speech_timestamps_from_probs
    p = np.array([level for level, count in runs for _ in range(count)], np.float32)
    neg = None if gap is None else max(0.0, threshold - gap)
    stage = SpeechSegments(
        Signal(SIGNAL.tensors),
        threshold,
        neg,
        min_speech,
        min_silence,
        pad,
        hop=512 * rate // 16000,
        rate=rate,
    )
    want = oracle(
        p.tolist(), sampling_rate=rate, threshold=threshold, neg_threshold=neg,
        min_speech_duration_ms=min_speech, min_silence_duration_ms=min_silence, speech_pad_ms=pad,
    )  # fmt: skip
    want = [(s["start"], s["end"]) for s in want]
    assert segments(stage, p, [c * len(p) // 100 for c in cuts]) == want
    assert batched_segments(stage, p, len(p) // 3) == want


@pytest.mark.parametrize("seed", range(4))
def test_it_keeps_the_laws(seed):
    rng = np.random.default_rng(seed)
    p = (0.5 + 0.5 * np.sin(np.arange(300) / 5 + rng.standard_normal(300))).astype(np.float32)
    check_stage(lambda: SpeechSegments(SIGNAL), {"output": p[:, None]}, seed)


def test_a_segment_comes_as_soon_as_it_is_decided():
    # Ten hops of speech, then silence: the segment may have ended at hop 10, which is certain four hops (more
    # than 100 ms) later; by then the next segment can start no nearer than twice the padding.
    made = rows(SpeechSegments(SIGNAL), [0.9] * 10 + [0.0] * 10)
    (at,) = np.flatnonzero(made["end"] >= 0)
    assert at == 14
    assert (made["start"][at], made["end"][at]) == (0, 10 * 512 + 480)
    assert made["speech"].tolist() == [True] * 14 + [False] * 6
    np.testing.assert_array_equal(made["probability"][:10], np.float32(0.9))


def test_with_long_padding_a_segment_waits_for_its_neighbour():
    stage = SpeechSegments(SIGNAL, pad_ms=300)
    near = rows(stage, [0.9] * 10 + [0.0] * 6 + [0.9] * 10 + [0.0] * 30)
    far = rows(stage, [0.9] * 10 + [0.0] * 30)
    assert near["end"][near["end"] >= 0].tolist()[0] == 13 * 512  # they share the silence
    assert np.flatnonzero(near["end"] >= 0)[0] == 23  # the neighbour's eighth hop makes it longer than 250 ms
    assert np.flatnonzero(far["end"] >= 0)[0] == 28  # no neighbour within 600 ms


def test_flush_closes_the_open_segment():
    made = rows(SpeechSegments(SIGNAL), [0.0] * 4 + [0.9] * 20)
    assert len(made["end"]) == 25
    assert (made["start"][-1], made["end"][-1]) == (4 * 512 - 480, 24 * 512)
    assert (made["probability"][-1], made["speech"][-1]) == (0, False)


def test_a_probability_that_is_not_finite_is_refused():
    stage = SpeechSegments(SIGNAL)
    with pytest.raises(NonFiniteError, match="speech_segments: 'output' has nan at time step 1"):
        stage.step(stage.open(), {"output": np.array([[0.1], [np.nan]], np.float32)})


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"hops": -1}, "-1 hops"),
        ({"hops": 2**62}, "hops are more than a stream can have"),
        ({"hops": 2, "start": 1025}, "start is 1025, outside of the 1024 samples so far"),
        ({"hops": 2, "pending": -2}, "pending is -2"),
    ],
)
def test_impossible_states_are_not_restored(bad, says):
    stage = SpeechSegments(SIGNAL)
    with pytest.raises(SnapshotError, match=says):
        stage.load(
            stage.open(), {**stage.initial(), **{name: np.array(value) for name, value in bad.items()}}
        )


@pytest.mark.parametrize(
    ("signal", "options", "says"),
    [
        (
            Signal((TensorSpec("x", "float32", (2,)),)),
            {},
            r"one float32 number a time step, but x: float32 \(T, 2\)",
        ),
        (Signal((TensorSpec("x", "int64"),)), {}, "one float32 number a time step"),
        (
            Signal((TensorSpec("x", "float32"), TensorSpec("y", "float32"))),
            {},
            "one float32 number a time step",
        ),
        (SIGNAL, {"threshold": 1.5}, "threshold is 1.5"),
        (SIGNAL, {"threshold": 0.3, "neg_threshold": 0.4}, "neg_threshold is 0.4 and threshold is 0.3"),
        (SIGNAL, {"pad_ms": -1.0}, "pad_ms must be at least 0, not -1"),
        (SIGNAL, {"hop": 0}, "hop and rate must be positive"),
        (
            SIGNAL,
            {"hop": 256},
            "hop 256 at rate 16000 Hz makes 62.5 probabilities a second, but they arrive at 31.25",
        ),
    ],
)
def test_bad_options_are_refused_at_construction(signal, options, says):
    with pytest.raises(PipelineError, match=says):
        SpeechSegments(signal, **options)
