"""Each user's share of a bounded resource, so that no user can take another's.

Rules of this file: pure. The time of a call does not depend on how much is held. A user's rank among 10,000
is found by bisection; the shares are recomputed only when the number of users changes.

Theory: what is remembered can be forgotten. So `FairFifo` gives everything to the users who are active, and
evicts from the user who holds the most. A user who holds no more than the bound divided by the number of
users never loses anything to another. An open stream cannot be taken back. So `Quota` reserves a part for
each user who may come, and gives the rest to those who come first. Without keys all clients are one user,
``""``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from typing import Final, Generic, TypeVar

RESERVED_ONE_IN: Final = 4  # one in this many places is reserved for users; the others are for anyone

T = TypeVar("T")


class FairFifo(Generic[T]):
    """Items in the order of their age, each with a user and a weight. `weight`: the sum."""

    def __init__(self) -> None:
        self.weight = 0
        self._all: OrderedDict[T, None] = OrderedDict()  # oldest first
        self._per_user = False  # count each user separately; set by the first user with a name
        self._of: dict[str, OrderedDict[T, None]] = {}
        self._weights: dict[str, int] = {}
        self._ranked: list[tuple[int, str]] = []  # each user's weight, sorted

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, item: T) -> bool:
        return item in self._all

    def add(self, user: str, item: T, weight: int) -> None:
        """Add an item as the youngest."""
        if user and not self._per_user:
            self._count_users()
        self._all[item] = None
        self.weight += weight
        if self._per_user:
            mine = self._of.get(user)
            if mine is None:
                mine = self._of[user] = OrderedDict()
            mine[item] = None
            self._weigh(user, weight)

    def remove(self, user: str, item: T, weight: int) -> None:
        """Remove an item."""
        del self._all[item]
        self.weight -= weight
        if self._per_user:
            mine = self._of[user]
            del mine[item]
            self._weigh(user, -weight)
            if not mine:
                del self._of[user]

    def oldest(self) -> T | None:
        """The oldest of all."""
        return next(iter(self._all), None)

    def excess(self) -> T:
        """The item to evict: the oldest of the user who holds the most."""
        if not self._per_user:
            return next(iter(self._all))
        _, user = self._ranked[-1]
        return next(iter(self._of[user]))

    def _count_users(self) -> None:
        self._per_user = True
        if self._all:
            self._of[""] = self._all.copy()
            self._weigh("", self.weight)

    def _weigh(self, user: str, more: int) -> None:
        before = self._weights.get(user, 0)
        after = before + more
        if before:
            del self._ranked[bisect_left(self._ranked, (before, user))]
        if after:
            insort(self._ranked, (after, user))
            self._weights[user] = after
        else:
            del self._weights[user]


class Quota:
    """A limited number of places, of which each expected user can always count on `part`.

    A user may have more while the unused parts of the others stay free. `part`: as configured; by default
    one in `RESERVED_ONE_IN` of the places, divided among the users. A single user has all places. If the
    parts exceed the places, no user has more than a part, and those who come first get them.
    """

    def __init__(self, limit: int, part: int = 0) -> None:
        self.limit = limit
        self.taken = 0
        self._wished = part
        self._users = 1
        self._of: dict[str, int] = {}
        self._within = 0  # places taken that lie within their users' parts
        self.part = limit

    @property
    def users(self) -> int:
        """Number of users who may come; at least the number of those who hold a place."""
        return self._users

    @users.setter
    def users(self, users: int) -> None:
        users = max(users, len(self._of), 1)
        if users == self._users:
            return
        self._users = users
        if users == 1:
            self.part = self.limit
        else:
            self.part = min(self._wished or max(1, self.limit // (RESERVED_ONE_IN * users)), self.limit)
        self._within = sum(min(held, self.part) for held in self._of.values())

    def held(self, user: str) -> int:
        return self._of.get(user, 0)

    def has_room(self, user: str, more: int = 1) -> bool:
        """Whether the user may take `more` places."""
        if not more:
            return True
        held = self._of.get(user, 0)
        if not held and len(self._of) >= self._users:  # one more than expected
            self.users = len(self._of) + 1
        if self._users == 1 or held + more <= self.part:
            return self.taken + more <= self.limit
        others = (self._users - 1) * self.part - (self._within - min(held, self.part))
        if not self._wished:  # with more users than places, the parts alone would take everything
            others = min(others, self.limit // RESERVED_ONE_IN)
        return self.taken + more + others <= self.limit

    def take(self, user: str, more: int = 1) -> None:
        """Take places, without a check."""
        if not more:
            return
        held = self._of.get(user, 0)
        self._of[user] = after = held + more
        self.taken += more
        if after <= self.part:
            self._within += more
        elif held < self.part:
            self._within += self.part - held
        if len(self._of) > self._users:
            self.users = len(self._of)

    def give(self, user: str, less: int = 1) -> None:
        """Give places back."""
        if not less:
            return
        held = self._of[user]
        after = held - less
        self.taken -= less
        if held <= self.part:
            self._within -= less
        elif after < self.part:
            self._within -= self.part - after
        if after:
            self._of[user] = after
        else:
            del self._of[user]
