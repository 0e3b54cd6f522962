"""Percentiles from buckets, compared with numpy's from all values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.loadgen.latency import BUCKETS, LEAST, MOST, PRECISION, Latencies

durations = st.lists(st.one_of(st.floats(LEAST, 10), st.floats(0, 1e-4)), min_size=1, max_size=300)


def filled(values: list[float]) -> Latencies:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    return latencies


@given(durations, st.floats(0.1, 100))
def test_a_percentile_is_the_true_one_or_a_little_more(values: list[float], percent: float) -> None:
    true = max(float(np.percentile(values, percent, method="inverted_cdf")), LEAST)
    found = filled(values).percentile(percent)
    assert found >= min(true, max(values)) * (1 - 1e-9)
    assert found <= true * (1 + PRECISION) * (1 + 1e-9)
    assert found <= max(values)


@given(durations)
def test_count_mean_and_maximum_are_exact(values: list[float]) -> None:
    latencies = filled(values)
    assert latencies.count == len(values)
    assert latencies.max == max(values)
    assert latencies.mean == pytest.approx(np.mean(values))
    assert latencies.percentile(100) == max(values)


@given(durations, st.floats(LEAST, 10))
def test_the_share_within_a_deadline_is_exact_to_within_a_bucket(
    values: list[float], deadline: float
) -> None:
    share, all_values = filled(values).share(deadline), np.array(values)
    assert share <= (all_values <= deadline * (1 + 1e-9)).mean() + 1e-9
    assert share >= (all_values <= deadline / (1 + PRECISION) ** 2).mean() - 1e-9


@given(durations)
def test_the_histogram_holds_every_value_and_few_rows(values: list[float]) -> None:
    rows = filled(values).spread(rows=8)
    assert sum(n for _, n in rows) == len(values)
    assert len(rows) <= 8
    uppers = [upper for upper, _ in rows]
    assert uppers == sorted(uppers)
    assert rows[-1][1] > 0
    assert uppers[-1] * (1 + PRECISION) >= min(max(values), MOST) * (1 - 1e-9)


def test_values_past_all_buckets_count_in_the_last_and_negative_ones_as_zero() -> None:
    latencies = filled([-1.0, 1e6])
    assert latencies.percentile(50) == LEAST
    assert latencies.percentile(99) == latencies.max == 1e6
    assert BUCKETS < 4096


def test_without_values() -> None:
    latencies = Latencies()
    assert latencies.percentile(99) == latencies.mean == latencies.max == 0
    assert latencies.spread() == []
    assert latencies.share(1.0) == 1
