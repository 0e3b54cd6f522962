"""A stage in its pipeline: called, timed, checked against its declaration, and named in errors.

A stage may be a plugin. Its input is read-only, so that it cannot change a chunk or a state that others use,
and its output is checked before it is used. The model and the framing are trusted and skip these checks.

The checks stop mistakes, not malice, because a stage is code in this process. Not stopped is a stage that
makes an array writable again, writes later to an array that it returned, returns the same output array for
two streams, or calls sys.exit. The published laws (`runnel.checks`) find most of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, Final

import numpy as np

from ..batch import Batch, BatchResult
from ..errors import ChunkError, RunnelError, SlowStageError, SnapshotError, StageError
from ..snapshot import fit
from ..spec import Array
from ..stage import Chunk, Results, Stage, State, as_error

MAX_STATE_BYTES: Final = 64 * 2**20  # of one stream in one stage: 5 minutes of sound; more is a leak
ARRAY_BYTES: Final = 128  # overhead counted per array of a state, even if empty: numpy's own header
# Of one chunk's output in one stage: far more would exhaust the memory.
MAX_MADE_BYTES: Final = 2**30


class StageRunner:
    """Calls the stage at `position`. `seconds` and `calls` count time and chunks over all streams.

    `limit`: seconds that one stream's chunk may take. It is checked afterwards and the result is then
    discarded, because nothing can stop Python code that does not return.
    """

    __slots__ = (
        "calls", "declared", "label", "lead", "like", "limit", "loops", "made", "seconds", "stage", "taken",
    )  # fmt: skip

    def __init__(self, stage: Stage, position: int, limit: float | None = None) -> None:
        self.stage = stage
        self.label = f"{position}: {stage.name}"
        self.limit = limit if limit is not None else float("inf")
        self.seconds = 0.0
        self.calls = 0
        # The model, its framing and the feedback loop are tested by the engine's own tests.
        trusted = type(stage).__module__.startswith("runnel.")
        self.declared: list[tuple[str, np.dtype[Any], tuple[int, ...]]] | None = None
        if not trusted:
            self.declared = [(t.name, np.dtype(t.dtype), t.shape) for t in stage.outputs.tensors]
        self.like: dict[str, tuple[np.dtype[Any], int]] = {}  # dtypes and ranks of a state; see `_frozen`
        self.loops = type(stage).step_many is Stage.step_many
        # Output and input time steps of one chunk within MAX_MADE_BYTES. With irregular output, the bound is
        # checked on the result.
        self.lead = stage.inputs.tensors[0].name
        row = sum(np.dtype(t.dtype).itemsize * math.prod(t.shape) for t in stage.outputs.tensors)
        self.made = MAX_MADE_BYTES // max(1, row)
        up, down = stage.ratio or (0, 1)
        self.taken = self.made * down // up if up else MAX_MADE_BYTES

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        """Step one stream. Raises errors of the tree."""
        declared = self.declared
        if declared is not None:
            self._admit(len(chunk[self.lead]))
            _lock(chunk)
        began = perf_counter()
        try:
            result = self.stage.step(state, chunk)
        except Exception as error:
            raise self._error(error) from error
        spent = perf_counter() - began
        self.seconds += spent
        self.calls += 1
        if spent > self.limit:
            raise self._slow(spent)
        return result if declared is None else self._checked(result)

    def flush(self, state: State) -> tuple[State, Chunk]:
        """Flush one stream. Raises errors of the tree."""
        began = perf_counter()
        try:
            result = self.stage.flush(state)
        except Exception as error:
            raise self._error(error) from error
        spent = perf_counter() - began
        self.seconds += spent
        if spent > self.limit:
            raise self._slow(spent)
        return result if self.declared is None else self._checked(result)

    def step_many(self, states: Sequence[State], chunks: Sequence[Chunk]) -> Results:
        """Step several streams; each error takes the place of its stream's result."""
        if self.loops:
            return [self._attempt(state, chunk) for state, chunk in zip(states, chunks, strict=True)]
        began = perf_counter()
        try:
            if self.declared is not None:
                if isinstance(chunks, Batch):
                    self._admit(chunks.steps)
                    _lock(chunks.arrays)
                else:
                    for chunk in chunks:
                        self._admit(len(chunk[self.lead]))
                        _lock(chunk)
            results = self.stage.step_many(states, chunks)
            spent = perf_counter() - began
            if len(results) != len(states):
                raise StageError(f"step_many gave {len(results)} results for {len(states)} streams")
            if self.declared is not None and isinstance(results, BatchResult):
                results = self._checked_batch(states, results)
        except Exception as error:
            if len(states) == 1:
                return [self._error(error)]
            # If a batch fails as a whole, step each stream alone: only the stream at fault fails.
            return [self._attempt(state, chunk) for state, chunk in zip(states, chunks, strict=True)]
        self.seconds += spent
        self.calls += len(states)
        if spent > self.limit:  # step each stream alone to find the slow chunk
            if len(states) == 1:
                return [self._slow(spent)]
            return [self._attempt(state, chunk) for state, chunk in zip(states, chunks, strict=True)]
        if self.declared is None or isinstance(results, BatchResult):
            return results
        return [self._named(result) for result in results]

    def _attempt(self, state: State, chunk: Chunk) -> tuple[State, Chunk] | RunnelError:
        try:
            return self.step(state, chunk)
        except RunnelError as error:
            return error

    def _named(self, result: tuple[State, Chunk] | RunnelError) -> tuple[State, Chunk] | RunnelError:
        if isinstance(result, RunnelError):
            return self._error(result)
        try:
            return self._checked(result)
        except RunnelError as error:
            return error

    # Checks of the result

    def _checked(self, result: Any) -> tuple[State, Chunk]:
        """Return the result if it is as declared, with the state's arrays made read-only."""
        try:
            state, out = result
            lengths = set()
            for name, dtype, shape in self.declared or ():
                array = out.get(name)
                if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape[1:] != shape:
                    raise self._undeclared(out)
                lengths.add(array.shape[:1])
            if len(out) != len(self.declared or ()) or len(lengths) != 1 or lengths == {()}:
                raise self._undeclared(out)
            self._bound(lengths.pop()[0])
        except (TypeError, ValueError, AttributeError):
            raise StageError(
                f"stage {self.label!r} gave {type(result).__name__}, not (state, chunk) with dicts of arrays"
            ) from None
        return self._frozen(state), out

    def _checked_batch(self, states: Sequence[State], done: BatchResult) -> BatchResult:
        made = done.batch.arrays
        sizes = set()
        for name, dtype, shape in self.declared or ():
            array = made.get(name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape[2:] != shape:
                raise self._undeclared(made)
            sizes.add(array.shape[:2])
        if len(made) != len(self.declared or ()) or len(sizes) != 1 or len(done.batch) != len(states):
            raise self._undeclared(made)
        self._bound(sizes.pop()[1])
        if done.states is not states:
            return BatchResult([self._frozen(state) for state in done.states], done.batch)
        return done

    def _frozen(self, state: State) -> State:
        """Make the state read-only, so that changing it in place fails.

        A view is copied: its base array would stay in memory, and could be written to. Arrays that differ in
        kind from those of `initial` are refused now, because no snapshot of them could be restored.
        """
        size = 0
        like = self.like
        try:
            drifted = False
            for name, array in state.items():
                kind = like.get(name)
                if kind is None or array.dtype != kind[0] or array.ndim != kind[1]:
                    drifted = True
                if array.base is not None:
                    state = {**state, name: (array := array.copy())}
                array.flags.writeable = False
                size += array.nbytes + ARRAY_BYTES
        except (AttributeError, ValueError):  # numpy's scalars have flags, but cannot be locked
            raise StageError(
                f"stage {self.label!r} gave a state that is not a dict of arrays; of a number, np.asarray "
                "makes one"
            ) from None
        if drifted or len(state) != len(like):
            self._compare(state)
        if size > MAX_STATE_BYTES:
            raise StageError(
                f"stage {self.label!r}: its state grew to {size} bytes; at most {MAX_STATE_BYTES} of one "
                "stream are kept"
            )
        return state

    def _compare(self, state: Mapping[str, Array]) -> None:
        """Raise StageError unless the state's names, dtypes and ranks are those of `initial`."""
        try:
            initial = self.stage.initial()
        except Exception:  # reported when a stream is opened or reset
            return
        try:
            fit(self.label, state, initial)
        except SnapshotError as error:
            text = error.message.removeprefix(f"stage {self.label!r}: ")
            raise StageError(
                f"stage {self.label!r}: its next state is not as its `initial` makes it, so that no snapshot "
                f"of it could be restored: {text}"
            ) from None
        self.like = {name: (array.dtype, array.ndim) for name, array in initial.items()}

    # Bounds

    def _admit(self, steps: int) -> None:
        """Raise ChunkError if a chunk of `steps` time steps would exceed MAX_MADE_BYTES."""
        if steps > self.taken:
            size = steps * MAX_MADE_BYTES // max(1, self.taken)
            raise ChunkError(
                f"stage {self.label!r}: {steps} time steps would become {size} bytes, at most "
                f"{MAX_MADE_BYTES} of one chunk: send at most {self.taken} at a time"
            )

    def _bound(self, steps: int) -> None:
        """Raise StageError if a chunk has exceeded MAX_MADE_BYTES."""
        if steps > self.made:
            raise StageError(
                f"stage {self.label!r} made {steps} time steps of one chunk, more than {MAX_MADE_BYTES} bytes"
            )

    # Errors

    def _error(self, error: Exception) -> RunnelError:
        """Return an error of the tree that names the stage and its position."""
        if self.declared is None or not isinstance(error, RunnelError):
            named = as_error(self.label, error)
            if isinstance(error, ValueError) and "read-only" in named.message:
                named = StageError(f"{named.message}. A stage may change neither its chunk nor its state")
                named.__cause__ = error
            return named
        message = error.message.removeprefix(f"{self.stage.name}: ")
        if message.startswith(f"stage {self.label!r}"):
            return error
        placed = type(error)(f"stage {self.label!r}: {message}")
        placed.__cause__ = error
        return placed

    def _slow(self, spent: float) -> SlowStageError:
        return SlowStageError(
            f"stage {self.label!r} took {spent:.3g} s for one chunk; "
            f"[limits] stage_seconds allows {self.limit:g}"
        )

    def _undeclared(self, out: Mapping[str, Any]) -> StageError:
        given = ", ".join(
            f"{n}: {getattr(a, 'dtype', type(a).__name__)} {getattr(a, 'shape', '')}" for n, a in out.items()
        )
        return StageError(f"stage {self.label!r} made {given or 'nothing'}, declared {self.stage.outputs}")


def _lock(chunk: Mapping[str, Array]) -> None:
    for array in chunk.values():
        array.flags.writeable = False
