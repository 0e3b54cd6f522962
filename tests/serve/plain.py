"""A plain model of the protocol's promises: the oracle of test_promises.

One message after the other, no queues, no batches, no engine: the running sum is added up here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from runnel.errors import SnapshotError
from runnel.snapshot import decode

from .support import POISON, UNLUCKY


@dataclass(frozen=True)
class Message:
    """A request as its client wrote it. `blob`: the snapshot of a restore."""

    op: str
    name: str
    epoch: int = 0
    seq: int = 0
    values: tuple[float, ...] = ()
    start: bool = False
    end: bool = False
    blob: bytes = b""
    new_epoch: int = 0

    @property
    def payload(self) -> Any:
        return self.op, self.values, self.start, self.end

    @property
    def beginning(self) -> Any:
        """The part that must be equal in a repeat of the request that opened a stream."""
        return self.payload, self.blob


class Answer(NamedTuple):
    """The parts of a reply: the error's code or 'ok', y's first column, the seq applied if it is given."""

    code: str
    y: tuple[float, ...] = ()
    applied: int | None = None


@dataclass
class Sums:
    """The tested stage, by hand: running sums, one held back until the flush."""

    total: float = 0.0
    held: list[float] = field(default_factory=list)
    chunks: int = 0
    ended: bool = False

    def feed(self, values: tuple[float, ...]) -> tuple[float, ...]:
        rows = list(self.held)
        for value in values:
            self.total += value
            rows.append(self.total)
        self.held = rows[-1:]
        self.chunks += 1
        return tuple(rows[:-1])

    def flush(self) -> tuple[float, ...] | None:
        """The rows that were held back; None if the flush fails, which changes nothing."""
        if self.total >= POISON:
            return None
        out, self.held, self.ended = tuple(self.held), [], True
        return out


@dataclass
class Life:
    """One stream, from its opening until its end is forgotten."""

    epoch: int
    sums: Sums
    applied: int
    begun: Any = None
    resumed_from: int = 0
    kept: dict[int, tuple[Any, tuple[float, ...], float]] = field(default_factory=dict)
    used: float = 0.0
    open: bool = True


def sums_of(blob: bytes) -> Sums:
    """Decode a snapshot."""
    snapshot = decode(blob)
    [(_, arrays)] = snapshot.stages
    held = [float(v) for v in arrays["held"][:, 0]]
    return Sums(float(arrays["sum"][0]), held, snapshot.seq, snapshot.ended)


class Plain:
    """The server, by its promises."""

    def __init__(self, keep: int, keep_seconds: float, idle_seconds: float) -> None:
        self.keep, self.keep_seconds, self.idle_seconds = keep, keep_seconds, idle_seconds
        self.lives: dict[str, Life] = {}
        self._chosen: set[int] = set()
        self._fresh = 0
        self._full = False

    def tell(self, m: Message, now: float, fresh: int, full: bool = False) -> Answer:
        """Answer the message, and apply it.

        `fresh`: the epoch that the server chose if it had to choose one; any number, but never the same
        twice. `full`: the server had no room for another stream. That depends on the order across streams,
        which is not promised.
        """
        self._fresh = fresh
        self._full = full
        life = self.lives.get(m.name)
        alive = life is not None and life.open
        if m.op in ("open", "restore") or m.start:
            if life and m.epoch and m.epoch == life.epoch:  # was this opening seen before?
                if not alive:
                    again = self._again(life, 1, m) if m.start else None
                    return again if again and again.code == "ok" else Answer("UNKNOWN_STREAM")
                if m.beginning != life.begun:
                    return Answer("CONFLICT")
                if m.start:
                    again = self._again(life, 1, m)
                    if again.code != "ok":
                        return again
                    return self._use(life, now)._replace(y=again.y)
                return self._use(life, now)
            return Answer("STREAM_EXISTS") if alive else self._begin(m, now)
        if life is None or (not alive and m.epoch not in (0, life.epoch)):
            return Answer("UNKNOWN_STREAM")
        if m.op == "resume":
            if not alive:
                return Answer("UNKNOWN_STREAM")
            if m.new_epoch and m.new_epoch == life.epoch:
                return self._use(life, now)
            if m.epoch and not m.new_epoch and m.epoch == life.resumed_from:
                return self._use(life, now)  # a repeat, or another client that does not identify itself
            if m.epoch not in (0, life.epoch):
                return Answer("FENCED")
            life.resumed_from = 0 if m.new_epoch else m.epoch
            life.epoch = m.new_epoch or self._next_epoch()
            return self._use(life, now)
        if m.epoch not in (0, life.epoch):
            return Answer("FENCED")
        if m.seq and m.seq != life.applied + 1:
            again = self._again(life, m.seq, m)
            if again.code == "ok" and alive:
                life.used = now
            return again if alive or again.code == "ok" else Answer("UNKNOWN_STREAM")
        if not alive:
            return Answer("UNKNOWN_STREAM")
        if m.op in ("feed", "flush") and life.sums.ended:
            return Answer("STREAM_ENDED", applied=life.applied)
        life.used = now
        if m.op == "snapshot":
            return Answer("ok", applied=life.applied)
        if UNLUCKY in m.values:
            return Answer("STAGE_FAILED", applied=life.applied)
        return self._apply(life, m, now)

    def tick(self, now: float) -> set[str]:
        """The streams closed for idleness."""
        idle = {n for n, x in self.lives.items() if x.open and x.used + self.idle_seconds <= now}
        for name in idle:
            self.lives[name].open = False
            self.lives[name].used = now
        for name, life in list(self.lives.items()):
            life.kept = {s: k for s, k in life.kept.items() if k[2] + self.keep_seconds > now}
            if not life.open and life.used + self.keep_seconds <= now:
                del self.lives[name]
        return idle

    def _begin(self, m: Message, now: float) -> Answer:
        """Open a stream. The earlier one of that name is forgotten only if this succeeds."""
        try:
            sums = sums_of(m.blob) if m.op == "restore" else Sums()
        except SnapshotError:
            return Answer("BAD_SNAPSHOT")
        if self._full:
            return Answer("LIMIT")
        if UNLUCKY in m.values:
            return Answer("STAGE_FAILED")
        life = Life(m.epoch, sums, sums.chunks, m.beginning, used=now)
        answer = self._apply(life, m, now) if m.start else Answer("ok", applied=life.applied)
        if answer.code != "ok":
            return Answer(answer.code)  # the reply does not report the seq of a missing stream
        life.epoch = life.epoch or self._next_epoch()
        self.lives[m.name] = life
        return answer

    def _apply(self, life: Life, m: Message, now: float) -> Answer:
        y: tuple[float, ...] = ()
        if m.op == "feed" and m.end:
            sums = replace(life.sums)
            y = sums.feed(m.values)
            rest = sums.flush()
            if rest is None:
                return Answer("STAGE_FAILED", applied=life.applied)
            life.sums = sums
            y += rest
        elif m.op == "feed":
            y = life.sums.feed(m.values)
        elif m.op == "flush":
            rest = life.sums.flush()
            if rest is None:
                return Answer("STAGE_FAILED", applied=life.applied)
            y = rest
        elif m.op == "reset":
            life.sums = Sums()
        life.applied += 1
        life.kept[life.applied] = m.payload, y, now
        life.kept.pop(life.applied - self.keep, None)
        if m.op == "close" or m.end:
            life.open, life.used = False, now
        return Answer("ok", y, life.applied)

    def _again(self, life: Life, seq: int, m: Message) -> Answer:
        if seq > life.applied:
            return Answer("GAP", applied=life.applied)
        if seq not in life.kept:
            return Answer("ALREADY_APPLIED", applied=life.applied)
        payload, y, _ = life.kept[seq]
        same = payload == m.payload
        return Answer("ok", y, life.applied) if same else Answer("CONFLICT", applied=life.applied)

    def _use(self, life: Life, now: float) -> Answer:
        life.used = now
        return Answer("ok", applied=life.applied)

    def _next_epoch(self) -> int:
        assert self._fresh not in self._chosen
        self._chosen.add(self._fresh)
        return self._fresh
