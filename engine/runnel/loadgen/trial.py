"""One run of a load: the loop that sends what is due and notes what comes back, on a clock it is given.

Rules of this file: nothing is waited for before what is due is sent; a latency counts from when its chunk
was due, whether or not it could be sent then; what the loop holds is bounded, by ending the run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from ..errors import RunnelError
from .latency import Latencies
from .schedule import Agenda, Pattern, arrivals

MOST_AT_ONCE: Final = 64  # chunks sent between two looks at the replies, when the generator is behind
LEAST_OUTSTANDING: Final = 64  # chunks: so many without an answer are never yet a backlog
LONGEST_SLEEP: Final = 0.1  # seconds: how often the watcher is called at least

Answer = tuple[float, RunnelError | None]  # what `send` was given, and the error if it failed


class Target(Protocol):
    """What takes the load. Its streams are open; `send` and `poll` are one thread's."""

    def send(self, stream: int, due: float) -> None:
        """Hand over the stream's next chunk, and never wait. `due` comes back with its answer.

        It is on its way by the next `poll` at the latest.
        """

    def poll(self, seconds: float) -> list[Answer]:
        """What was answered since; where nothing was, wait for it no longer than so."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run. Rates in Hz, times in seconds."""

    streams: int
    rate: float  # chunks a second of each stream
    seconds: float  # counted, after the warm-up
    warm_up: float = 0.5  # not counted: caches, and the daemon's first batches of each size
    pattern: Pattern = "even"
    seed: int = 0
    patience: float = 5.0  # the mean wait at which the run is broken off, and the time for late replies

    @property
    def offered(self) -> float:
        """Chunks a second."""
        return self.streams * self.rate

    @property
    def most_outstanding(self) -> int:
        """Little's law: as many without an answer, at this rate, wait `patience` on average."""
        return max(LEAST_OUTSTANDING, int(self.offered * self.patience))


@dataclass(slots=True)
class Result:
    """What came of a plan; only what was due after the warm-up is counted."""

    plan: Plan
    latencies: Latencies = field(default_factory=Latencies)  # of answers that were no errors
    lags: Latencies = field(default_factory=Latencies)  # from due to sent: the generator's own
    due: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # by the error's code
    first_failure: str = ""
    unanswered: int = 0  # at the end
    elapsed: float = 0.0  # seconds in which they were answered
    behind: bool = False  # broken off: the backlog grew

    @property
    def failed(self) -> int:
        return self.failures.total() + self.unanswered

    @property
    def answered_rate(self) -> float:
        """Chunks a second that were answered."""
        return self.latencies.count / self.elapsed if self.elapsed else 0.0

    def meets(self, deadline: float, percentile: float) -> bool:
        """Whether everything was answered, and `percentile` percent of it within `deadline` seconds."""
        if self.behind or self.failed or not self.latencies.count:
            return False
        return self.latencies.percentile(percentile) <= deadline


Watch = Callable[[float, Result, int], None]  # seconds since the start, so far, chunks without an answer


def run(
    plan: Plan,
    target: Target,
    clock: Callable[[], float] = time.perf_counter,
    watch: Watch = lambda *_: None,
) -> Result:
    """Run the plan. Returns when every chunk is answered, or `patience` after the last was sent."""
    result = Result(plan)
    end = plan.warm_up + plan.seconds
    agenda = Agenda(arrivals(plan.streams, plan.rate, plan.pattern, plan.seed), end)
    send, lag, most = target.send, result.lags.add, plan.most_outstanding
    outstanding = 0
    answered_at = plan.warm_up
    start = clock()
    while True:
        now = clock() - start
        for arrival in agenda.take(now, MOST_AT_ONCE):
            due = arrival.due
            if due >= plan.warm_up:
                result.due += 1
                lag(clock() - start - due)
            send(arrival.stream, due)
            outstanding += 1
        next_due = agenda.next_due
        if outstanding > most:
            result.behind = True
            break
        if next_due is None and (not outstanding or now > end + plan.patience):
            break
        wait = LONGEST_SLEEP if next_due is None else next_due - (clock() - start)
        answers = target.poll(min(max(wait, 0.0), LONGEST_SLEEP))
        outstanding -= len(answers)
        now = clock() - start
        if _note(result, answers, now):
            answered_at = now
        watch(now, result, outstanding)
    result.elapsed = max(answered_at - plan.warm_up, 0.0)
    result.unanswered = result.due - result.latencies.count - result.failures.total()
    return result


def _note(result: Result, answers: Iterable[Answer], now: float) -> bool:
    """Count the answers to chunks that were due after the warm-up; whether there were any."""
    warm_up, add = result.plan.warm_up, result.latencies.add
    counted = False
    for due, error in answers:
        if due < warm_up and error is None:
            continue
        counted = True
        if error is None:
            add(now - due)
        else:
            if due < warm_up:
                result.due += 1
            result.failures[error.code] += 1
            result.first_failure = result.first_failure or str(error)
    return counted
