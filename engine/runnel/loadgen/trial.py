"""One run of a load: send what is due, record the replies. The clock is an argument.

Rules of this file: due chunks are sent before anything is waited for. A latency counts from when its chunk
was due, whether or not it could be sent then. If the backlog grows too large, the run ends.
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

MOST_AT_ONCE: Final = 64  # chunks sent between two reads of the replies, if the generator is behind
LEAST_OUTSTANDING: Final = 64  # chunks: fewer without a reply never count as a backlog
LONGEST_SLEEP: Final = 0.1  # seconds: longest interval between calls of the watcher

Answer = tuple[float, RunnelError | None]  # the `due` given to `send`, and the error if the chunk failed


class Target(Protocol):
    """The system under load. Its streams are open; `send` and `poll` belong to one thread."""

    def send(self, stream: int, due: float) -> None:
        """Hand over the stream's next chunk, without waiting. `due` is returned with its reply.

        The chunk is sent by the next `poll` at the latest.
        """

    def poll(self, seconds: float) -> list[Answer]:
        """Return the replies since the last call; if there are none, wait for up to `seconds`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a run. Rates in Hz, times in seconds."""

    streams: int
    rate: float  # chunks a second of each stream
    seconds: float  # measured, after the warm-up
    warm_up: float = 0.5  # not measured: caches, and the daemon's first batches of each size
    pattern: Pattern = "even"
    seed: int = 0
    patience: float = 5.0  # the mean wait at which the run is aborted, and the time for late replies

    @property
    def offered(self) -> float:
        """Chunks a second."""
        return self.streams * self.rate

    @property
    def most_outstanding(self) -> int:
        """Unanswered chunks at which the mean wait is `patience`, by Little's law."""
        return max(LEAST_OUTSTANDING, int(self.offered * self.patience))


@dataclass(slots=True)
class Result:
    """The outcome of a plan; only chunks due after the warm-up count."""

    plan: Plan
    latencies: Latencies = field(default_factory=Latencies)  # of replies without an error
    lags: Latencies = field(default_factory=Latencies)  # from due to sent: delays by the generator itself
    due: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # by the error's code
    first_failure: str = ""
    unanswered: int = 0  # at the end
    elapsed: float = 0.0  # seconds in which they were answered
    behind: bool = False  # aborted, because the backlog grew

    @property
    def failed(self) -> int:
        return self.failures.total() + self.unanswered

    @property
    def answered_rate(self) -> float:
        """Chunks a second that were answered."""
        return self.latencies.count / self.elapsed if self.elapsed else 0.0

    def meets(self, deadline: float, percentile: float) -> bool:
        """Whether all chunks were answered, `percentile` percent of them within `deadline` seconds."""
        if self.behind or self.failed or not self.latencies.count:
            return False
        return self.latencies.percentile(percentile) <= deadline


Watch = Callable[[float, Result, int], None]  # seconds since the start, result so far, unanswered chunks


def run(
    plan: Plan,
    target: Target,
    clock: Callable[[], float] = time.perf_counter,
    watch: Watch = lambda *_: None,
) -> Result:
    """Run the plan. Returns when every chunk is answered, or `patience` after the last one was sent."""
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
    """Count the replies to chunks due after the warm-up; return whether there were any."""
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
