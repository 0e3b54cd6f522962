"""Stages in sequence: the path of chunks, for one stream and many.

A stream's state is the tuple of its stages' states. The functions here return the next tuple and never change
the given one; the caller commits by storing the result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from .. import snapshot as snapshots
from ..batch import Batch, BatchResult, stack
from ..errors import ChunkError, EmptyChunkError, PipelineError, RunnelError, SnapshotError
from ..spec import MAX_RANK, Array, ModelSpec, Signal, brief
from ..stage import Arrays, Chunk, Stage, State, Steps, as_error
from .identity import Part, differences, fingerprint
from .stage_runner import StageRunner

HEADER_BYTES = 16 * 1024  # of a snapshot's header: read to say how a foreign pipeline differs
MAX_TIME_STEP_BYTES = 2**26  # of one time step of one array: several times what a message may hold

States = tuple[State, ...]


class Pipeline:
    """The stages of an engine. Immutable once made; shared by all streams."""

    def __init__(
        self,
        stages: Sequence[Stage],
        model: ModelSpec | None,
        identity: Mapping[str, Any],
        stage_seconds: float | None = None,
        parts: Sequence[Part] = (),
    ) -> None:
        """`stage_seconds`: the time limit of a stage for one stream's chunk; None: no limit. `parts` and
        `identity`: what the fingerprint covers; errors can name the parts.
        """
        if not stages:
            raise PipelineError("a pipeline needs at least one stage")
        for i, stage in enumerate(stages):
            _check_size(stage, f"{i}: {stage.name}")
        for before, after in pairwise(stages):
            _check_fit(before, after)
        self.stages = tuple(stages)
        self.runners = tuple(StageRunner(stage, i, stage_seconds) for i, stage in enumerate(stages))
        self.model = model
        self.inputs: Signal = stages[0].inputs
        self.outputs: Signal = stages[-1].outputs
        self.latency = _latency(stages)
        self.stage_names = _names(stages)
        self.generates = stages[0].generates  # whether a stream can step without input
        self.state_bytes = sum(stage.storage_bytes for stage in stages)  # of one stream, in its models
        # A plugin's stage might store its input, which is the caller's memory, and might return its input,
        # which is locked.
        self._lends = self.runners[0].declared is not None
        self._unlocks = self.runners[-1].declared is not None
        # (states, chunk) -> (next states, output); raises errors of the tree.
        self.step: Callable[[States, Chunk], tuple[States, Chunk]]
        alone = len(stages) == 1 and not self._lends
        self.step = self._step_only if alone else self._step_all
        self._only_runner = self.runners[0]
        # A snapshot continues only in a pipeline with this model, these stages and these options.
        self.parts = tuple(parts)
        self.fingerprint = fingerprint(self.parts, identity)
        self._only_in = self.inputs.tensors[0] if len(self.inputs.tensors) == 1 else None
        self.only_out = self.outputs.names[0] if len(self.outputs.names) == 1 else None
        # For the fast path: one tick of the only input.
        self.tick_name = self._only_in.name if self._only_in else ""
        self.tick_dtype = np.dtype(self._only_in.dtype) if self._only_in else None
        self.tick_shape = (1, *self._only_in.shape) if self._only_in else None

    def __repr__(self) -> str:
        names = brief(", ".join(stage.name for stage in self.unrolled.stages))
        signals = f"{brief(self.inputs)} -> {brief(self.outputs)}"
        return f"<Pipeline {names}: {signals}, latency {self.latency}>"

    @property
    def unrolled(self) -> Pipeline:
        """The pipeline of the file's stages, inside a feedback loop if there is one."""
        inner = getattr(self.stages[0], "inner", None)
        return inner if isinstance(inner, Pipeline) else self

    # Input and output

    def accept(self, chunk: Array | Chunk) -> Chunk:
        """Check a chunk's names, types, dtypes and shapes; return it as a dict.

        The stages check whether the numbers are finite, since some stages accept NaN.
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
        try:
            return self._accept(chunk)
        except RunnelError:
            raise
        except Exception as error:  # a mapping, or a subclass of array, that raises when it is read
            raise ChunkError(
                f"the chunk cannot be read: {type(error).__name__}: {error}; give plain numpy arrays"
            ) from error

    def _accept(self, chunk: Any) -> Chunk:
        wanted = self.inputs.tensors
        if isinstance(chunk, Steps):
            if not self.generates:
                raise ChunkError(
                    f"this pipeline cannot step without input, it takes {self.inputs}: that is for one "
                    "whose file feeds back all of its inputs under [feedback]"
                )
            chunk.check()
            return chunk
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
        accepted: dict[str, Array] = {}
        for spec in wanted:
            array = chunk[spec.name]
            if not isinstance(array, np.ndarray):
                raise ChunkError(
                    f"{spec.name!r} is a {type(array).__name__}, expected a numpy array ({spec})"
                )
            if isinstance(array, np.ma.MaskedArray):
                raise ChunkError(f"{spec.name!r} is a masked array: fill its gaps first, as .filled(0) does")
            # Convert subclasses (memmap, matrix, units), whose arithmetic may differ from plain arrays.
            array = accepted[spec.name] = np.asarray(array)
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
        return accepted

    def answer(self, chunk: Any, out: Chunk) -> Any:
        """Return a bare array for a bare array and one output; else the dict."""
        if self.only_out is not None and (chunk is None or isinstance(chunk, np.ndarray)):
            return out[self.only_out]
        return out

    def times(self) -> dict[str, dict[str, float]]:
        """Return the seconds spent and the chunks stepped by each stage, by ``position: name``."""
        return {
            "stage_seconds": {runner.label: runner.seconds for runner in self.unrolled.runners},
            "stage_chunks": {runner.label: runner.calls for runner in self.unrolled.runners},
        }

    # One stream

    def open(self) -> States:
        """Allocate the states of a new stream. After a LimitError nothing stays allocated."""
        made: list[State] = []
        try:
            for stage in self.stages:
                made.append(freeze(stage.open()))  # noqa: PERF401 - an error must know which stages are open
        except Exception as error:
            for stage, state in zip(self.stages, made, strict=False):
                stage.close(state)
            raise as_error(self.runners[len(made)].label, error) from error
        return tuple(made)

    def close(self, states: States) -> None:
        """Free the state of every stage; the first error is raised at the end."""
        failed: RunnelError | None = None
        for i, (stage, state) in enumerate(zip(self.stages, states, strict=True)):
            try:
                stage.close(state)
            except Exception as error:
                failed = failed or as_error(f"{i}: {stage.name}", error)
        if failed:
            raise failed

    def _step_only(self, states: States, chunk: Chunk) -> tuple[States, Chunk]:
        """Run `step` for a pipeline of only the model: the fast path."""
        state, out = self._only_runner.step(states[0], chunk)
        return (state,), out

    def _step_all(self, states: States, chunk: Chunk) -> tuple[States, Chunk]:
        after = list(states)
        if self._lends:
            chunk = {name: array.copy() for name, array in chunk.items()}
        last = len(after) - 1
        for i, runner in enumerate(self.runners):
            after[i], chunk = runner.step(states[i], chunk)
            if i < last and not len(next(iter(chunk.values()))):
                return tuple(after), self.outputs.empty()  # nothing for the later stages
        return tuple(after), self._unlocked(chunk)

    def flush(self, states: States) -> tuple[States, Chunk]:
        """End a stream: step what earlier stages held back, then flush each stage."""
        after = list(states)
        chunk: Chunk = self.inputs.empty()
        for i, runner in enumerate(self.runners):
            made: list[Chunk] = []
            if len(next(iter(chunk.values()))):
                after[i], out = runner.step(after[i], chunk)
                made.append(out)
            after[i], out = runner.flush(after[i])
            chunk = join(runner.stage.outputs, [*made, out])
        return tuple(after), self._unlocked(chunk)

    def _unlocked(self, chunk: Chunk) -> Chunk:
        """Return the output as arrays that the caller owns and may write to."""
        if self._unlocks:
            return {name: a if _is_own(a) else a.copy() for name, a in chunk.items()}
        return chunk

    def reset(self, states: States) -> States:
        """Return `states` with the initial values; raise errors of the tree."""
        after = []
        for i, (stage, state) in enumerate(zip(self.stages, states, strict=True)):
            try:
                after.append(freeze(stage.load(state, stage.initial())))
            except Exception as error:
                raise as_error(f"{i}: {stage.name}", error) from error
        return tuple(after)

    def dump(self, states: States) -> tuple[tuple[str, Arrays], ...]:
        """Return each stage's name, with its position if repeated, and its arrays."""
        return tuple((n, s.dump(x)) for n, s, x in zip(self.stage_names, self.stages, states, strict=True))

    @cached_property
    def most_header(self) -> int:
        """Upper bound on the bytes of a snapshot's header for this pipeline, with some room."""
        stages = []
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            arrays = stage.initial()
            stages.append([name, [[key, a.dtype.name, [2**40] * a.ndim] for key, a in arrays.items()]])
        return max(HEADER_BYTES, len(json.dumps([stages, [list(part) for part in self.parts]])) + 1024)

    def admit(self, claim: snapshots.Claim) -> None:
        """Raise SnapshotError unless a snapshot with this header can belong to this pipeline."""
        if claim.pipeline != self.fingerprint or len(claim.stages) != len(self.stages):
            found = differences(claim.parts, self.parts) if claim.parts else []
            raise SnapshotError(
                f"the snapshot is of pipeline {claim.pipeline:.40}, this one is {self.fingerprint}: the "
                "model, the stages, their packages' versions and their options must be the same"
                + (f". {'; '.join(found)}" if found else "")
            )
        for (name, keys), stage in zip(claim.stages, self.stages, strict=True):
            snapshots.fit_names(name, keys, stage.initial())

    def load(self, states: States, snapshot: snapshots.Snapshot) -> States:
        """Return `states` with an admitted snapshot's values; raise SnapshotError if a stage refuses them."""
        loaded = []
        for (name, arrays), stage, state in zip(snapshot.stages, self.stages, states, strict=True):
            snapshots.fit(name, arrays, stage.initial())
            try:
                loaded.append(freeze(stage.load(state, arrays)))
            except Exception as error:
                raise SnapshotError(f"stage {name!r} does not take the snapshot's state: {error}") from error
        return tuple(loaded)

    def reclaim(self, streams: Sequence[States]) -> None:
        """After an interrupted call, free all storage except that of these streams."""
        for i, stage in enumerate(self.stages):
            stage.reclaim([states[i] for states in streams])

    # Several steps before a commit: see `Stage.fork`.

    def fork(self, states: States) -> States:
        """Return a copy of `states` with its own storage.

        Raises errors of the tree; nothing is then allocated.
        """
        made: list[State] = []
        try:
            for runner, state in zip(self.runners, states, strict=True):
                made.append(runner.stage.fork(state))
            return tuple(made)
        except BaseException as error:
            at = len(made)
            self._drop_each(self.runners, made)
            if isinstance(error, Exception):
                raise as_error(self.runners[min(at, len(states) - 1)].label, error) from error
            raise

    def land(self, states: States, forked: States) -> States:
        """Return the fork's states in the storage of `states`, which stay valid.

        Raises errors of the tree. The fork's storage is freed in any case.
        """
        after: list[State] = []
        try:
            for runner, state, fork in zip(self.runners, states, forked, strict=True):
                after.append(runner.stage.land(state, fork))
            return tuple(after)
        except BaseException as error:
            at = len(after)
            self._drop_each(self.runners[at:], forked[at:])
            if isinstance(error, Exception):
                raise as_error(self.runners[min(at, len(forked) - 1)].label, error) from error
            raise

    def drop(self, forked: States) -> None:
        """Free a fork's storage; the first error is raised at the end."""
        if failed := self._drop_each(self.runners, forked):
            raise failed

    def _drop_each(self, runners: Sequence[StageRunner], forked: Sequence[State]) -> RunnelError | None:
        """Drop each stage's fork. Return the first error."""
        failed: RunnelError | None = None
        for runner, fork in zip(runners, forked, strict=False):
            try:
                runner.stage.drop(fork)
            except Exception as error:
                failed = failed or as_error(runner.label, error)
        return failed

    # Many streams

    def step_many(
        self, states: Sequence[States], chunks: Sequence[Chunk]
    ) -> list[tuple[States, Chunk] | RunnelError]:
        """Run `step` for several streams, stage by stage; errors replace results."""
        if not chunks:  # all were refused before
            return []
        flowing = chunks
        if self._lends:
            flowing = stack(chunks) or [{n: a.copy() for n, a in chunk.items()} for chunk in chunks]
        before = list(zip(*states, strict=True))  # each stage's states
        after: list[Sequence[State]] = list(before)
        alive: Sequence[int] = range(len(chunks))  # the streams whose chunks still have time steps
        ended: dict[int, Chunk | RunnelError] = {}  # outcomes of the other streams
        last = len(self.runners) - 1
        for k, runner in enumerate(self.runners):
            if not alive:
                break
            all_alive = len(alive) == len(chunks)
            done = runner.step_many(before[k] if all_alive else [before[k][i] for i in alive], flowing)
            if all_alive and isinstance(done, BatchResult) and (k == last or done.batch.steps):
                after[k], flowing = done.states, done.batch
                continue
            column, going, remaining = list(before[k]), [], []
            for i, result in zip(alive, done, strict=True):
                if isinstance(result, RunnelError):
                    ended[i] = result
                    continue
                column[i], chunk = result
                if k < last and not len(next(iter(chunk.values()))):
                    ended[i] = self.outputs.empty()  # nothing for the later stages
                else:
                    going.append(i)
                    remaining.append(chunk)
            after[k], alive, flowing = column, going, remaining
        made = self._parted(flowing)
        kept = zip(*after, strict=True)
        if not ended:
            return list(zip(kept, made, strict=True))
        outs: dict[int, Chunk | RunnelError] = {**ended, **dict(zip(alive, made, strict=True))}
        results: list[tuple[States, Chunk] | RunnelError] = []
        for i, state in enumerate(kept):
            out = outs[i]
            results.append(out if isinstance(out, RunnelError) else (state, out))
        return results

    def _parted(self, flowing: Sequence[Chunk]) -> Sequence[Chunk]:
        """Return the output as one chunk per stream, owned by the caller."""
        if not isinstance(flowing, Batch):
            return [self._unlocked(chunk) for chunk in flowing] if self._unlocks else flowing
        arrays = self._unlocked(flowing.arrays)
        if len(arrays) == 1:
            ((name, stacked),) = arrays.items()
            return [{name: array} for array in stacked]
        names = list(arrays)
        return [dict(zip(names, row, strict=True)) for row in zip(*arrays.values(), strict=True)]


