"""Whose request is run next: each peer in its turn, and of a peer each stream in its turn.

Pure. A peer that asks for much, or for what takes long, thus waits for itself and not in front of others.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

P = TypeVar("P", bound=Hashable)
T = TypeVar("T")


class Rota(Generic[P, T]):
    """Items that are ready, by peer. An item that was taken is out, until it is added again."""

    def __init__(self) -> None:
        self._peers: OrderedDict[P, deque[T]] = OrderedDict()  # whose turn is next comes first
        self.count = 0  # items that are ready

    def add(self, peer: P, item: T) -> None:
        """The item is ready; it comes behind the peer's others."""
        queue = self._peers.get(peer)
        if queue is None:
            self._peers[peer] = deque((item,))
        else:
            queue.append(item)
        self.count += 1

    def take(self) -> tuple[P, T]:
        """The next peer's next item; KeyError where none is ready."""
        peer, queue = self._peers.popitem(last=False)
        item = queue.popleft()
        if queue:
            self._peers[peer] = queue  # behind the other peers
        self.count -= 1
        return peer, item
