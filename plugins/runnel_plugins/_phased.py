"""Stages whose streams are at different points of a cycle, such as between two frames."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Sequence

from runnel.batch import StackedStage
from runnel.errors import RunnelError
from runnel.stage import Arrays, Chunk, Results, Stage, State


class PhasedStage(StackedStage):
    """A `StackedStage` whose states can be stacked if their `phase` is equal.

    `advance` gets streams of one phase with chunks of equal length, so the number of output rows, and all
    else that depends only on these, is the same for all of them. Live streams with chunks of one size share a
    few phases, often one.
    """

    @abc.abstractmethod
    def phase(self, state: Arrays) -> Hashable:
        """Return a key that is equal for two states exactly if they can be stacked."""

    def load(self, state: State, arrays: Arrays) -> State:
        """Load without a check of shapes, which depend on the phase: the subclass checks them."""
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