def join(signal: Signal, chunks: Sequence[Chunk]) -> Chunk:
    """Concatenate chunks of one signal."""
    full = [c for c in chunks if len(next(iter(c.values())))]
    if len(full) == 1:
        return full[0]
    if not full:
        return signal.empty()
    return {name: np.concatenate([c[name] for c in full]) for name in signal.names}


def freeze(state: State) -> State:
    """Make a state's arrays read-only, so that changing one in place fails."""
    if isinstance(state, dict):
        for array in state.values():
            array.setflags(write=False)
    return state


def _is_own(array: Array) -> bool:
    """Whether the caller may write to it: it is not part of a state."""
    return array.flags.writeable and (array.base is None or not _is_locked(array.base))


def _is_locked(base: Any) -> bool:
    return isinstance(base, np.ndarray) and not base.flags.writeable


def _names(stages: Sequence[Stage]) -> tuple[str, ...]:
    """Return the stages' names in a snapshot: with positions if two would be the same."""
    names = [stage.name for stage in stages]
    unique = [n if names.count(n) == 1 else f"{n}-{i}" for i, n in enumerate(names)]
    if len(set(unique)) < len(unique):  # a stage has a name that was made for another
        unique = [f"{n}-{i}" for i, n in enumerate(names)]
    return tuple(unique)


