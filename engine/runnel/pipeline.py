"""Stages in a row: the path of a chunk through them, for one stream and for many.

A stream's state is the tuple of its stages' states. The functions here return the next tuple and
never change the one that they were given; the caller commits by keeping it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from . import state as snapshots
from .errors import ChunkError, EmptyChunkError, PipelineError, RunnelError, SnapshotError, StageError
from .framing import Frame
from .spec import Array, ModelSpec, Signal
from .stage import Arrays, Chunk, Stage, State, as_error

States = tuple[State, ...]


class Pipeline:
    """Immutable once made; shared by all streams of an engine."""

    def __init__(self, stages: Sequence[Stage], model: ModelSpec | None, identity: Mapping[str, Any]) -> None:
        if not stages:
            raise PipelineError("a pipeline needs at least one stage")
        for before, after in pairwise(stages):
            _check_fit(before, after)
        self.stages = tuple(stages)
        self.model = model
        self.inputs: Signal = stages[0].inputs
        self.outputs: Signal = stages[-1].outputs
        self.latency = _latency(stages)
        # What a stage's results are checked against; the model (which keeps states elsewhere) and the
        # framing are the engine's own, and proved by its tests.
        self._declared = [
            None if isinstance(s, Frame) or type(s).open is not Stage.open else _declared(s) for s in stages
        ]
        # A stage of somebody's own might keep what it is given, and that is the caller's memory.
        self._lends = self._declared[0] is not None
        # (states, chunk) -> (next states, what the chunk makes); raises errors of the tree.
        self.step: Callable[[States, Chunk], tuple[States, Chunk]]
        alone = len(stages) == 1 and self._declared[0] is None
        self.step = self._step_only if alone else self._step_all
        self._step_of_only = stages[0].step
        # A snapshot continues only in a pipeline with this model, these stages and these options.
        text = json.dumps(identity, sort_keys=True, default=str)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._only_in = self.inputs.tensors[0] if len(self.inputs.tensors) == 1 else None
        self.only_out = self.outputs.names[0] if len(self.outputs.names) == 1 else None
        # What the shortest path at the door compares with: one tick of the only input.
        self.tick_name = self._only_in.name if self._only_in else ""
        self.tick_dtype = np.dtype(self._only_in.dtype) if self._only_in else None
        self.tick_shape = (1, *self._only_in.shape) if self._only_in else None

    # At the door

    def accept(self, chunk: Array | Chunk) -> Chunk:
        """The chunk as a dict, checked: names, types, dtypes, shapes, at least one time step.

        Whether the numbers are finite is for the stages to check, since some take NaN on purpose.
        """
        only = self._only_in
        if only is not None:
            array: Any = chunk
            if isinstance(chunk, dict) and len(chunk) == 1:
                array = chunk.get(only.name)
            plain = array.__class__ is np.ndarray and array.dtype is self.tick_dtype
            if plain and array.shape[1:] == only.shape and array.shape and array.shape[0]:
                return {only.name: array}
            if isinstance(chunk, np.ndarray):
                chunk = {only.name: chunk}
        return self._accept(chunk)

    def _accept(self, chunk: Any) -> Chunk:
        wanted = self.inputs.tensors
        if isinstance(chunk, np.ndarray):
            raise ChunkError(
                f"this pipeline has {len(wanted)} inputs: give a dict of arrays with {self.inputs}"
            )
        if not isinstance(chunk, Mapping):
            raise ChunkError(f"a chunk is a numpy array or a dict of them, not {type(chunk).__name__}")
        if set(chunk) != set(self.inputs.names):
            raise ChunkError(
                f"the chunk holds {sorted(map(str, chunk))}, expected {sorted(self.inputs.names)}"
            )
        lengths: dict[str, int] = {}
        for spec in wanted:
            array = chunk[spec.name]
            if not isinstance(array, np.ndarray):
                raise ChunkError(
                    f"{spec.name!r} is a {type(array).__name__}, expected a numpy array ({spec})"
                )
            if isinstance(array, np.ma.MaskedArray):
                raise ChunkError(f"{spec.name!r} is a masked array: fill its gaps first, as .filled(0) does")
            if array.dtype != spec.dtype:
                raise ChunkError(
                    f"{spec.name!r} is {array.dtype}, expected {spec.dtype}: "
                    f"convert it with .astype({spec.dtype!r})"
                )
            if array.ndim != 1 + len(spec.shape) or array.shape[1:] != spec.shape:
                raise ChunkError(
                    f"{spec.name!r} has shape {array.shape}, expected {spec}{_hint(array, spec.shape)}"
                )
            lengths[spec.name] = len(array)
        if len(set(lengths.values())) > 1:
            raise ChunkError(f"the chunk's arrays differ in time steps: {lengths}")
        if not next(iter(lengths.values())):
            raise EmptyChunkError("the chunk has no time steps: an empty chunk is not applied")
        return dict(chunk)

    def answer(self, chunk: Any, out: Chunk) -> Any:
        """What the caller gets: a bare array for a bare array (or for none), if there is one output."""
        if self.only_out is not None and (chunk is None or isinstance(chunk, np.ndarray)):
            return out[self.only_out]
        return out

    # One stream

    def open(self) -> States:
        """A place for a new stream. LimitError leaves nothing half open."""
        made: list[State] = []
        try:
            for stage in self.stages:
                made.append(_freeze(stage.open()))  # noqa: PERF401 - what was opened must be known
        except Exception as error:
            for stage, state in zip(self.stages, made, strict=False):
                stage.close(state)
            raise as_error("open", error) from error
        return tuple(made)

    def close(self, states: States) -> None:
        """Give every stage's place back, whatever one of them raises; that is raised at the end."""
        failed: RunnelError | None = None
        for i, (stage, state) in enumerate(zip(self.stages, states, strict=True)):
            try:
                stage.close(state)
            except Exception as error:
                failed = failed or as_error(f"{i}: {stage.name}", error)
        if failed:
            raise failed

    def _step_only(self, states: States, chunk: Chunk) -> tuple[States, Chunk]:
        """`step` where the model is alone: the shortest path of all."""
        try:
            state, out = self._step_of_only(states[0], chunk)
        except Exception as error:
            raise as_error(f"0: {self.stages[0].name}", error) from error
        return (state,), out

    def _step_all(self, states: States, chunk: Chunk) -> tuple[States, Chunk]:
        after = list(states)
        if self._lends:
            chunk = {name: array.copy() for name, array in chunk.items()}
        for i, stage in enumerate(self.stages):
            try:
                after[i], chunk = self._checked(i, stage.step(states[i], chunk))
            except Exception as error:
                raise as_error(f"{i}: {stage.name}", error) from error
            if i + 1 < len(after) and not len(next(iter(chunk.values()))):
                return tuple(after), self.outputs.empty()  # nothing left for the stages that follow
        return tuple(after), chunk

    def flush(self, states: States) -> tuple[States, Chunk]:
        """End of stream: each stage gets what the ones before it held back, then is flushed itself."""
        after = list(states)
        chunk: Chunk = self.inputs.empty()
        for i, stage in enumerate(self.stages):
            try:
                made: list[Chunk] = []
                if len(next(iter(chunk.values()))):
                    after[i], out = self._checked(i, stage.step(after[i], chunk))
                    made.append(out)
                after[i], out = self._checked(i, stage.flush(after[i]))
            except Exception as error:
                raise as_error(f"{i}: {stage.name}", error) from error
            chunk = join(stage.outputs, [*made, out])
        return tuple(after), chunk

    def reset(self, states: States) -> States:
        """`states`' places holding the initial states; raises errors of the tree."""
        after = []
        for i, (stage, state) in enumerate(zip(self.stages, states, strict=True)):
            try:
                after.append(_freeze(stage.load(state, stage.initial())))
            except Exception as error:
                raise as_error(f"{i}: {stage.name}", error) from error
        return tuple(after)

    def dump(self, states: States) -> tuple[tuple[str, Arrays], ...]:
        """Each stage's name (made unique by its position where it occurs twice) and its state laid open."""
        return tuple((n, s.dump(x)) for n, s, x in zip(self._names(), self.stages, states, strict=True))

    def load(self, states: States, snapshot: snapshots.Snapshot) -> States:
        """`states`' places holding what the snapshot says; SnapshotError if it is not of this pipeline."""
        if snapshot.pipeline != self.fingerprint or len(snapshot.stages) != len(self.stages):
            raise SnapshotError(
                f"the snapshot is of pipeline {snapshot.pipeline}, this one is {self.fingerprint}: "
                "the model, the stages and their options must be the same"
            )
        loaded = []
        for (name, arrays), stage, state in zip(snapshot.stages, self.stages, states, strict=True):
            snapshots.fit(name, arrays, stage.initial())
            try:
                loaded.append(_freeze(stage.load(state, arrays)))
            except Exception as error:
                raise SnapshotError(f"stage {name!r} does not take the snapshot's state: {error}") from error
        return tuple(loaded)

    def _names(self) -> list[str]:
        names = [s.name for s in self.stages]
        return [n if names.count(n) == 1 else f"{n}-{i}" for i, n in enumerate(names)]

    # Many streams

    def step_many(
        self, states: Sequence[States], chunks: Sequence[Chunk]
    ) -> list[tuple[States, Chunk] | RunnelError]:
        """`step` for several streams, stage by stage; an error stands in its stream's place."""
        if self._lends:
            chunks = [{name: array.copy() for name, array in chunk.items()} for chunk in chunks]
        if len(self.stages) == 1:
            done = self._many(0, [s[0] for s in states], chunks)
            return [((r[0],), r[1]) if isinstance(r, tuple) else r for r in done]
        after = [list(s) for s in states]
        flowing: list[Chunk] = list(chunks)
        failed: dict[int, RunnelError] = {}
        alive = list(range(len(chunks)))
        last = len(self.stages) - 1
        for k in range(last + 1):
            done = self._many(k, [after[i][k] for i in alive], [flowing[i] for i in alive])
            going = []
            for i, result in zip(alive, done, strict=True):
                if isinstance(result, RunnelError):
                    failed[i] = result
                    continue
                after[i][k], flowing[i] = result
                if k < last and not len(next(iter(flowing[i].values()))):
                    flowing[i] = self.outputs.empty()
                else:
                    going.append(i)
            alive = going
        return [failed[i] if i in failed else (tuple(after[i]), flowing[i]) for i in range(len(chunks))]

    def _many(
        self, position: int, states: Sequence[State], chunks: Sequence[Chunk]
    ) -> list[tuple[State, Chunk] | RunnelError]:
        """One stage's step for several streams; each failure stands in its own stream's place."""
        if not states:
            return []
        stage = self.stages[position]
        try:
            results = list(stage.step_many(states, chunks))
            if len(results) != len(states):
                raise StageError(f"step_many gave {len(results)} results for {len(states)} streams")
        except Exception as error:
            if len(states) == 1:
                return [as_error(f"{position}: {stage.name}", error)]
            # A stage whose batch fails as a whole gets its streams one by one: only the guilty one fails.
            return [self._many(position, [s], [c])[0] for s, c in zip(states, chunks, strict=True)]
        if self._declared[position] is not None:
            for i, result in enumerate(results):
                try:
                    results[i] = (
                        result if isinstance(result, RunnelError) else self._checked(position, result)
                    )
                except Exception as error:
                    results[i] = as_error(f"{position}: {stage.name}", error)
        return results

    def _checked(self, position: int, result: tuple[State, Chunk]) -> tuple[State, Chunk]:
        """What a stage gave, if it is what the stage declares; its state's arrays made read-only."""
        declared = self._declared[position]
        if declared is None:
            return result
        state, out = result
        lengths = set()
        for name, dtype, shape in declared:
            array = out.get(name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape[1:] != shape:
                break
            lengths.add(array.shape[:1])
        if len(out) != len(declared) or len(lengths) != 1 or lengths == {()}:
            stage = self.stages[position]
            given = ", ".join(
                f"{n}: {getattr(a, 'dtype', type(a).__name__)} {getattr(a, 'shape', '')}"
                for n, a in out.items()
            )
            raise StageError(
                f"stage {position}: {stage.name!r} made {given or 'nothing'}, declared {stage.outputs}"
            )
        return _freeze(state), out


def join(signal: Signal, chunks: Sequence[Chunk]) -> Chunk:
    """Chunks of one signal, one after the other."""
    full = [c for c in chunks if len(next(iter(c.values())))]
    if len(full) == 1:
        return full[0]
    if not full:
        return signal.empty()
    return {name: np.concatenate([c[name] for c in full]) for name in signal.names}


def _declared(stage: Stage) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    return [(t.name, np.dtype(t.dtype), t.shape) for t in stage.outputs.tensors]


def _freeze(state: State) -> State:
    """Make a state's arrays read-only: a stage that changes one in place fails instead of corrupting."""
    if state.__class__ is dict:
        for array in state.values():
            array.setflags(write=False)
    return state


def _check_fit(before: Stage, after: Stage) -> None:
    have = {t.name: t for t in before.outputs.tensors}
    for want in after.inputs.tensors:
        if have.get(want.name) != want:
            raise PipelineError(
                f"stage {after.name!r} takes {after.inputs}, "
                f"but {before.name!r} before it makes {before.outputs}"
            )
    rates = before.outputs.rate, after.inputs.rate
    if all(rates) and rates[0] != rates[1]:
        raise PipelineError(
            f"stage {after.name!r} takes {rates[1]:g} Hz, "
            f"but {before.name!r} before it makes {rates[0]:g} Hz: put a 'resample' stage between them"
        )


def _latency(stages: Sequence[Stage]) -> int:
    """The stages' latencies, each carried back to time steps of the pipeline's input, rounded up.

    Behind a stage whose rows come when they come there is no way back: what follows it is not counted.
    """
    total, inputs_per_step = Fraction(0), Fraction(1)
    for stage in stages:
        total += stage.latency * inputs_per_step
        if stage.ratio is None:
            break
        inputs_per_step *= Fraction(stage.ratio[1], stage.ratio[0])
    return -int(-total // 1)


def _hint(array: Array, shape: tuple[int, ...]) -> str:
    if array.shape == shape:
        return ": one time step is array[None]; time is always axis 0"
    if array.ndim == len(shape) + 2:
        return ": a chunk has no batch axis"
    return ""
