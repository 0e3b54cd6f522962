"""Taps: stages that show the chunks that pass through a pipeline, and pass them on.

If it has an `Observer`, the loader inserts taps at both ends and around each model. What a tap has shown is
not undone if a later stage fails, so taps are for an engine with one stream, as in `runnel plot`. Within a
[feedback] loop they are stages of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from ..loading.modelfile import ModelFile
from ..pipeline.pipeline import join
from ..probe import Probe
from ..spec import Signal, TensorSpec
from ..stage import Arrays, Chunk, Stage, State

OnChunk = Callable[[Chunk], None]
"""Called with the arrays (T, ...) that pass: copy them, and do not change them."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The times of a signal's rows: row k begins at time step ``k * step``.

    After a stage with irregular rows, the time step of a row is unknown, so a new `domain` begins. The time
    steps of the first domain are those of the pipeline's input.
    """

    domain: int = 0
    step: Fraction = Fraction(1)

    def after(self, stage: Stage) -> Clock:
        """Return the clock of the stage's output, if this is the clock of its input."""
        if stage.ratio is None:
            return Clock(self.domain + 1)
        up, down = stage.ratio
        return Clock(self.domain, self.step * down / up)


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a pipeline that is observed."""

    kind: Literal["input", "to", "from", "states", "output"]  # the pipeline's ends; a model's ends and states
    signal: Signal
    clock: Clock
    model: str = ""
    probe: Probe | None = None  # "from": describes the signal's tensors that show the model's inside
    exported: bool = False  # "states": whether the model describes itself


Observer = Callable[[Point], OnChunk]
"""Called for each point, when the pipeline is loaded."""


class Tap(Stage):
    """Show each chunk, and pass on its tensors `kept` (default: all)."""

    name = "tap"

    def __init__(self, inputs: Signal, on_chunk: OnChunk, kept: Sequence[TensorSpec] | None = None) -> None:
        self.inputs = inputs
        self.outputs = inputs if kept is None else Signal(tuple(kept), inputs.rate)
        self._on_chunk = on_chunk

    def initial(self) -> Arrays:
        return {}

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        self._on_chunk(chunk)
        # Copies: the next stage may be a plugin that stores its input.
        return state, {name: chunk[name].copy() for name in self.outputs.names}


class Watched(Stage):
    """A model that is stepped tick by tick, to show its states."""

    def __init__(self, model: Stage, on_chunk: OnChunk) -> None:
        self.name, self.inputs, self.outputs = model.name, model.inputs, model.outputs
        self.latency, self.ratio, self.storage_bytes = model.latency, model.ratio, model.storage_bytes
        self._model, self._on_chunk = model, on_chunk

    def initial(self) -> Arrays:
        return self._model.initial()

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        ticks = len(chunk[self.inputs.names[0]])
        if ticks == 1:
            return self._tick(state, chunk)
        made = []
        forked = self._model.fork(state)
        try:
            for tick in range(ticks):
                forked, out = self._tick(forked, {n: a[tick : tick + 1] for n, a in chunk.items()})
                made.append(out)
            joined = join(self.outputs, made)
        except BaseException:
            self._model.drop(forked)
            raise
        return self._model.land(state, forked), joined

    def _tick(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        after, out = self._model.step(state, chunk)
        self._on_chunk({name: array[None].copy() for name, array in self._model.dump(after).items()})
        return after, out

    def open(self) -> State:
        return self._model.open()

    def load(self, state: State, arrays: Arrays) -> State:
        return self._model.load(state, arrays)

    def dump(self, state: State) -> Arrays:
        return self._model.dump(state)

    def close(self, state: State) -> None:
        self._model.close(state)

    def reclaim(self, states: Sequence[State]) -> None:
        self._model.reclaim(states)

    def fork(self, state: State) -> State:
        return self._model.fork(state)

    def land(self, state: State, forked: State) -> State:
        return self._model.land(state, forked)

    def drop(self, forked: State) -> None:
        self._model.drop(forked)


def around(
    file: ModelFile, stages: Sequence[Stage], before: Sequence[Stage], arriving: Signal, observer: Observer
) -> list[Stage]:
    """Return a model's stages, which follow the stages `before`, with taps around them.

    Later stages see only the model's own outputs: the probe's additional outputs end here. The states of a
    model without a probe are shown. If no stage comes before, the pipeline's own tap shows the input.
    """
    from ..model.session import ModelStage

    name, spec, clock = file.file.stem, file.spec, _clock_after(before)
    made: list[Stage] = []
    if before:
        taken = tuple(t for t in arriving.tensors if t.name in stages[0].inputs.names)  # with their labels
        on_chunk = observer(Point("to", Signal(taken, arriving.rate), clock, name))
        made.append(Tap(arriving, on_chunk))
    for stage in stages:
        if isinstance(stage, ModelStage) and spec.probe is None and spec.states:
            states = tuple(TensorSpec(s.input, s.dtype, s.row_shape) for s in spec.states)
            exported = spec.certificate is not None
            signal = Signal(states, stage.outputs.rate)
            point = Point("states", signal, clock.after(stage), name, exported=exported)
            stage = Watched(stage, observer(point))
        made.append(stage)
        clock = clock.after(stage)
    signal, probe = made[-1].outputs, _renamed(file) if spec.probe else None
    shown = probe.outputs if probe else ()
    kept = [tensor for tensor in signal.tensors if tensor.name not in shown]
    return [*made, Tap(signal, observer(Point("from", signal, clock, name, probe)), kept)]


def between(stages: Sequence[Stage], observer: Observer) -> list[Stage]:
    """Return the stages of a whole pipeline with a tap at each end."""
    clock = _clock_after(stages)
    first, last = stages[0].inputs, stages[-1].outputs
    return [
        Tap(first, observer(Point("input", first, Clock()))),
        *stages,
        Tap(last, observer(Point("output", last, clock))),
    ]


def _clock_after(stages: Sequence[Stage]) -> Clock:
    """Return the clock of the last stage's output."""
    clock = Clock()
    for stage in stages:
        clock = clock.after(stage)
    return clock


def _renamed(file: ModelFile) -> Probe:
    """Return a model's probe with the names that its outputs have in a chunk."""
    probe = file.spec.probe
    assert probe is not None
    layers = []
    for layer in probe.layers:
        outputs = {letter: file.renamed.get(name, name) for letter, name in layer.outputs.items()}
        layers.append(replace(layer, outputs=outputs))
    return replace(probe, layers=tuple(layers))
