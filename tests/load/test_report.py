"""The text and the document contain the figures of the result."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from runnel.loadgen import report
from runnel.loadgen.ramp import Capacity
from runnel.loadgen.trial import Plan, Result


def result(latency: float = 0.002, lag: float = 1e-5, streams: int = 4) -> Result:
    found = Result(Plan(streams, 50.0, seconds=2.0))
    for _ in range(99):
        found.latencies.add(latency)
        found.lags.add(lag)
    found.latencies.add(0.0041)
    found.due, found.elapsed = 100, 2.0
    return found


def test_a_run_in_text() -> None:
    text = report.text(result(), remote=True)
    assert "4 streams at 50 Hz (even arrivals)" in text
    assert "200 chunks/s offered, 50 answered" in text
    assert "max 4.10 ms" in text
    assert "the generator's own lag    p50 0.010 ms" in text
    assert "warning" not in text
    assert "failed" not in text
    assert text.splitlines()[-1].startswith("≤")
    assert sum(int(line.split()[-1]) for line in text.splitlines() if line[:1] == "≤") == 100


def test_a_late_generator_is_reported_for_a_remote_target() -> None:
    late = result(latency=0.002, lag=0.001)
    assert "warning: the generator itself sent 1 % of the chunks more than 1.0" in report.text(late, True)
    assert "generator" not in report.text(late, remote=False)


def test_failures_and_overload_are_reported() -> None:
    bad = result()
    bad.failures, bad.unanswered, bad.first_failure = Counter({"LIMIT": 3}), 2, "too many"
    bad.behind = True
    text = report.text(bad, remote=True)
    assert "failed: 3 × LIMIT, 2 unanswered (first: too many)" in text
    assert "fell behind" in text


def test_a_document_is_json_with_all_figures() -> None:
    found = json.loads(json.dumps(report.document(result())))
    assert found["latency"]["max"] == 0.0041
    assert found["latency"]["p99"] == pytest.approx(0.002, rel=0.01)
    assert found["due"] == found["answered"] == 100
    assert found["fell_behind"] is False


def test_a_capacity_reports_both_sides() -> None:
    missed = result(latency=0.05, streams=5)
    missed.behind = True
    found = Capacity(4, result(), missed, 3)
    text = report.capacity_text(found, 0.032, 99.0, remote=True)
    assert text.startswith("4 live streams at p99 < 32.0 ms, found in 3 trials")
    assert "held          4 streams" in text
    assert "missed        5 streams" in text
    assert "(fell behind)" in text
    laid = json.loads(json.dumps(report.capacity_document(found, 0.032, 99.0)))
    assert (laid["capacity"], laid["held"]["streams"], laid["missed"]["streams"]) == (4, 4, 5)


def test_a_capacity_beyond_the_limit_and_of_zero() -> None:
    assert "the machine may hold more" in report.capacity_text(Capacity(4, result(), None, 3), 1, 99, True)
    none = report.capacity_text(Capacity(0, None, result(), 1), 0.001, 99, True)
    assert none.startswith("0 live streams at p99 < 1.00 ms")
