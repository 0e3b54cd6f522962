"""The budget of a turn, and slices whose length follows the measured cost of steps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.daemon.protocol.budget import (
    SLICE_BYTES,
    SLICE_SECONDS,
    TURN_BYTES,
    TURN_SECONDS,
    Sizes,
    StepCosts,
    TurnBudget,
)
from runnel.spec import Signal, TensorSpec
from runnel.stage import Chunk, Stage, State


def wide(width: int, ratio: tuple[int, int] | None = (1, 1), latency: int = 0) -> Stage:
    class Wide(Stage):
        name = "wide"

        def initial(self) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
            return {}

        def step(self, state: State, chunk: Chunk) -> tuple[State, Chunk]:
            return state, chunk

    stage = Wide()
    stage.ratio, stage.latency = ratio, latency
    stage.inputs = Signal((TensorSpec("x", "float32"),), None)
    stage.outputs = Signal((TensorSpec("y", "float32", (width,)),), None)
    return stage


@given(
    st.floats(1e-8, 5e-3),  # seconds a time step, in long chunks
    st.floats(0, 1e-3),  # seconds a call, of any length
)
def test_slices_converge_to_their_time(a_step: float, a_call: float) -> None:
    pace = StepCosts()
    spent: list[float] = []
    for _ in range(200):
        steps = pace.slice(2**40)
        seconds = a_call + steps * a_step
        pace.learn([steps], seconds)
        spent.append(seconds)
    settled = spent[100:]
    assert max(settled) <= max(1.5 * SLICE_SECONDS, a_call + a_step), "no more than a slice may take"
    # A single step that takes longer is still done; other slices use a quarter of their time or more.
    assert min(settled) >= min(SLICE_SECONDS / 5, a_call + a_step)


def test_the_first_slices_are_short_even_of_a_long_chunk() -> None:
    pace = StepCosts()
    seen = [pace.slice(2**40)]
    for _ in range(8):
        pace.learn([seen[-1]], seen[-1] * 1e-9)
        seen.append(pace.slice(2**40))
    assert seen[0] <= 64
    assert all(after <= 4 * before for before, after in pairwise(seen))


def test_one_interrupted_step_is_soon_forgotten() -> None:
    pace = StepCosts()
    for _ in range(50):
        pace.learn([64], 64 * 10e-6)
    usual = pace.slice(2**40)
    pace.learn([64], 5.0)
    for _ in range(5):
        pace.learn([64], 64 * 10e-6)
    assert pace.slice(2**40) >= usual // 2


@pytest.mark.parametrize("ratio", [(1, 1), (1, 160), (3, 1), (2, 5), None])
@pytest.mark.parametrize("width", [1, 7, 256])
@pytest.mark.parametrize("latency", [0, 3])
def test_sizes_follow_the_widest_stage(ratio: tuple[int, int] | None, width: int, latency: int) -> None:
    stage = wide(width, ratio, latency)
    sizes = Sizes(stage.inputs, [stage])
    up, down = ratio or (1, 1)
    assert sizes.slice_steps * max(4.0, 4 * width * up / down) <= SLICE_BYTES
    assert sizes.slice_steps >= 1
    for steps in (1, 10, 1000):
        rows = -(-steps * up // down)
        assert sizes.made(steps) >= rows * width * 4
        assert sizes.made(steps) <= (rows + 1) * width * 4
        assert sizes.made(sizes.steps_within(2**20)) <= 2**20


def test_a_turn_ends_by_time_by_work_ahead_and_by_bytes() -> None:
    now = 0.0
    turn = TurnBudget(lambda: now)
    assert not turn.over
    now = TURN_SECONDS
    assert turn.over
    now = 0.0
    turn = TurnBudget(lambda: now)
    turn.reserve(TURN_SECONDS)
    assert turn.over
    turn = TurnBudget(lambda: now)
    turn.bytes -= TURN_BYTES - 1
    assert not turn.over
    turn.bytes -= 1
    assert turn.over
