"""A fake server with its own clock: its effect on latency is easy to compute by hand."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from runnel.errors import RunnelError
from runnel.loadgen.trial import Answer


@dataclass
class OneAtATime:
    """Serves chunks in order, each in `service` seconds; pauses at `stall[0]` for `stall[1]`.

    Only `poll` moves the clock, to the next answer or to the end of the wait.
    """

    service: float = 0.001
    stall: tuple[float, float] = (0.0, 0.0)
    fails: dict[int, RunnelError] = field(default_factory=dict)  # by the number sent before
    loses: set[int] = field(default_factory=set)
    now: float = 0.0
    sent: list[tuple[int, float, float]] = field(default_factory=list)  # stream, due, when
    _free: float = 0.0
    _leaving: deque[tuple[float, float, RunnelError | None]] = field(default_factory=deque)

    def clock(self) -> float:
        return self.now

    def send(self, stream: int, due: float) -> None:
        number = len(self.sent)
        self.sent.append((stream, due, self.now))
        if number in self.loses:
            return
        begins = max(self._free, self.now)
        at, long = self.stall
        if at <= begins < at + long:
            begins = at + long
        self._free = begins + self.service
        self._leaving.append((self._free, due, self.fails.get(number)))

    def poll(self, seconds: float) -> list[Answer]:
        assert seconds >= 0
        until = self.now + seconds
        if not self._leaving or self._leaving[0][0] > until:
            self.now = until
            return []
        answers: list[Answer] = []
        self.now = max(self.now, self._leaving[0][0])
        while self._leaving and self._leaving[0][0] <= self.now:
            _, due, error = self._leaving.popleft()
            answers.append((due, error))
        return answers
