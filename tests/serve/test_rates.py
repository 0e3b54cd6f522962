"""Figures from stats documents, compared with numpy and with the values themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runnel.daemon.metrics.rates import percentile, rates_of, since, together
from runnel.daemon.protocol.stats import SECONDS, SIZES, Histogram, Stats

VALUES = st.lists(st.floats(0, 20), min_size=1, max_size=300)
SHARES = st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 1.0])


def observed(values: list[float], bounds: tuple[float, ...] = SECONDS) -> Histogram:
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    return histogram


@given(VALUES)
def test_a_histogram_counts_as_numpy_does(values: list[float]) -> None:
    histogram = observed(values)
    edges = np.array([-np.inf, *SECONDS, np.inf])
    # numpy's bins are closed below, Prometheus' above: so both are negated.
    counts = np.histogram(-np.array(values), -edges[::-1])[0][::-1]
    assert histogram.counts == counts.tolist()
    assert histogram.sum == pytest.approx(sum(values))


@given(VALUES, SHARES)
def test_a_percentile_is_in_the_bucket_of_the_value(values: list[float], q: float) -> None:
    histogram = observed(values)
    true = float(np.quantile(values, q, method="inverted_cdf"))
    estimate = percentile(histogram.bounds, histogram.counts, q)
    assert estimate is not None
    at = int(np.searchsorted(SECONDS, true))
    if at == len(SECONDS):
        assert estimate == SECONDS[-1]
    else:
        assert (SECONDS[at - 1] if at else 0.0) <= estimate <= SECONDS[at]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=len(SIZES)), st.floats(0.001, 0.999))
@example([0, 4, 0, 0, 4], 0.75)
def test_within_a_bucket_it_is_linear_as_numpys_interpolation(counts: list[int], q: float) -> None:
    padded = [*counts, *[0] * (len(SIZES) + 1 - len(counts))]
    reached = np.cumsum(padded[:-1])
    total = reached[-1]
    if not total or np.isclose(q * total, reached).any():  # numpy has no answer, or two
        return
    # Empty buckets add no edge.
    edges, sums = [0.0], [0.0]
    for at, bound in enumerate(SIZES):
        if padded[at]:
            edges += [SIZES[at - 1] if at else 0.0, bound]
            sums += [float(reached[at] - padded[at]), float(reached[at])]
    expected = np.interp(q * total, sums[1:], edges[1:])
    assert percentile(SIZES, padded, q) == pytest.approx(expected)


def test_a_histogram_without_values_has_no_percentile() -> None:
    assert percentile(SIZES, [0] * (len(SIZES) + 1), 0.5) is None


@given(VALUES, VALUES, VALUES)
def test_the_difference_of_documents_covers_the_interval(
    first: list[float], then: list[float], other: list[float]
) -> None:
    one, two = Stats(), Stats()

    def happen(stats: Stats, values: list[float]) -> None:
        for value in values:
            stats.latency.observe(value)
            stats.chunks += 1
            stats.errors["GAP" if value > 1 else "LIMIT"] += 1

    happen(one, first)
    before = json.loads(json.dumps(one.document())) | {"streams": 3, "boot_id": "a"}
    happen(one, then)
    after = one.document() | {"streams": 5, "boot_id": "a"}
    happen(two, other)
    happened = together([since(after, before), since(two.document() | {"streams": 2, "boot_id": "b"}, None)])
    assert happened["chunks"] == len(then) + len(other)
    assert happened["latency"]["counts"] == observed(then + other).counts
    assert happened["latency"]["bounds"] == list(SECONDS)
    assert happened["errors"].get("GAP", 0) == sum(value > 1 for value in then + other)
    assert happened["streams"] == 7  # a gauge: the current value


def test_after_a_restart_everything_is_new() -> None:
    before = {"boot_id": "a", "chunks": 500, "requests": {"feed": 500}}
    after = {"boot_id": "b", "chunks": 7, "requests": {"feed": 7}}
    assert since(after, before)["chunks"] == 7
    assert since(after, before)["requests"] == {"feed": 7}


def test_rates_are_those_of_the_interval() -> None:
    stats = Stats()
    before = stats.document() | {"cpu_seconds": 1.0}
    stats.requests.update(feed=8, open=2)
    stats.errors.update(GAP=4)
    stats.closed.update(idle=1)
    stats.chunks, stats.repeats, stats.dropped_replies, stats.opened = 8, 2, 6, 2
    for size in (2, 6):
        stats.batch_sizes.observe(size)
    for _ in range(100):
        stats.latency.observe(1e-3)
    after = stats.document() | {"cpu_seconds": 2.0, "streams": 2, "max_streams": 9, "pending": 3}
    read = rates_of(since(after, before), 2.0)
    assert (read.steps, read.requests, read.fill, read.cpu) == (4.0, 5.0, 4.0, 0.5)
    assert (read.errors, read.closed) == ({"GAP": 2.0}, {"idle": 0.5})
    assert (read.repeats, read.dropped, read.opened) == (1.0, 3.0, 1.0)
    assert (read.streams, read.max_streams, read.pending, read.resident_bytes) == (2, 9, 3, 0)
    assert read.p50 is not None
    assert read.p50 / 2**0.5 <= 1e-3 <= read.p50 * 2**0.5


def test_missing_names_of_an_older_daemon_count_as_zero() -> None:
    read = rates_of({}, 1.0)
    assert (read.steps, read.fill, read.p99, read.errors) == (0.0, None, None, {})
