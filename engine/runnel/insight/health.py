"""Health checks of streams' states, now and then between steps, without changing them.

A recurrent net can fail in two ways without an error. Its state *blows up*: a loop gain above one, or a cell
that only ever adds. Or it *dies*: units are saturated or permanently shut, so that no input changes them.

For a state x with n numbers and the initial value x0, a check computes

    rms = sqrt(sum x^2 / n)        distance = sqrt(sum (x - x0)^2 / n)

and judges, for each stream, the float states of all its models:

- **blown up**: some |x| is above `blown_up`. Recovered when all are at half of that or less.
- **died**: at `PATIENCE` checks in a row, the last chunk had left the state unchanged bit for bit, each time
  with the same numbers in it, while the model's inputs at these checks differed by more than `VARIED` of the
  largest input of any stream. So a state at rest in silence, or under a constant input, is not dead, because
  the input gave it no reason to change. Recovered when a chunk changes it.

Inputs are compared as one number, a projection onto fixed weights. A stream in question needs about 200
bytes, and any other stream none. If a model shows its gates (probe.py) and they are outputs of the pipeline,
each check also counts the units whose gate is nearly shut or nearly open, below 0.1 or above 0.9: there the
gate's own input, beyond ±2.2, has almost no effect (Karpathy, Johnson and Fei-Fei, "Visualizing and
understanding recurrent networks", 2015).

A check takes a few microseconds. It comes once in `every` chunks of a stream, at an offset that depends on
the stream's id, so that streams fed together are checked at different times; and when the stream ends.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol
from zlib import crc32

import numpy as np

from ..errors import NonFiniteError, PipelineError, RunnelError, nearest
from ..loading import toml
from ..model.arena import Arena
from ..probe import GATES
from ..spec import ModelSpec
from .histogram import Histogram
from .statistics import ModelStates, StateHealth, norm, of_state, same

if TYPE_CHECKING:
    from ..notices import Notices
    from ..pipeline.pipeline import Pipeline, States

EVERY: Final = 251  # chunks: a prime, so that checks do not coincide with a period of the input
BLOWN_UP: Final = 1e4  # far beyond any useful value: tanh is flat from 10 on, float32 coarse from 1e7
PATIENCE: Final = 3  # checks: a layer that steps every few ticks, or a pause, changes within that
VARIED: Final = 1e-3  # of the largest input: less is a quiet room, or the tail of a filter
SHUT: Final = 0.1
OPEN: Final = 0.9

# Half decades: only the order of magnitude of a state's size matters.
_BOUNDS: Final = tuple(10 ** (k / 2) for k in range(-12, 13))
_KEYS: Final = ("every", "blown_up", "ignore")

Condition = Literal["", "died", "blown_up"]
EVENTS: Final = ("died", "blown_up", "recovered")

_log = logging.getLogger("runnel.health")


@dataclass(frozen=True, slots=True)
class Settings:
    """The [health] table of a pipeline file."""

    every: int = EVERY  # chunks of a stream between two checks; 0: never
    blown_up: float = BLOWN_UP
    ignore: tuple[str, ...] = ()  # states that are not judged, ``stage.name``


def settings(part: Mapping[str, Any], where: str) -> Settings:
    """Read the [health] table; `where` is its name in errors. Raises PipelineError."""
    toml.known(part, _KEYS, where)
    every, bound = part.get("every", EVERY), part.get("blown_up", BLOWN_UP)
    if isinstance(every, bool) or not isinstance(every, int) or not 0 <= every <= 2**31:
        raise PipelineError(
            f"{where}: every must be a whole number of chunks, 0 for never, not {every!r:.80}"
        )
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 < bound < math.inf:
        raise PipelineError(f"{where}: blown_up must be a number above 0, not {bound!r:.80}")
    ignore = part.get("ignore", [])
    if not isinstance(ignore, list) or not all(isinstance(name, str) for name in ignore):
        raise PipelineError(f'{where}: ignore must be a list of states, as ["model.h"], not {ignore!r:.80}')
    return Settings(every, float(bound), tuple(ignore))


class Watch(NamedTuple):
    """The record of a stream whose states are in question."""

    condition: Condition
    model: int = -1  # the model with unchanged states; the first of several, since the others depend on it
    still: int = 0  # bit mask of the unchanged states
    digest: int = 0  # CRC-32 of their content
    low: float = 0.0  # the least and the largest projected input at these checks
    high: float = 0.0
    checks: int = 0


class CheckedStream(Protocol):
    """The part of a stream that health checks use."""

    id: str
    seq: int
    _states: States
    _watch: Watch | None
    _notices: Notices
    _closed: bool


class Health:
    """The health checks of an engine's streams, and their counts. Runs in the engine's thread."""

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        """Raises PipelineError if `settings` ignore a state that no model has."""
        unrolled = pipeline.unrolled
        self._looped = unrolled is not pipeline
        self._models: list[ModelStates] = []
        self._gates: list[tuple[str, str]] = []  # (name in the statistics, output of the pipeline)
        for i, stage in enumerate(unrolled.stages):
            if not isinstance(getattr(stage, "arena", None), Arena):
                continue
            model = ModelStates(stage, i, unrolled.stage_names[i], settings.ignore)
            if model.states:
                self._models.append(model)
            self._gates += [
                (label, name)
                for label, name in _gates(stage, unrolled.stage_names[i])
                if name in pipeline.outputs.names  # stages after a model may not pass its gates on
            ]
        labels = [state.label for model in self._models for state in model.states]
        for name in settings.ignore:
            if name not in labels:
                raise PipelineError(f"[health] ignore: no model has a state {name!r}{nearest(name, labels)}")
        self.settings = settings
        self.every = settings.every if labels or self._gates else 0
        # Called with each event, stream and reason, when the engine is at rest, as listeners are.
        self.on_event: Callable[[str, str, str], None] | None = None
        self.checks = 0
        self.failures = 0  # checks that raised
        self.events = Counter(dict.fromkeys(EVENTS, 0))
        self.unhealthy: Counter[str] = Counter({"died": 0, "blown_up": 0})  # streams that are so now
        self.non_finite = Counter(dict.fromkeys(labels, 0))  # refused chunks, by state
        self.rms = {label: Histogram(_BOUNDS) for label in labels}
        self.distance = {label: Histogram(_BOUNDS) for label in labels}
        self.units, self.shut, self.open = (
            Counter(dict.fromkeys([label for label, _ in self._gates], 0)) for _ in range(3)
        )

    # During a step

    def first(self, id: str) -> int:
        """Return the `seq` of a new stream's first check; -1: never."""
        return crc32(id.encode()) % self.every if self.every else -1

    def start_recording(self) -> None:
        """Record the models' inputs until `stop_recording`."""
        for model in self._models:
            model.start_recording()

    def stop_recording(self) -> None:
        for model in self._models:
            model.stop_recording()

    def check(self, stream: CheckedStream, out: Any = None, at: int | None = None) -> None:
        """Check a stream. `at`: its index among the streams just stepped together, and `out` its output;
        None: its states are not the result of a step just made.
        """
        try:
            self.checks += 1
            if at is not None and self._gates:
                self._count_gates(out)
            self._judge(stream, at)
        except Exception as error:  # a successful chunk must not fail because of a check
            self.failures += 1
            if self.failures == 1:
                _log.error("a look at stream %r failed: %s: %s", stream.id, type(error).__name__, error)

    def refused(self, stream: CheckedStream, error: RunnelError) -> None:
        """Handle a failed chunk: if a state became non-finite, check the state before it."""
        if isinstance(error, NonFiniteError) and error.state:
            if error.state in self.non_finite:
                self.non_finite[error.state] += 1
            if self.every:
                self.check(stream)

    def forget(self, stream: CheckedStream) -> None:
        """Forget the stream's condition, because its states begin anew or end."""
        if stream._watch is not None:
            if stream._watch.condition:
                self.unhealthy[stream._watch.condition] -= 1
            stream._watch = None

    def recount(self, streams: Iterable[CheckedStream]) -> None:
        """Count the unhealthy streams again, after an interrupted call."""
        conditions = Counter(stream._watch.condition for stream in streams if stream._watch is not None)
        for condition in self.unhealthy:
            self.unhealthy[condition] = conditions[condition]  # type: ignore[index]

    def _judge(self, stream: CheckedStream, at: int | None) -> None:
        rows = stream._states[0].states if self._looped else stream._states
        before: Watch | None = stream._watch
        condition: Condition = before.condition if before else ""
        bound = self.settings.blown_up / (2 if condition == "blown_up" else 1)
        worst, reason = bound, ""
        watch: Watch | None = None
        for i, model in enumerate(self._models):
            row = rows[model.at]
            still, peak, label = self._read(model, row, bound)
            if peak > worst:
                worst = peak
                reason = f"state {label!r} reached {peak:.3g}, beyond {self.settings.blown_up:g}"
            given = model.given(row, at) if at is not None else None
            if watch is not None:
                continue
            if given is None:  # no known input: unchanged, unless the state has moved
                if before and before.model == i and model.digest(row, before.still) == before.digest:
                    watch = before
            elif still:
                watch = _watched(before, i, still, model.digest(row, still), given)
        now: Condition = ""
        if worst > bound:
            now = "blown_up"
        elif watch is not None and watch.checks >= PATIENCE:
            model = self._models[watch.model]
            if watch.high - watch.low > VARIED * model.largest:
                now = "died"
                reason = (
                    f"state {model.names(watch.still)} no longer changes: the same at {watch.checks} looks, "
                    f"{self.every} chunks apart, though what goes in differs"
                )
        stream._watch = (watch or Watch(now))._replace(condition=now) if watch or now else None
        if now != condition:
            self._notify(stream, condition, now, reason)

    def _read(self, model: ModelStates, row: int, bound: float) -> tuple[int, float, str]:
        """Return the mask of unchanged states; the largest magnitude if above `bound`, and its state."""
        still, worst, label = 0, bound, ""
        for i, state in enumerate(model.states):
            x = state.column[row]
            length = norm(x)
            self.rms[state.label].observe(length / state.scale)
            far = length if state.initial is None else norm(x.astype(np.float64) - state.initial)
            self.distance[state.label].observe(far / state.scale)
            if not state.judged:
                continue
            if length > bound and (peak := float(np.abs(x).max())) > worst:  # no number is above the norm
                worst, label = peak, state.label
            if same(x, state.column[row ^ 1]):
                still |= 1 << i
        return still, worst, label

    def _notify(self, stream: CheckedStream, before: Condition, now: Condition, reason: str) -> None:
        if before:
            self.unhealthy[before] -= 1
        if now:
            self.unhealthy[now] += 1
        event: Literal["died", "blown_up", "recovered"] = now or "recovered"
        self.events[event] += 1
        reason = reason or f"it had {before.replace('_', ' ')}"
        stream._notices.queue(event, stream.id, stream.seq, reason)
        if self.on_event is not None:
            stream._notices.later(partial(self._report, event, stream.id, reason))

    def _report(self, event: str, stream: str, reason: str) -> None:
        if self.on_event is not None:
            try:
                self.on_event(event, stream, reason)
            except Exception as error:  # a callback's failure must not stop the streams
                _log.error("the report of %s failed: %s: %s", event, type(error).__name__, error)

    def _count_gates(self, out: Any) -> None:
        if not isinstance(out, dict):
            return
        for label, name in self._gates:
            gates = out.get(name)
            if gates is not None and len(gates):
                last = gates[-1]
                self.units[label] += last.size
                self.shut[label] += int(np.count_nonzero(last < SHUT))
                self.open[label] += int(np.count_nonzero(last > OPEN))

    # On request

    def of(self, states: States) -> dict[str, StateHealth]:
        """Return the statistics of a stream's float states, by ``stage.name``."""
        rows = states[0].states if self._looped else states
        return {
            state.label: of_state(
                state.column[rows[model.at]],
                np.zeros(1) if state.initial is None else state.initial,
            )
            for model in self._models
            for state in model.states
        }

    def document(self) -> dict[str, Any]:
        """Return the counts as plain numbers, lists and maps."""
        return {
            "looks": self.checks,
            "look_failures": self.failures,
            "unhealthy": dict(self.unhealthy),
            "state_events": dict(self.events),
            "non_finite": dict(self.non_finite),
            "state_rms": {label: h.document() for label, h in self.rms.items()},
            "state_distance": {label: h.document() for label, h in self.distance.items()},
            "gate_units": dict(self.units),
            "gate_units_shut": dict(self.shut),
            "gate_units_open": dict(self.open),
        }


def _watched(before: Watch | None, model: int, still: int, digest: int, given: float) -> Watch:
    """Return the watch after one more check that found these states unchanged."""
    if before is None or (before.model, before.still, before.digest) != (model, still, digest):
        return Watch("", model, still, digest, given, given, 1)
    return before._replace(
        low=min(before.low, given), high=max(before.high, given), checks=min(before.checks + 1, 2**31)
    )


def _gates(stage: Any, label: str) -> list[tuple[str, str]]:
    """Return the gates that a model shows: (``stage.layer.letter``, its output in a chunk)."""
    spec: ModelSpec = stage.spec
    if spec.probe is None:
        return []
    return [
        (f"{label}.{layer.name}.{letter}", stage.chunk_name(output))
        for layer in spec.probe.layers
        for letter, output in layer.outputs.items()
        if letter in GATES
    ]
