"""Chunks of several streams, stacked into one array per name.

`step_many` may take and return stacked sequences of chunks. A stage that works on many streams at once then
need not stack its input and split its output again. Any other stage uses a `Batch` as a sequence of chunks.

Two kinds of stage support batches without further code: a `RowStage` has no state, and a `StackedStage` has a
state of fixed shapes. A subclass is written once, for arrays with free leading axes, and steps one stream or
many.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

from .errors import RunnelError, SnapshotError
from .spec import Array
from .stage import Arrays, Chunk, Results, Stage, State, require_finite


class Batch(Sequence[Chunk]):
    """Chunks of equal length, stacked: arrays of shape (streams, T, ...).

    Item i is the chunk of stream i.
    """

    __slots__ = ("arrays",)

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = arrays

    @property
    def steps(self) -> int:
        """Time steps of each chunk."""
        return int(next(iter(self.arrays.values())).shape[1])

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @overload
    def __getitem__(self, i: int) -> Chunk: ...
    @overload
    def __getitem__(self, i: slice) -> Batch: ...
    def __getitem__(self, i: int | slice) -> Chunk | Batch:
        part = {name: array[i] for name, array in self.arrays.items()}
        return Batch(part) if isinstance(i, slice) else part


class BatchResult(Sequence[tuple[State, Chunk]]):
    """Result of `step_many` if every stream succeeded: the states, and the chunks as a batch."""

    __slots__ = ("batch", "states")

    def __init__(self, states: Sequence[State], batch: Batch) -> None:
        self.states, self.batch = states, batch

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, i: Any) -> Any:
        return self.states[i], self.batch[i]


def stack(chunks: Sequence[Chunk]) -> Batch | None:
    """Stack the chunks; None if their lengths differ. A batch is returned as it is."""
    if isinstance(chunks, Batch):
        return chunks
    first = chunks[0]
    if len(first) == 1:  # the common case, in half the time of the general one below
        (name,) = first
        arrays = [chunk[name] for chunk in chunks]
        if len(set(map(len, arrays))) > 1:
            return None
        shape = (len(arrays), *arrays[0].shape)
        return Batch({name: np.concatenate(arrays).reshape(shape)})
    lead = next(iter(first))
    if len({len(chunk[lead]) for chunk in chunks}) > 1:
        return None
    return Batch({name: np.array([chunk[name] for chunk in chunks]) for name in first})


class RowStage(Stage):
    """A stage that computes each time step alone: no state, latency 0.

    A subclass defines `rows`. `finite`: whether the stage refuses NaN and infinity; if False, it passes them
    on.
    """

    finite = False

    @abc.abstractmethod
    def rows(self, arrays: Chunk) -> Chunk:
        """Return `outputs` for `inputs`: arrays (T, ...) or (streams, T, ...), T >= 0.

        Use only the axes of one time step, counted from the last. `arrays` must not be changed.
        """

    def initial(self) -> Arrays:
        """Return no arrays: the stage has no state."""
        return {}

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        if self.finite:
            for name, array in chunk.items():
                require_finite(name, array, self.name)
        return state, self.rows(chunk)

    def step_many(self, states: Sequence[State], chunks: Sequence[Chunk]) -> Results:
        batch = stack(chunks)
        if batch is None:
            return super().step_many(states, chunks)
        try:
            if self.finite:
                for name, array in batch.arrays.items():
                    require_finite(name, array, self.name)
            return BatchResult(states, Batch(self.rows(batch.arrays)))
        except Exception:  # one bad chunk: step each stream alone, so that only its stream fails
            return super().step_many(states, chunks)


class StackedStage(Stage):
    """A stage with a state of fixed shapes, which can be stacked for a batch.

    A subclass defines `initial` and `advance`. The input is checked to be finite before `advance`, because a
    NaN would stay in the state. `finite` = False turns the check off.
    """

    finite = True

    @abc.abstractmethod
    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        """Return next states (streams, ...) and outputs (streams, T, ...), T >= 0.

        The numbers of one stream must not depend on another stream. `state` and `chunk` must not be changed,
        and no array of the result may share memory with them.
        """

    def load(self, state: State, arrays: Arrays) -> State:
        """Load a state; SnapshotError unless the shapes are those of `initial` and all is finite."""
        for name, like in self.initial().items():
            array = arrays[name]
            if array.shape != like.shape:
                raise SnapshotError(f"{self.name}: {name!r} has shape {array.shape}, expected {like.shape}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise SnapshotError(f"{self.name}: {name!r} is not finite")
        return super().load(state, arrays)

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        if self.finite:
            for name, array in chunk.items():
                require_finite(name, array, self.name)
        after, made = self.advance(
            {name: array[None] for name, array in state.items()},
            {name: array[None] for name, array in chunk.items()},
        )
        # A copy: a view would keep the batch's whole array in memory. `...` keeps a state of rank 0 an array.
        return {name: array[0, ...].copy() for name, array in after.items()}, {
            n: a[0] for n, a in made.items()
        }

    def step_many(self, states: Sequence[State], chunks: Sequence[Chunk]) -> Results:
        batch = stack(chunks)
        if batch is not None:
            try:
                return self._step_batch(states, batch)
            except Exception:  # one bad chunk: step each stream alone, so that only its stream fails
                return super().step_many(states, chunks)
        # Unequal lengths: batch the chunks of equal length.
        groups: dict[int, list[int]] = {}
        lead = next(iter(chunks[0]))
        for i, chunk in enumerate(chunks):
            groups.setdefault(len(chunk[lead]), []).append(i)
        results: list[tuple[State, Chunk] | RunnelError] = [(state, {}) for state in states]
        for members in groups.values():
            if len(members) == 1:
                done = super().step_many([states[members[0]]], [chunks[members[0]]])
            else:
                done = self.step_many([states[i] for i in members], [chunks[i] for i in members])
            for i, result in zip(members, done, strict=True):
                results[i] = result
        return results

    def _step_batch(self, states: Sequence[State], batch: Batch) -> Results:
        if self.finite:
            for name, array in batch.arrays.items():
                require_finite(name, array, self.name)
        names = list(states[0])
        # Np.array is several times faster than np.stack here.
        after, made = self.advance(
            {name: np.array([state[name] for state in states]) for name in names}, batch.arrays
        )
        # Copies: a view would keep the whole batch's states in memory for one idle stream.
        columns = [map(np.array, after[name]) for name in names]
        return BatchResult(
            [dict(zip(names, rows, strict=True)) for rows in zip(*columns, strict=True)], Batch(made)
        )
