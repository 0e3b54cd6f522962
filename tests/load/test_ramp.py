"""The search of a ramp, for known capacities."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runnel.loadgen.ramp import ATTEMPTS, CLOSE, ramp
from runnel.loadgen.trial import Plan, Result


def result_of(streams: int) -> Result:
    return Result(Plan(streams, 1.0, 1.0))


@given(st.integers(0, 5000), st.integers(1, 64), st.integers(1, 6000))
def test_the_answer_is_known_to_within_a_small_part(capacity: int, first: int, most: int) -> None:
    tried: list[int] = []

    def trial(streams: int) -> Result:
        tried.append(streams)
        return result_of(streams)

    found = ramp(trial, lambda result: result.plan.streams <= capacity, first, most)
    reachable = min(capacity, most)
    assert found.streams <= reachable
    assert reachable - found.streams <= max(1, CLOSE * reachable)
    assert found.trials == len(tried) <= 30 * ATTEMPTS
    assert max(tried) <= most
    assert (found.missed is None) == (found.streams == most)
    assert (found.held is None) == (found.streams == 0)
    if found.held:
        assert found.held.plan.streams == found.streams
    if found.missed:
        assert found.streams < found.missed.plan.streams


@given(st.integers(8, 5000), st.data())
def test_single_disturbances_do_not_change_the_answer(capacity: int, data: st.DataObject) -> None:
    """Trials that would pass fail now and then, but never twice in a row."""
    disturbed: set[int] = set()

    def passes(result: Result) -> bool:
        streams = result.plan.streams
        if streams not in disturbed and data.draw(st.booleans()):
            disturbed.add(streams)
            return False
        return streams <= capacity

    found = ramp(result_of, passes, first=8, most=10_000)
    assert capacity - found.streams <= max(1, CLOSE * capacity)
    assert found.streams <= capacity
