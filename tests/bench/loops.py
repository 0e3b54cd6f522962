"""The contenders: what a user writes by hand, and the same work through the engine.

Every loop takes its data from an endless cycle, so that two contenders that have run equally many
steps have seen the same; `agree` uses that to prove, before anything is timed, that they compute
the same. The hand-written loops do no checks and get their input in the very shape that the model
takes: what they could be charged with is left out, so that a ratio is never flattered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from runnel import Engine
from runnel.spec import Array, ModelSpec
from tests import silero

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
    running, [x] = session(path), spec.inputs
    in_order(running, spec)
    return hand(running, x.name, [t.reshape(x.sized(slots, 1)) for t in ticks], at_rest(spec, slots))


def bound(running: ort.InferenceSession, given: Mapping[str, Array], made: Mapping[str, Array]) -> Loop:
    """The graph alone: the same step again and again, inputs and outputs bound once."""
    binding = running.io_binding()
    for name, array in given.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for name, array in made.items():
        binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
    run = running.run_with_iobinding

    def loop(calls: int) -> Any:
        for _ in range(calls):
            run(binding)
        return made

    loop.keeps = (given, made)  # type: ignore[attr-defined]
    return loop


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


def framed_by_hand(
    running: ort.InferenceSession,
    name: str,
    shape: tuple[int, ...],
    hops: Iterable[Array],
    initial: Mapping[str, Array],
    constants: Mapping[str, Array],
) -> Loop:
    """`hand` for Silero: 512 new samples a call behind the last 64, joined as its users join them.

    `shape`: that in which the model takes one window.
    """
    run, given, state, names = running.run, cycle(hops), dict(initial), tuple(initial)
    context = np.zeros(silero.CONTEXT, np.float32)

    def loop(calls: int) -> Any:
        nonlocal context, state
        for fresh in islice(given, calls):
            window = np.concatenate((context, fresh)).reshape(shape)
            y, *after = run(None, {name: window, **state, **constants})
            state = dict(zip(names, after))  # noqa: B905 - as above
            context = fresh[-silero.CONTEXT :]
        return y

    return loop


def vendor_by_hand(hops: Iterable[Array]) -> Loop:
    """The vendor's own file of Silero."""
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(16000)
    running = session(silero.model("silero_vad"))
    return framed_by_hand(running, "input", (1, silero.WINDOW), hops, {"state": state}, {"sr": rate})


def reexport_by_hand(path: Path, spec: ModelSpec, hops: Iterable[Array]) -> Loop:
    """Our file of Silero."""
    running, [x] = session(path), spec.inputs
    in_order(running, spec)
    return framed_by_hand(running, x.name, x.sized(1, 1), hops, at_rest(spec, 1), {})


def in_order(running: ort.InferenceSession, spec: ModelSpec) -> None:
    """Raise AssertionError unless the outputs come as the loops read them: y, then the states."""
    expected = [*(y.name for y in spec.outputs), *(s.output for s in spec.states)]
    found = [o.name for o in running.get_outputs()]
    if len(spec.outputs) != 1 or found != expected:
        raise AssertionError(f"the hand-written loop expects the outputs {expected}, the file has {found}")


def at_rest(spec: ModelSpec, slots: int) -> dict[str, Array]:
    """Initial states of a batch, by input name."""
    return {
        s.input: np.repeat(np.expand_dims(s.initial, s.slot_axis), slots, s.slot_axis) for s in spec.states
    }


def agree(a: Loop, b: Loop, *, steps: int = 100, tolerance: float = 1e-4) -> None:
    """Raise AssertionError unless both give the same after so many calls from the start."""
    found_a, found_b = (np.ravel(np.array(loop(steps))) for loop in (a, b))
    if found_a.shape != found_b.shape or not np.allclose(found_a, found_b, rtol=0, atol=tolerance):
        raise AssertionError(
            f"no ratio means anything: after {steps} steps one contender gives {found_a[:4]}… "
            f"({found_a.size} numbers), the other {found_b[:4]}… ({found_b.size})"
        )


def call_each(function: Callable[..., Any], items: Iterable[Any], *more: Any) -> Loop:
    """A function of each item in turn."""
    given = cycle(items)

    def loop(calls: int) -> Any:
        for item in islice(given, calls):
            y = function(item, *more)
        return y

    return loop
