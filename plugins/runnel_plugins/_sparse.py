"""Stages that make output only at events."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np

from runnel.batch import stack
from runnel.spec import Array
from runnel.stage import Arrays, Chunk, Results, Stage, State


class SparseStage(Stage):
    """A stage with a state of fixed shapes, whose output comes at irregular times.

    A subclass defines `initial` and `find`; the same code then steps one stream or many.
    """

    ratio = None

    @abc.abstractmethod
    def find(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Array, Chunk]:
        """Return the next states, the stream of each output row, and the rows.

        The states are (streams, ...), the rows (rows, ...) in the order of their streams. `state` and `chunk`
        hold arrays (streams, ...) and (streams, T, ...), T >= 0. They must not be changed, and no array of
        the result may share memory with them.
        """

    def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
        after, _, rows = self.find(
            {name: array[None] for name, array in state.items()},
            {name: array[None] for name, array in chunk.items()},
        )
        return {name: array[0, ...] for name, array in after.items()}, rows

    def step_many(self, states: Sequence[State], chunks: Sequence[Chunk]) -> Results:
        batch = stack(chunks)
        if batch is None:
            return super().step_many(states, chunks)
        names = list(states[0])
        try:
            after, owners, rows = self.find(
                {name: np.array([state[name] for state in states]) for name in names}, batch.arrays
            )
        except Exception:  # one bad chunk: step each stream alone, so that only its stream fails
            return super().step_many(states, chunks)
        count = len(states)
        edges = np.searchsorted(owners, np.arange(count + 1)).tolist()
        nothing = self.outputs.empty()
        results = []
        for i in range(count):
            start, stop = edges[i], edges[i + 1]
            made = {n: a[start:stop] for n, a in rows.items()} if start < stop else dict(nothing)
            # Copies: a view would keep the whole batch's states in memory for one idle stream.
            results.append(({name: after[name][i, ...].copy() for name in names}, made))
        return results