def _check_fit(before: Stage, after: Stage) -> None:
    have = {t.name: t for t in before.outputs.tensors}
    for want in after.inputs.tensors:
        if have.get(want.name) != want:
            raise PipelineError(
                f"stage {after.name!r} takes {after.inputs}, "
                f"but {before.name!r} before it makes {before.outputs}"
            )
    if not same_rate(before.outputs.rate, after.inputs.rate):
        raise PipelineError(
            f"stage {after.name!r} takes {after.inputs.rate:.9g} Hz, but {before.name!r} before it makes "
            f"{before.outputs.rate:.9g} Hz: put a 'resample' stage between them"
        )


def same_rate(one: float | None, other: float | None) -> bool:
    """Whether two rates agree: unknown, or equal up to rounding, as of 16000 / 3."""
    return not one or not other or math.isclose(one, other, rel_tol=1e-6)


def _check_size(stage: Stage, label: str) -> None:
    """Raise if one time step exceeds MAX_TIME_STEP_BYTES or MAX_RANK."""
    for tensor in (*stage.inputs.tensors, *stage.outputs.tensors):
        size = math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
        if len(tensor.shape) > MAX_RANK:
            raise PipelineError(
                f"stage {label!r}: {tensor} has more than {MAX_RANK} axes beside that of time"
            )
        if size > MAX_TIME_STEP_BYTES:
            raise PipelineError(
                f"stage {label!r}: {tensor} is {size} bytes a time step; at most {MAX_TIME_STEP_BYTES} are "
                "possible"
            )


def _latency(stages: Sequence[Stage]) -> int:
    """Sum the stages' latencies in time steps of the pipeline's input, rounded up.

    After a stage with irregular output a latency cannot be converted: later stages are not counted.
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
