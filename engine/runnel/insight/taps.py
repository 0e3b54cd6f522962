"""Looking into a pipeline while it runs: stages that let somebody see what passes, and pass it on.

The loader puts them in where it is asked to (`Look`): at both ends, and around each model. What they show is
nobody's state and is not taken back where a later stage fails, so they are for an engine with one stream,
whose owner looks at it: `runnel plot`. Within a [feedback] loop they are stages of the loop.
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

Note = Callable[[Chunk], None]
"""Told what passes: arrays (T, ...) that are lent to it, to be copied and not changed."""


@dataclass(frozen=True, slots=True)
class Clock:
    """When the rows of a signal are: row k begins at ``k * step`` of time steps that others may count too.

    Behind a stage whose rows come when they come, nothing tells to which of the time steps before it a row
    belongs: there the next `domain` begins. The first one's time steps are the pipeline's input's.
    """

    domain: int = 0
    step: Fraction = Fraction(1)

    def after(self, stage: Stage) -> Clock:
        """Of what the stage makes, where this is of what it takes."""
        if stage.ratio is None:
            return Clock(self.domain + 1)
        up, down = stage.ratio
        return Clock(self.domain, self.step * down / up)


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a pipeline where it is looked at."""

    kind: Literal["input", "to", "from", "states", "output"]  # the pipeline's ends; a model's, and its states
    signal: Signal
    clock: Clock
    model: str = ""
    probe: Probe | None = None  # "from": which of the signal's tensors show the model's inside
    exported: bool = False  # "states": whether the model describes itself


Look = Callable[[Point], Note]
"""Asked for each point, when the pipeline is loaded."""


class Tap(Stage):
    """Show what passes, and pass on what is `kept` of it: all, where that is not said."""

    name = "tap"

    def __init__(self, inputs: Signal, note: Note, kept: Sequence[TensorSpec] | None = None) -> None:
        self.inputs = inputs
        self.outputs = inputs if kept is None else Signal(tuple(kept), inputs.rate)
        self._note = note

    def initial(self) -> Arrays:
        return {}

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        self._note(chunk)
        # Copies: what comes next may be a stage of somebody's own, which may keep what it is given.
        return state, {name: chunk[name].copy() for name in self.outputs.names}


class Watched(Stage):
    """A model that is stepped tick by tick, so that its states can be seen after each."""

    def __init__(self, model: Stage, note: Note) -> None:
        self.name, self.inputs, self.outputs = model.name, model.inputs, model.outputs
        self.latency, self.ratio, self.place_bytes = model.latency, model.ratio, model.place_bytes
        self._model, self._note = model, note

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
        self._note({name: array[None].copy() for name, array in self._model.dump(after).items()})
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
    file: ModelFile, stages: Sequence[Stage], before: Sequence[Stage], arriving: Signal, look: Look
) -> list[Stage]:
    """The stages of a model, which come after those `before`, with taps around them.

    What follows sees what the model itself makes: a probe's other outputs end here. Of a model that is no
    probe the states are watched. Where nothing comes before, the pipeline's own tap sees what goes in.
    """
    from ..model.session import ModelStage

    name, spec, clock = file.file.stem, file.spec, _clock_after(before)
    made: list[Stage] = []
    if before:
        taken = tuple(t for t in arriving.tensors if t.name in stages[0].inputs.names)  # with their labels
        note = look(Point("to", Signal(taken, arriving.rate), clock, name))
        made.append(Tap(arriving, note))
    for stage in stages:
        if isinstance(stage, ModelStage) and spec.probe is None and spec.states:
            states = tuple(TensorSpec(s.input, s.dtype, s.row_shape) for s in spec.states)
            exported = spec.certificate is not None
            signal = Signal(states, stage.outputs.rate)
            point = Point("states", signal, clock.after(stage), name, exported=exported)
            stage = Watched(stage, look(point))
        made.append(stage)
        clock = clock.after(stage)
    signal, probe = made[-1].outputs, _renamed(file) if spec.probe else None
    shown = probe.outputs if probe else ()
    kept = [tensor for tensor in signal.tensors if tensor.name not in shown]
    return [*made, Tap(signal, look(Point("from", signal, clock, name, probe)), kept)]


def between(stages: Sequence[Stage], look: Look) -> list[Stage]:
    """A whole pipeline's stages with a tap at each end."""
    clock = _clock_after(stages)
    first, last = stages[0].inputs, stages[-1].outputs
    return [
        Tap(first, look(Point("input", first, Clock()))),
        *stages,
        Tap(last, look(Point("output", last, clock))),
    ]


def _clock_after(stages: Sequence[Stage]) -> Clock:
    """Of what comes out of the last of them."""
    clock = Clock()
    for stage in stages:
        clock = clock.after(stage)
    return clock


def _renamed(file: ModelFile) -> Probe:
    """A model's probe, by the names that its outputs have in a chunk."""
    probe = file.spec.probe
    assert probe is not None
    layers = []
    for layer in probe.layers:
        outputs = {letter: file.renamed.get(name, name) for letter, name in layer.outputs.items()}
        layers.append(replace(layer, outputs=outputs))
    return replace(probe, layers=tuple(layers))
