"""Feedback: an output of a pipeline is an input of its next time step.

    y[t], state[t] = pipeline(x[t], u[t], state[t-1])   with   u[t] = y[t-1],   u[0] = the initial value

For example, a text generator's next input is the character that it sampled, and a controller uses its last
action. The loop is a stage around the whole pipeline: its state is the inner stages' states and the values
fed back.

If some inputs are not fed back, a chunk holds these inputs and is stepped tick by tick. If all are fed back,
a chunk replaces the fed-back values (a prompt), and `Steps` steps without any input. In both cases a chunk is
committed as a whole or not at all: its ticks step a fork of the state (`Stage.fork`), which lands after the
last tick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import NonFiniteError, PipelineError, RunnelError, SnapshotError, StageError, nearest
from ..loading import toml
from ..spec import Array, Signal, TensorSpec, initial_row
from ..stage import Arrays, Chunk, Results, Stage, State, Steps, as_error, require_finite
from .pipeline import Pipeline, States, freeze, join

_KEYS = ("output", "initial")


@dataclass(frozen=True, slots=True)
class LoopInput:
    """One value that is fed back from the output `source` to the input `target`."""

    target: TensorSpec
    source: str
    initial: Array  # one time step of the input; read-only


class LoopState(NamedTuple):
    """The state of one stream."""

    states: States  # of the inner stages
    fed: Arrays  # by input, (1, ...): the values for the next tick


def read(part: Mapping[str, Any], inner: Pipeline, where: str) -> Feedback:
    """Make the stage of a [feedback] table.

    The table is ``input = {output = "…", initial = …}``. Raises PipelineError, ModelError.
    """
    if not part:
        raise PipelineError(f'{where} names no input; for example: token = {{ output = "sampled" }}')
    loop_inputs = []
    for name in part:
        location = f"{where} {name}"
        entry = toml.table(part, name, where)
        toml.known(entry, _KEYS, location)
        target = _named(inner.inputs, name, location, "input")
        source = _named(inner.outputs, toml.text(entry, "output", location), location, "output")
        if (source.dtype, source.shape) != (target.dtype, target.shape):
            raise PipelineError(
                f"{location}: the output {source} cannot be the next input {target}: dtype and shape must be "
                "the same (a cast, or a one_hot, before the model?)"
            )
        value = entry.get("initial", 0)
        initial = initial_row(value, target.shape, target.dtype, location)
        if initial.dtype.kind != "f" and np.any(initial != np.asarray(value)):
            raise PipelineError(f"{location}: initial must be {target.dtype}, not {value!r:.80}")
        loop_inputs.append(LoopInput(target, source.name, initial))
    try:
        return Feedback(inner, loop_inputs)
    except PipelineError as error:
        raise PipelineError(f"{where}: {error.message}") from None


def _named(signal: Signal, name: str, location: str, kind: str) -> TensorSpec:
    found = next((tensor for tensor in signal.tensors if tensor.name == name), None)
    if found is None:
        hint = nearest(name, list(signal.names))
        raise PipelineError(f"{location}: the pipeline has no {kind} {name!r}{hint}; it has {signal}")
    return found


class Feedback(Stage):
    """A pipeline that feeds outputs back: one output per tick, latency 0.

    Raises PipelineError if an inner stage does not return one time step for each, at once.
    """

    name = "feedback"

    def __init__(self, inner: Pipeline, loop_inputs: Sequence[LoopInput]) -> None:
        for runner in inner.runners:
            stage = runner.stage
            if stage.ratio != (1, 1) or stage.latency:
                raise PipelineError(
                    f"stage {runner.label!r} cannot be in a loop: each of its stages must make one time step "
                    f"of each, at once; this one has ratio {stage.ratio} and latency {stage.latency}"
                )
        self.inner = inner
        self.loop_inputs = tuple(loop_inputs)
        fed = {loop_input.target.name for loop_input in loop_inputs}
        rest = tuple(tensor for tensor in inner.inputs.tensors if tensor.name not in fed)
        self.generates = not rest
        self.inputs = Signal(rest or inner.inputs.tensors, inner.inputs.rate)
        self.outputs = inner.outputs
        self.storage_bytes = inner.state_bytes
        # for each inner stage: (name in the loop's state, name in the stage's own state)
        self._keys = [
            [(f"{name}.{key}", key) for key in stage.initial()]
            for name, stage in zip(inner.stage_names, inner.stages, strict=True)
        ]
        names = [key for keys in self._keys for key, _ in keys] + [f"fed.{name}" for name in fed]
        if len(set(names)) < len(names):
            raise PipelineError(f"two states would have one name in the loop: {sorted(names)}")

    # States

    def initial(self) -> Arrays:
        """``STAGE.NAME``: an inner stage's state; ``fed.INPUT``: (1, ...), the value fed back."""
        return self._laid_open(
            [stage.initial() for stage in self.inner.stages],
            {loop_input.target.name: loop_input.initial[None] for loop_input in self.loop_inputs},
        )

    def open(self) -> LoopState:
        return LoopState(
            self.inner.open(),
            {loop_input.target.name: loop_input.initial[None] for loop_input in self.loop_inputs},
        )

    def load(self, state: State, arrays: Arrays) -> LoopState:
        fed = {}
        for loop_input in self.loop_inputs:
            name = loop_input.target.name
            value = arrays[f"fed.{name}"]
            if value.shape != (1, *loop_input.target.shape):
                raise SnapshotError(
                    f"{self.name}: {name!r} on its way back has shape {value.shape}, expected "
                    f"{(1, *loop_input.target.shape)}"
                )
            require_finite(name, value, self.name)
            fed[name] = value
        after = []
        for runner, keys, held in zip(self.inner.runners, self._keys, state.states, strict=True):
            try:
                after.append(freeze(runner.stage.load(held, {own: arrays[key] for key, own in keys})))
            except Exception as error:
                raise as_error(runner.label, error) from error
        return LoopState(tuple(after), freeze(fed))

    def dump(self, state: State) -> Arrays:
        return self._laid_open([arrays for _, arrays in self.inner.dump(state.states)], state.fed)

    def close(self, state: State) -> None:
        self.inner.close(state.states)

    def reclaim(self, states: Sequence[State]) -> None:
        self.inner.reclaim([state.states for state in states])

    def fork(self, state: State) -> LoopState:
        return LoopState(self.inner.fork(state.states), state.fed)

    def land(self, state: State, forked: State) -> LoopState:
        return LoopState(self.inner.land(state.states, forked.states), forked.fed)

    def drop(self, forked: State) -> None:
        self.inner.drop(forked.states)

    def _laid_open(self, stages: Sequence[Arrays], fed: Arrays) -> Arrays:
        laid = {
            key: arrays[own] for arrays, keys in zip(stages, self._keys, strict=True) for key, own in keys
        }
        return laid | {f"fed.{name}": value for name, value in fed.items()}

    # Steps

    def step(self, state: State, chunk: Chunk) -> tuple[LoopState, Chunk]:
        [result] = self.step_many([state], [chunk])
        if isinstance(result, RunnelError):
            raise result
        return result

    def flush(self, state: State) -> tuple[LoopState, Chunk]:
        after, made = self.inner.flush(state.states)
        return LoopState(after, state.fed), made

    def step_many(self, states: Sequence[LoopState], chunks: Sequence[Chunk]) -> Results:
        if not self.generates:
            return self._run(states, chunks, [len(next(iter(chunk.values()))) for chunk in chunks])
        results: list[tuple[LoopState, Chunk] | RunnelError] = [(state, {}) for state in states]
        prompts = [i for i, chunk in enumerate(chunks) if not isinstance(chunk, Steps)]
        if prompts:
            prompted = self._prompt([states[i] for i in prompts], [chunks[i] for i in prompts])
            for i, result in zip(prompts, prompted, strict=True):
                results[i] = result
        alone = [(i, chunk) for i, chunk in enumerate(chunks) if isinstance(chunk, Steps)]
        if alone:
            made = self._run(
                [states[i] for i, _ in alone], [c for _, c in alone], [c.count for _, c in alone]
            )
            for (i, _), result in zip(alone, made, strict=True):
                results[i] = result
        return results

    def _prompt(self, states: Sequence[LoopState], chunks: Sequence[Chunk]) -> Results:
        """Step chunks that hold all inputs: no tick depends on the tick before."""
        done = self._inner_step([state.states for state in states], chunks)
        results: list[tuple[LoopState, Chunk] | RunnelError] = []
        for chunk, state, result in zip(chunks, states, done, strict=True):
            try:
                if isinstance(result, RunnelError):
                    raise result
                after, made = result
                steps = len(next(iter(chunk.values())))
                fed = self._fed(made, steps) if steps else state.fed
                results.append((_kept(after, fed), made))
            except RunnelError as error:
                results.append(error)
        return results

    def _run(self, states: Sequence[LoopState], chunks: Sequence[Chunk], counts: Sequence[int]) -> Results:
        """Step tick by tick, on a fork if a stream has several ticks."""
        now = [state.states for state in states]
        forked: set[int] = set()
        try:
            return self._ticks(states, chunks, counts, now, forked)
        finally:  # forks that did not land, after any error
            try:
                self._drop(now, forked)
            except RunnelError:
                raise
            except BaseException:  # an interrupt: drop the remaining forks
                self._drop(now, forked)
                raise

    def _drop(self, now: Sequence[States], forked: set[int]) -> None:
        failed: RunnelError | None = None
        for i in list(forked):
            try:
                self.inner.drop(now[i])
            except RunnelError as error:
                failed = failed or error
            forked.discard(i)
        if failed:
            raise failed

    def _ticks(
        self,
        states: Sequence[LoopState],
        chunks: Sequence[Chunk],
        counts: Sequence[int],
        now: list[States],
        forked: set[int],
    ) -> Results:
        """`now`: each stream's current inner states; `forked`: the streams whose states are a fork."""
        fed = [state.fed for state in states]
        made: list[list[Chunk]] = [[] for _ in states]
        results: list[tuple[LoopState, Chunk] | RunnelError] = [
            (state, self.outputs.empty()) for state in states
        ]
        alive = []
        for i, count in enumerate(counts):
            try:
                if count > 1:
                    now[i] = self.inner.fork(now[i])
                    forked.add(i)
            except RunnelError as error:
                results[i] = error
                continue
            if count:
                alive.append(i)
        tick = 0
        while alive:
            ticks = [
                {**{name: array[tick : tick + 1] for name, array in chunks[i].items()}, **fed[i]}
                for i in alive
            ]
            done = self._inner_step([now[i] for i in alive], ticks)
            going = []
            for i, result in zip(alive, done, strict=True):
                try:
                    if isinstance(result, RunnelError):
                        raise result
                    now[i], out = result
                    fed[i] = self._fed(out, 1)
                    made[i].append(out)
                    if tick + 1 < counts[i]:
                        going.append(i)
                        continue
                    if i in forked:
                        now[i] = self._landed(states[i].states, now[i], i, forked)
                    results[i] = _kept(now[i], fed[i]), join(self.outputs, made[i])
                except RunnelError as error:
                    results[i] = _located(error, tick, counts[i])
            alive = going
            tick += 1
        return results

    def _landed(self, states: States, fork: States, i: int, forked: set[int]) -> States:
        try:
            after = self.inner.land(states, fork)
        except RunnelError:
            forked.discard(i)  # its storage was freed
            raise
        forked.discard(i)
        return after

    def _inner_step(
        self, states: Sequence[States], chunks: Sequence[Chunk]
    ) -> Sequence[tuple[States, Chunk] | RunnelError]:
        if len(states) > 1:
            return self.inner.step_many(states, chunks)
        try:
            return [self.inner.step(states[0], chunks[0])]
        except RunnelError as error:
            return [error]

    def _fed(self, made: Chunk, steps: int) -> Arrays:
        """Return the values to feed back from the last time step. Raises NonFiniteError, StageError."""
        fed = {}
        for loop_input in self.loop_inputs:
            values = made[loop_input.source]
            if len(values) != steps:
                raise StageError(f"the pipeline made {len(values)} time steps of {steps}, in a loop")
            require_finite(loop_input.source, values, "feedback")  # it would enter the stream's state
            fed[loop_input.target.name] = values if steps == 1 else values[-1:]
        return fed


def _kept(states: States, fed: Arrays) -> LoopState:
    """Return a stream's next state, with copies of the values fed back."""
    return LoopState(states, freeze({name: value.copy() for name, value in fed.items()}))


def _located(error: RunnelError, tick: int, count: int) -> RunnelError:
    """Return the error with its time step in the chunk."""
    if count == 1:
        return error
    placed = type(error)(f"in time step {tick} of {count}: {error.message}")
    placed.__cause__ = error
    if isinstance(error, NonFiniteError) and isinstance(placed, NonFiniteError):
        placed.state = error.state
    return placed
