"""The contenders: what a user writes by hand, and the same work through the engine.

Every loop takes its data from an endless cycle, so that two contenders that have run equally many
steps have seen the same; `agree` uses that to prove, before anything is timed, that they compute
the same. The hand-written loops do no checks and get their input in the very shape that the model
takes: what they could be charged with is left out, so that a ratio is never flattered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from runnel import Engine
from runnel.spec import Array, ModelSpec

from .measure import Loop


def session(source: str | Path | bytes) -> ort.InferenceSession:
    """With the options that the engine uses, so that the options make no difference."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return ort.InferenceSession(
        source if isinstance(source, bytes) else str(source), options, providers=["CPUExecutionProvider"]
    )


def hand(
    running: ort.InferenceSession, name: str, ticks: Iterable[Array], initial: Mapping[str, Array]
) -> Loop:
    """`session.run`, states fed back: `initial` by input name, in the order of the state outputs."""
    run, given, state, names = running.run, cycle(ticks), dict(initial), tuple(initial)

    def loop(calls: int) -> Any:
        nonlocal state
        for x in islice(given, calls):
            y, *after = run(None, {name: x, **state})
            state = dict(zip(names, after))  # noqa: B905 - nobody writes strict= in such a loop
        return y

    return loop


def hand_for(path: Path, spec: ModelSpec, ticks: Sequence[Array], slots: int = 1) -> Loop:
    """`hand` for a model that describes itself, with `slots` sequences in one batch.

    `ticks`: arrays (slots, ...) of one time step each.
    """
    running = session(path)
    [x], [y] = spec.inputs, spec.outputs
    outputs = [o.name for o in running.get_outputs()]
    if outputs != [y.name, *(s.output for s in spec.states)]:
        raise AssertionError(f"the hand-written loop reads outputs by position, but they are {outputs}")
    initial = {
        s.input: np.ascontiguousarray(
            np.broadcast_to(np.expand_dims(s.initial, s.slot_axis), s.sized(slots))
        )
        for s in spec.states
    }
    return hand(running, x.name, [t.reshape(x.sized(slots, 1)) for t in ticks], initial)


def feed(engine: Engine, chunks: Sequence[Array]) -> Loop:
    """`Stream.feed` on a stream of its own."""
    one, given = engine.open().feed, cycle(chunks)

    def loop(calls: int) -> Any:
        for chunk in islice(given, calls):
            y = one(chunk)
        return y

    return loop


def feed_many(engine: Engine, ticks: Sequence[Sequence[Array]]) -> Loop:
    """`Engine.feed_many`; `ticks` holds for each call one chunk a stream."""
    streams = [engine.open() for _ in ticks[0]]
    given = cycle([list(zip(streams, chunks, strict=True)) for chunks in ticks])
    many = engine.feed_many

    def loop(calls: int) -> Any:
        for pairs in islice(given, calls):
            y = many(pairs)
        return y

    return loop


def feed_each(engine: Engine, ticks: Sequence[Sequence[Array]]) -> Loop:
    """The same streams and chunks, one `Stream.feed` after the other."""
    streams = [engine.open() for _ in ticks[0]]
    given = cycle([list(zip(streams, chunks, strict=True)) for chunks in ticks])

    def loop(calls: int) -> Any:
        for pairs in islice(given, calls):
            y = [stream.feed(chunk) for stream, chunk in pairs]
        return y

    return loop


def agree(a: Loop, b: Loop, *, steps: int = 100, tolerance: float = 1e-4) -> None:
    """Raise AssertionError unless both give the same after so many calls from the start."""
    found_a, found_b = (np.ravel(np.array(loop(steps))) for loop in (a, b))
    if not np.allclose(found_a, found_b, rtol=tolerance, atol=tolerance):
        worst = float(np.abs(found_a - found_b).max()) if found_a.shape == found_b.shape else "their shapes"
        raise AssertionError(f"the contenders differ after {steps} steps by {worst}: no ratio means anything")


def silero_by_hand(path: Path, hops: Sequence[Array]) -> Loop:
    """The vendor's file, 512 new samples a call behind 64 of context, as its users write it."""
    run, given = session(path).run, cycle(hops)
    context, state, rate = np.zeros(64, np.float32), np.zeros((2, 1, 128), np.float32), np.array(16000)

    def loop(calls: int) -> Any:
        nonlocal context, state
        for fresh in islice(given, calls):
            window = np.concatenate((context, fresh))[None]
            y, state = run(None, {"input": window, "state": state, "sr": rate})
            context = fresh[-64:]
        return y

    return loop
