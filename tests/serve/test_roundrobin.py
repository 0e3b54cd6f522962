"""Round-robin: no peer waits behind more than one item of each other peer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.daemon.protocol.roundrobin import RoundRobin


@given(st.lists(st.one_of(st.integers(0, 4), st.none()), max_size=60))
def test_every_ready_peer_is_served_before_another_is_served_twice(script: list[int | None]) -> None:
    """None takes an item; a number adds one for that peer."""
    queue: RoundRobin[int, int] = RoundRobin()
    ready: dict[int, list[int]] = {}
    skipped: dict[int, int] = {}  # items of others taken since this peer was served, or became ready
    for number, peer in enumerate(script):
        if peer is not None:
            queue.add(peer, number)
            ready.setdefault(peer, []).append(number)
            skipped.setdefault(peer, 0)
            continue
        if not queue.count:
            with pytest.raises(KeyError):
                queue.take()
            continue
        served, item = queue.take()
        assert item == ready[served].pop(0), "a peer's items in their order"
        if not ready[served]:
            del ready[served], skipped[served]
        else:
            skipped[served] = 0
        for other in ready:
            if other != served:
                skipped[other] += 1
                assert skipped[other] <= 4, "each of the four others once, at most"
    assert queue.count == sum(map(len, ready.values()))
