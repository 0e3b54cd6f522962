"""Arrivals: the plan alone fixes their times."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.loadgen.schedule import Agenda, Arrival, arrivals

streams = st.integers(1, 40)
rates = st.floats(0.1, 1000)


@given(streams, rates, st.integers(1, 5))
def test_an_even_stream_is_regular_at_its_rate(streams: int, rate: float, ticks: int) -> None:
    found = list(islice(arrivals(streams, rate), streams * ticks))
    times = np.array([a.due for a in found])
    assert (np.diff(times) >= 0).all()
    for stream in range(streams):
        own = [a.due for a in found if a.stream == stream]
        np.testing.assert_allclose(own, (np.arange(ticks) + stream / streams) / rate)
    gaps = np.diff(times)
    if len(gaps):
        np.testing.assert_allclose(gaps, 1 / (rate * streams), rtol=1e-6, atol=1e-12)


def test_poisson_arrivals_have_their_rate_and_no_memory() -> None:
    streams, rate, count = 20, 5.0, 100_000
    found = list(islice(arrivals(streams, rate, "poisson", seed=1), count))
    gaps = np.diff([0.0, *(a.due for a in found)])
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(1 / (streams * rate), rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)  # exponential
    each = Counter(a.stream for a in found)
    assert set(each) == set(range(streams))
    assert max(each.values()) < 1.1 * count / streams


def test_a_seed_makes_the_same_arrivals_again() -> None:
    def some(seed: int) -> list[Arrival]:
        return list(islice(arrivals(3, 10.0, "poisson", seed), 50))

    assert some(4) == some(4) != some(5)


@given(st.lists(st.floats(0, 10), min_size=1).map(sorted), st.floats(0, 12), st.integers(1, 5), st.data())
def test_an_agenda_hands_out_each_arrival_once_when_it_is_due(
    times: list[float], until: float, most: int, data: st.DataObject
) -> None:
    endless = iter([*(Arrival(t, i) for i, t in enumerate(times)), Arrival(1e9, -1)])
    agenda, taken, now = Agenda(endless, until), [], 0.0
    while agenda.next_due is not None:
        now = max(now, data.draw(st.floats(0, 11)), agenda.next_due)
        some = agenda.take(now, most)
        assert 1 <= len(some) <= most
        assert all(a.due <= now for a in some)
        taken += some
    assert [a.due for a in taken] == [t for t in times if t < until]
    assert agenda.take(1e12, most) == []
