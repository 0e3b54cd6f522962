"""Chunks of several streams side by side: one array a name instead of one for each stream.

`step_many` may give and take sequences of chunks that are stacked: a stage that can work on many streams
at once then does so without laying its input together and its output apart again. To a stage that cannot,
a `Batch` is a sequence of chunks like any other.

Two kinds of stage get all of that for nothing: a `RowStage` has no state, a `StackedStage` has one of
fixed shapes. Each is written once, with leading axes left free, and steps one stream or many.
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
    """Chunks of equal length, stacked: arrays of shape (streams, T, ...); item i is stream i's chunk."""

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


class Done(Sequence[tuple[State, Chunk]]):
    """What `step_many` may give where every stream succeeded: their states, and their chunks as a batch."""

    __slots__ = ("batch", "states")

    def __init__(self, states: Sequence[State], batch: Batch) -> None:
        self.states, self.batch = states, batch

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, i: Any) -> Any:
        return self.states[i], self.batch[i]


def stack(chunks: Sequence[Chunk]) -> Batch | None:
    """The chunks as a batch, or None where they differ in length. Copies, unless they are one already."""
    if isinstance(chunks, Batch):
        return chunks
    first = chunks[0]
    if len(first) == 1:  # as most chunks are, and half the time of what follows
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
    """A stage that makes each row of the time step at hand alone: no state, latency 0.

    A subclass defines `rows`. `finite`: whether a NaN or an infinity is refused; a stage that is not asked to
    passes it on.
    """

    finite = False

    @abc.abstractmethod
    def rows(self, arrays: Chunk) -> Chunk:
        """`outputs` for `inputs`, row by row: arrays of shape (T, ...) or (streams, T, ...), T >= 0.

        Use only the axes of one time step, counted from the last; `arrays` may not be changed.
        """

    def initial(self) -> Arrays:
        """None: it remembers nothing."""
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
            return Done(states, Batch(self.rows(batch.arrays)))
        except Exception:  # somebody's chunk: each alone, so that only that one fails
            return super().step_many(states, chunks)


class StackedStage(Stage):
    """A stage whose state has fixed shapes, so that the streams' states can be stacked as their chunks are.

    A subclass defines `initial` and `advance`. What arrives must be finite, since a NaN would stay in the
    state: that is checked before `advance`, unless `finite` is False.
    """

    finite = True

    @abc.abstractmethod
    def advance(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Chunk]:
        """The next states, and what the chunks make: arrays (streams, ...) and (streams, T, ...), T >= 0.

        No stream's numbers may depend on another's. Neither `state` nor `chunk` may be changed, and no array
        of the result may share memory with one of them.
        """

    def load(self, state: State, arrays: Arrays) -> State:
        """Refuses other shapes than those of `initial`, and what is not finite: it would stay."""
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
        # A copy, for a view may be of much more than itself; `...` keeps a state of rank 0 an array.
        return {name: array[0, ...].copy() for name, array in after.items()}, {
            n: a[0] for n, a in made.items()
        }

    def step_many(self, states: Sequence[State], chunks: Sequence[Chunk]) -> Results:
        batch = stack(chunks)
        if batch is not None:
            try:
                return self._step_batch(states, batch)
            except Exception:  # somebody's chunk: each alone, so that only that one fails
                return super().step_many(states, chunks)
        # Unequal lengths: those that are equal together.
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
        after, made = self.advance(
            {name: np.array([state[name] for state in states]) for name in names}, batch.arrays
        )  # np.array: what np.stack gives, several times sooner
        # Copies: as a view, one idle stream's state would keep the whole batch's in memory.
        columns = [map(np.array, after[name]) for name in names]
        return Done([dict(zip(names, rows, strict=True)) for rows in zip(*columns, strict=True)], Batch(made))
