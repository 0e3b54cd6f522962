"""Round-robin over peers, and over each peer's streams.

Pure. A peer with many or long requests therefore delays itself and not others.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

P = TypeVar("P", bound=Hashable)
T = TypeVar("T")


class RoundRobin(Generic[P, T]):
    """Items that are ready, by peer. A taken item is out until it is added again."""

    def __init__(self) -> None:
        self._peers: OrderedDict[P, deque[T]] = OrderedDict()  # the next peer comes first
        self.count = 0  # items that are ready

    def add(self, peer: P, item: T) -> None:
        """Add an item that is ready, behind the peer's other items."""
        queue = self._peers.get(peer)
        if queue is None:
            self._peers[peer] = deque((item,))
        else:
            queue.append(item)
        self.count += 1

    def take(self) -> tuple[P, T]:
        """Take the next peer's next item. Raises KeyError if none is ready."""
        peer, queue = self._peers.popitem(last=False)
        item = queue.popleft()
        if queue:
            self._peers[peer] = queue  # behind the other peers
        self.count -= 1
        return peer, item
