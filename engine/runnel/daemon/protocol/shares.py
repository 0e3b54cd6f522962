"""What users hold of something bounded, so that none of them can take another's part.

Rules of this file: pure; the time of a call does not depend on how much is held. A user's place among 10,000
is found by bisection; the shares of all are counted anew only when the number of users changes.

Theory: what is remembered can be forgotten, so `Remembered` gives all of it to whoever uses it, and takes
from the user who holds the most. A user who holds no more than the bound divided by the number of users never
loses anything to another. A stream that is open cannot be taken back, so `Places` keeps a part free for each
user who may come, and gives the rest to whoever comes first. Without keys all clients are one user, ``""``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from typing import Final, Generic, TypeVar

KEPT_FREE: Final = (
    4  # of all places one in so many is kept free, divided among the users: the rest is for any
)

T = TypeVar("T")


class Remembered(Generic[T]):
    """Things in the order of their age, each some user's and of some weight. `weight`: of all of them."""

    def __init__(self) -> None:
        self.weight = 0
        self._all: OrderedDict[T, None] = OrderedDict()  # oldest first
        self._apart = False  # users are counted separately, once there is one with a name
        self._of: dict[str, OrderedDict[T, None]] = {}
        self._weights: dict[str, int] = {}
        self._ranked: list[tuple[int, str]] = []  # each user's weight, sorted

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, item: T) -> bool:
        return item in self._all

    def add(self, user: str, item: T, weight: int) -> None:
        """Remember one thing more, as the youngest."""
        if user and not self._apart:
            self._count_users()
        self._all[item] = None
        self.weight += weight
        if self._apart:
            mine = self._of.get(user)
            if mine is None:
                mine = self._of[user] = OrderedDict()
            mine[item] = None
            self._weigh(user, weight)

    def remove(self, user: str, item: T, weight: int) -> None:
        """Forget one."""
        del self._all[item]
        self.weight -= weight
        if self._apart:
            mine = self._of[user]
            del mine[item]
            self._weigh(user, -weight)
            if not mine:
                del self._of[user]

    def oldest(self) -> T | None:
        """The oldest of all."""
        return next(iter(self._all), None)

    def excess(self) -> T:
        """What to forget when the whole is too much: the oldest of the user who holds the most."""
        if not self._apart:
            return next(iter(self._all))
        _, user = self._ranked[-1]
        return next(iter(self._of[user]))

    def _count_users(self) -> None:
        self._apart = True
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


class Places:
    """So many places, of which each of the users who may come can count on `part`, whatever the others do.

    A user may have more than that while the rest of the others' parts stays free. `part`: as wished; by
    default one in `KEPT_FREE` of the places, divided among the users. One user alone has all of them. Where
    the parts are more than there are places, none has more than a part, and those who come first have it.
    """

    def __init__(self, places: int, part: int = 0) -> None:
        self.places = places
        self.taken = 0
        self._wished = part
        self._users = 1
        self._of: dict[str, int] = {}
        self._within = 0  # of the places taken, those that belong to somebody's part
        self.part = places

    @property
    def users(self) -> int:
        """How many users may come; those who are there count, though it was set lower."""
        return self._users

    @users.setter
    def users(self, users: int) -> None:
        users = max(users, len(self._of), 1)
        if users == self._users:
            return
        self._users = users
        if users == 1:
            self.part = self.places
        else:
            self.part = min(self._wished or max(1, self.places // (KEPT_FREE * users)), self.places)
        self._within = sum(min(held, self.part) for held in self._of.values())

    def held(self, user: str) -> int:
        return self._of.get(user, 0)

    def room(self, user: str, more: int = 1) -> bool:
        """Whether the user may take so many places more."""
        if not more:
            return True
        held = self._of.get(user, 0)
        if not held and len(self._of) >= self._users:  # one more than expected
            self.users = len(self._of) + 1
        if self._users == 1 or held + more <= self.part:
            return self.taken + more <= self.places
        others = (self._users - 1) * self.part - (self._within - min(held, self.part))
        if not self._wished:  # with more users than places the parts alone would take all
            others = min(others, self.places // KEPT_FREE)
        return self.taken + more + others <= self.places

    def take(self, user: str, more: int = 1) -> None:
        """Take places; nothing is checked."""
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
