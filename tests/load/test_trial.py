"""The loop of a trial, with a clock that only its target moves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.errors import LimitError
from runnel.loadgen.latency import Latencies
from runnel.loadgen.trial import LEAST_OUTSTANDING, Plan, Result, run

from .fakes import OneAtATime


def measured(target: OneAtATime, plan: Plan) -> Result:
    return run(plan, target, target.clock)


@given(st.integers(1, 30), st.floats(1, 30), st.sampled_from(["even", "poisson"]))
def test_every_chunk_is_sent_and_counted_once(streams: int, rate: float, pattern: str) -> None:
    target = OneAtATime(service=1e-4)
    plan = Plan(streams, rate, seconds=2.0, warm_up=0.5, pattern=pattern)  # type: ignore[arg-type]
    result = measured(target, plan)
    assert len({(s, d) for s, d, _ in target.sent}) == len(target.sent)
    counted = [due for _, due, _ in target.sent if due >= plan.warm_up]
    assert result.due == result.latencies.count == len(counted)
    assert not result.failed
    assert not result.behind
    if pattern == "even":
        assert len(target.sent) == pytest.approx(plan.offered * 2.5, abs=streams + 1)


@given(st.floats(0.1, 0.9))
def test_latency_counts_from_the_due_time_to_the_answer(load: float) -> None:
    """One regular stream on a server that keeps up: each chunk takes exactly its service time."""
    target = OneAtATime(service=load / 50)
    result = measured(target, Plan(1, 50.0, seconds=2.0))
    assert result.latencies.max == pytest.approx(load / 50, rel=1e-6)
    assert result.lags.max == pytest.approx(0, abs=1e-9)


def test_a_stall_shows_in_the_percentiles_unlike_in_a_closed_loop() -> None:
    """300 ms once in ten seconds, a thousand chunks a second."""
    stall = (5.0, 0.3)
    target = OneAtATime(service=1e-4, stall=stall)
    result = measured(target, Plan(10, 100.0, seconds=10.0, warm_up=0.0))
    # A chunk due t seconds into the stall waits for its rest and for the t × 1000 chunks before it.
    assert result.latencies.percentile(98) == pytest.approx(0.3 - 0.2 + 0.2 * 1000 * 1e-4, rel=0.03)
    assert result.latencies.percentile(99) == pytest.approx(0.3 - 0.1 + 0.1 * 1000 * 1e-4, rel=0.03)
    assert result.latencies.max == pytest.approx(0.3, rel=0.01)

    closed, other = Latencies(), OneAtATime(service=1e-4, stall=stall)
    while other.now < 10:  # a closed loop: the stall is one latency of very many
        began = other.now
        other.send(0, began)
        other.poll(1.0)
        closed.add(other.now - began)
    assert closed.max == pytest.approx(0.3, rel=0.05)
    assert closed.percentile(99.9) < 0.001


def test_due_chunks_are_sent_while_answers_are_awaited() -> None:
    target = OneAtATime(service=1e-4, stall=(1.0, 2.0))
    measured(target, Plan(4, 25.0, seconds=4.0, warm_up=0.0))
    late = [when - due for _, due, when in target.sent]
    np.testing.assert_allclose(late, 0, atol=1e-9)


def test_a_late_generator_reports_its_lag() -> None:
    target = OneAtATime(service=1e-4)
    slept = target.poll

    def oversleeping(seconds: float) -> list[tuple[float, object]]:
        target.now += 0.05
        return slept(seconds)  # type: ignore[return-value]

    target.poll = oversleeping  # type: ignore[assignment, method-assign]
    result = measured(target, Plan(10, 10.0, seconds=5.0))
    assert result.lags.percentile(50) > 0.01
    assert result.latencies.percentile(50) >= result.lags.percentile(50)


def test_overload_ends_the_run_early_with_a_bounded_backlog() -> None:
    target = OneAtATime(service=0.01)  # a hundred a second
    plan = Plan(10, 100.0, seconds=1000.0, patience=1.0)
    result = measured(target, plan)
    assert result.behind
    assert target.now < 3
    assert result.unanswered <= plan.most_outstanding + 64
    assert not result.meets(1e9, 99)


def test_the_backlog_of_a_small_load_has_room() -> None:
    assert Plan(1, 0.1, seconds=1.0, patience=0.1).most_outstanding == LEAST_OUTSTANDING


def test_warm_up_is_not_counted() -> None:
    target = OneAtATime(service=1e-4, stall=(0.0, 0.4))
    result = measured(target, Plan(10, 100.0, seconds=2.0, warm_up=1.0))
    assert result.latencies.max < 0.01
    assert result.due == pytest.approx(2000, abs=10)
    assert result.answered_rate == pytest.approx(1000, rel=0.01)


def test_failures_are_counted_by_code_also_in_the_warm_up() -> None:
    target = OneAtATime(fails={0: LimitError("too many"), 150: LimitError("again")})
    result = measured(target, Plan(1, 100.0, seconds=1.0, warm_up=1.0))
    assert dict(result.failures) == {"LIMIT": 2}
    assert result.first_failure == "too many"
    assert result.failed == 2
    assert result.unanswered == 0
    assert not result.meets(1.0, 50)


def test_missing_answers_end_the_run_and_count_as_failures() -> None:
    target = OneAtATime(loses={120, 130})
    plan = Plan(1, 100.0, seconds=1.0, warm_up=1.0, patience=3.0)
    result = measured(target, plan)
    assert result.unanswered == result.failed == 2
    assert target.now < 2 + 3 + 0.2


def test_the_watcher_is_called_even_without_answers() -> None:
    target, seen = OneAtATime(), []
    run(Plan(1, 0.5, seconds=3.0, warm_up=0.0), target, target.clock, lambda now, *_: seen.append(now))
    assert len(seen) >= 20
