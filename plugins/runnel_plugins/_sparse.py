"""Stages that give a row only where something happens: for stages here."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np

from runnel.batch import stack
from runnel.spec import Array
from runnel.stage import Arrays, Chunk, Results, Stage, State


class SparseStage(Stage):
    """A stage with a state of fixed shapes, whose rows come when they come.

    A subclass defines `initial` and `find`; one stream or many are then stepped by the same code.
    """

    ratio = None

    @abc.abstractmethod
    def find(self, state: Arrays, chunk: Chunk) -> tuple[Arrays, Array, Chunk]:
        """The next states (streams, ...), the stream of each row, in order, and the rows (rows, ...).

        `state` and `chunk` hold arrays (streams, ...) and (streams, T, ...), T >= 0, and may not be
        changed; no array of the result may share memory with them."""

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
        except Exception:  # somebody's chunk: each alone, so that only that one fails
            return super().step_many(states, chunks)
        count = len(states)
        edges = np.searchsorted(owners, np.arange(count + 1)).tolist()
        nothing = self.outputs.empty()
        results = []
        for i in range(count):
            start, stop = edges[i], edges[i + 1]
            made = {n: a[start:stop] for n, a in rows.items()} if start < stop else dict(nothing)
            # Copies: as a view, one idle stream's state would keep the whole batch's in memory.
            results.append(({name: after[name][i, ...].copy() for name in names}, made))
        return results
