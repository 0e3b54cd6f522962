"""For stages whose streams are not all at the same point of a cycle: between two frames, two output rows."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Sequence

from runnel.batch import StackedStage
from runnel.errors import RunnelError
from runnel.stage import Arrays, Chunk, Results, Stage, State


class PhasedStage(StackedStage):
    """A `StackedStage` whose states can be stacked where their `phase` is equal.

    `advance` gets streams of one phase and of chunks that are equally long; so what depends on nothing else,
    such as how many rows come out, is the same for all of them. Live streams with chunks of one size share a
    few phases, often one.
    """

    @abc.abstractmethod
    def phase(self, state: Arrays) -> Hashable:
        """What must be equal for two states to have the same shapes and go the same way."""

    def load(self, state: State, arrays: Arrays) -> State:
        """As any stage's: the shapes are those of a phase, for the subclass to check."""
        return Stage.load(self, state, arrays)

    def step_many(self, states: Sequence[State], chunks: Sequence[Chunk]) -> Results:
        groups: dict[Hashable, list[int]] = {}
        for i, state in enumerate(states):
            groups.setdefault(self.phase(state), []).append(i)
        if len(groups) == 1:
            return super().step_many(states, chunks)
        results: list[tuple[State, Chunk] | RunnelError] = [(state, {}) for state in states]
        for members in groups.values():
            done = super().step_many([states[i] for i in members], [chunks[i] for i in members])
            for i, result in zip(members, done, strict=True):
                results[i] = result
        return results
