"""Recordings: the values seen in a pipeline, bounded, on one time axis.

The loader calls a `Recorder` for each point of the pipeline, and it then gets the values that pass there. It
keeps those within a window of time, and of each tensor at most MAX_UNITS evenly spaced units. The mean and
the saturated share are computed over all units.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final

import numpy as np

from ..columns import flat, label_texts, untimed
from ..errors import UsageError, nearest
from ..probe import GATES, MEANING, Probe, ProbeLayer
from ..spec import Array, TensorSpec
from ..stage import Chunk
from .taps import Clock, OnChunk, Point

DEFAULT_TICKS: Final = 400  # steps of the model in a picture: as many as can be distinguished
MAX_TICKS: Final = 4096  # several per pixel of the widest picture; the values are held in memory
MAX_UNITS: Final = 128  # of one heat map: about its height in pixels
MAX_PARTS: Final = 4  # of one state: h and c are often one tensor
MAX_LINES: Final = 8  # channels drawn as lines; more make a heat map
MAX_MAPS: Final = 48  # heat maps of layers and states: a picture five feet high
MAX_NAMED: Final = 4  # names listed of what is not drawn
MAX_NUMBERS: Final = 2**24  # of one tensor: 17 minutes of sound at 16 kHz
LOW, HIGH = 0.1, 0.9  # a gate beyond these is saturated: nearly closed, or nearly open


@dataclass(frozen=True, slots=True)
class Axis:
    """The unit of time: the time steps of one domain of the pipeline."""

    domain: int
    tick: Fraction  # time steps per step of the model
    rate: float | None  # time steps per second

    def seconds(self, steps: float) -> float:
        return steps / self.rate if self.rate else steps


@dataclass(frozen=True, slots=True)
class Track:
    """One tensor over time.

    Row k is at ``[start + k * step, start + (k+1) * step)``.
    """

    name: str  # the heading
    tensor: str
    kind: str  # of its point; "layer" for a probe's layer
    values: Array  # (rows, units kept), in the tensor's own dtype
    units: Array  # indices of the units kept
    size: int  # the number of all units
    mean: Array  # (rows,): mean of the finite numbers of all units
    start: float  # in time steps of the axis
    step: float
    letter: str = ""  # "layer": its part, as in `probe.MEANING`
    meaning: str = ""
    saturated: Array | None = None  # (rows,): for a gate, the saturated share of all units
    labels: dict[int, str] | None = None

    @property
    def end(self) -> float:
        return self.start + len(self.values) * self.step

    @property
    def edges(self) -> Array:
        """The start of each row, and the end of the last."""
        return self.start + np.arange(len(self.values) + 1) * self.step


@dataclass(frozen=True, slots=True)
class Record:
    """All recorded tracks, in the order in which they are drawn."""

    axis: Axis
    tracks: Sequence[Track]
    omitted: Sequence[str]  # what was not recorded, and why
    made_from: float | None = None  # the time step at which the pipeline began to generate its own input

    @property
    def span(self) -> tuple[float, float]:
        """The first time step, and the one after the last."""
        return min(t.start for t in self.tracks), max(t.end for t in self.tracks)


@dataclass(slots=True)
class _KeptTensor:
    """The recorded part of one tensor."""

    tensor: TensorSpec
    letter: str = ""
    layer: ProbeLayer | None = None
    part: int | None = None  # index along its first axis
    size: int = field(init=False)
    units: Array = field(init=False)
    parts: list[Array] = field(default_factory=list)
    means: list[Array] = field(default_factory=list)
    shares: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = self.size = math.prod(self.tensor.shape[self.part is not None :])
        self.units = np.linspace(0, max(0, size - 1), min(size, MAX_UNITS)).round().astype(int)

    def add(self, array: Array) -> None:
        columns = flat(self.tensor, array)
        if self.part is not None:
            columns = columns[:, self.part * self.size : (self.part + 1) * self.size]
        self.parts.append(columns[:, self.units])  # a copy, by indices
        self.means.append(_means(columns))
        if self.letter in GATES:
            self.shares.append(((columns < LOW) | (columns > HIGH)).mean(axis=1))


class _ObservedPoint:
    """One point, and its recorded tensors."""

    def __init__(self, point: Point) -> None:
        self.point = point
        self.rows = 0  # rows that have passed
        self.window = (0, 0)  # rows to record
        self.kept: list[_KeptTensor] = []

    @property
    def maps(self) -> list[_KeptTensor]:
        """The recorded tensors of a model's inside."""
        return [kept for kept in self.kept if kept.letter or self.point.kind == "states"]

    def add(self, chunk: Chunk) -> None:
        rows = len(chunk[self.point.signal.names[0]])
        first, last = (min(max(row - self.rows, 0), rows) for row in self.window)
        if first < last:
            for kept in self.kept:
                kept.add(chunk[kept.tensor.name][first:last])
        self.rows += rows


class Recorder:
    """The `look` of `loader.load_pipeline`: `choose` what to record, then feed the stream."""

    def __init__(self) -> None:
        self._observed: list[_ObservedPoint] = []
        self._first: Fraction = Fraction(0)
        self._end: Fraction = Fraction(0)
        self._omitted: list[str] = []
        # Count by the name of the file, which several models may share.
        self._models: Counter[str] = Counter()

    def __call__(self, point: Point) -> OnChunk:
        name, before = point.model, self._models[point.model]
        if before:
            point = replace(point, model=f"{name} ({before + 1})")
        self._models[name] += point.kind == "from"  # the last point of a model
        self._observed.append(_ObservedPoint(point))
        return self._observed[-1].add

    @property
    def probes(self) -> list[Probe]:
        """The probes of the models that have one."""
        return [observed.point.probe for observed in self._observed if observed.point.probe]

    @property
    def unprobed(self) -> list[str]:
        """Exported models with states but without a probe: they could have one."""
        return [s.point.model for s in self._observed if s.point.kind == "states" and s.point.exported]

    def axis(self, rate: float | None) -> Axis:
        """Return the time axis of the first model.

        It counts time steps of the input, if these correspond. `rate`: the input's, if only its source knows
        it.
        """
        models = [observed.point for observed in self._observed if observed.point.kind == "from"]
        clock = models[0].clock if models else Clock()
        rates = [
            p.signal.rate * float(p.clock.step)
            for p in (observed.point for observed in self._observed)
            if p.signal.rate and p.clock.domain == clock.domain
        ]
        return Axis(clock.domain, clock.step, rates[0] if rates else None if clock.domain else rate)

    def choose(self, layers: Collection[str] | None, letters: Collection[str] | None) -> None:
        """Choose the layers and letters to record; None: all. Raises UsageError."""
        here = [layer.name for probe in self.probes for layer in probe.layers]
        shown = {letter for probe in self.probes for layer in probe.layers for letter in layer.outputs}
        for option, asked, known in (("--layers", layers, here), ("--show", letters, sorted(shown))):
            for name in asked or ():
                if not known:
                    raise UsageError(
                        f"{option} {name}: no model here has a probe beside it, which shows its layers: "
                        "export it again with --probe gates"
                    )
                if name not in known:
                    raise UsageError(f"{option}: there is no {name!r}{nearest(name, known)}")
        if layers and letters:
            chosen = [layer for probe in self.probes for layer in probe.layers if layer.name in layers]
            if not any(letter in layer.outputs for layer in chosen for letter in letters):
                has = "; ".join(f"{layer.name} has {', '.join(layer.outputs)}" for layer in chosen)
                raise UsageError(f"--show {','.join(letters)}: there is none in --layers: {has}")
        for observed in self._observed:
            self._take(observed, layers, letters)

    def _take(
        self, observed: _ObservedPoint, layers: Collection[str] | None, letters: Collection[str] | None
    ) -> None:
        point = observed.point
        tensors = {t.name: t for t in untimed(point.signal).tensors}
        if point.probe:
            for layer in point.probe.layers:
                for letter in MEANING:
                    tensor = tensors.pop(layer.outputs.get(letter, ""), None)
                    if tensor and (not layers or layer.name in layers) and (not letters or letter in letters):
                        observed.kept.append(_KeptTensor(tensor, letter, layer))
        for tensor in reversed(tensors.values()):
            parts = tensor.shape[0] if len(tensor.shape) > 1 and point.kind == "states" else 1
            each = range(parts) if 1 < parts <= MAX_PARTS else [None]
            observed.kept = [*(_KeptTensor(tensor, part=part) for part in each), *observed.kept]
        maps = sum(len(s.maps) for s in self._observed)
        if maps > MAX_MAPS:
            omitted = observed.maps[MAX_MAPS - maps :]
            observed.kept = [k for k in observed.kept if not any(k is other for other in omitted)]
            names = _some([k.layer.name if k.layer else k.tensor.name for k in omitted])
            choose = "; choose with --layers and --show" if point.probe else ""
            self._omitted.append(
                f"{len(omitted)} heat maps, of {names}: at most {MAX_MAPS} are drawn{choose}"
            )

    def begin(self, axis: Axis, first: int, steps: int) -> None:
        """Record `steps` time steps of the axis from `first` on."""
        self._axis, self._first, self._end = axis, Fraction(first), Fraction(first + steps)
        for observed in self._observed:
            if observed.point.clock.domain != axis.domain:
                continue
            step = observed.point.clock.step
            start, end = (-int(-edge // step) for edge in (self._first, self._end))
            widest = max((len(kept.units) for kept in observed.kept), default=1)
            if end - start > MAX_NUMBERS // widest:
                end = start + MAX_NUMBERS // widest
                self._omitted.append(f"{_title(observed.point)}: {MAX_NUMBERS} numbers are kept, and no more")
            observed.window = (start, end)

    @property
    def full(self) -> bool:
        """Whether all rows to record have passed."""
        here = [
            observed
            for observed in self._observed
            if observed.point.clock.domain == self._axis.domain and observed.kept
        ]
        return all(observed.rows >= observed.window[1] for observed in here)

    def record(self, made_from: float | None = None) -> Record:
        """Return the record; `made_from`: as in `Record`. Raises UsageError if nothing was recorded."""
        tracks: list[Track] = []
        omitted = list(self._omitted)
        for observed in sorted(self._observed, key=lambda observed: observed.point.kind != "input"):
            if observed.point.clock.domain != self._axis.domain:
                omitted.append(
                    f"{_title(observed.point)}: between it and what is drawn rows come when they come"
                )
                continue
            for kept in observed.kept:
                if kept.parts and (track := self._track(observed, kept)) and not _is_drawn(track, tracks):
                    tracks.append(track)
        if not tracks:
            seen_steps = max((s.rows for s in self._observed), default=0)
            raise UsageError(
                f"nothing to draw: the input ended after {seen_steps} time steps"
                + (f", and --from is {self._first}" if self._first else "")
            )
        tracks.sort(key=lambda track: track.kind in ("layer", "states"))  # below input and output
        thin = [t for t in tracks if len(t.units) < t.size]
        if thin:
            names = _some([t.name for t in thin])
            omitted.append(f"units: {MAX_UNITS} are drawn of each, evenly spaced, of those of {names}")
        record = Record(self._axis, tracks, omitted)
        start, end = record.span
        return replace(record, made_from=made_from) if start < (made_from or 0) < end else record

    def _track(self, observed: _ObservedPoint, kept: _KeptTensor) -> Track:
        step = observed.point.clock.step
        several = len({s.point.model for s in self._observed if s.point.kind == "from"}) > 1
        name = kept.layer.name if kept.layer else kept.tensor.name
        if kept.letter and several:
            name = f"{observed.point.model} {name}"
        elif not kept.letter:
            name = f"{_title(observed.point)} {name}" + (f"[{kept.part}]" if kept.part is not None else "")
        return Track(
            name,
            kept.tensor.name,
            "layer" if kept.letter else observed.point.kind,
            np.concatenate(kept.parts),
            kept.units,
            kept.size,
            np.concatenate(kept.means),
            float(observed.window[0] * step),
            float(step),
            kept.letter,
            _meaning(kept.layer, kept.letter) if kept.layer else "",
            np.concatenate(kept.shares) if kept.shares else None,
            label_texts(kept.tensor),
        )


def _means(columns: Array) -> Array:
    """Return the mean of each row's finite numbers; NaN if it has none."""
    numbers = np.isfinite(columns)
    sums = np.where(numbers, columns, 0).sum(axis=1, dtype=np.float64)
    count = numbers.sum(axis=1)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


def _some(names: Sequence[str]) -> str:
    """Return the first names, each once."""
    different = list(dict.fromkeys(names))
    return ", ".join(different[:MAX_NAMED]) + (", …" if len(different) > MAX_NAMED else "")


def _title(point: Point) -> str:
    return {
        "input": "input",
        "to": f"to {point.model}:",
        "from": f"{point.model}:",
        "states": f"{point.model}: state",
        "output": "output",
    }[point.kind]


def _meaning(layer: ProbeLayer, letter: str) -> str:
    """Return the meaning of a layer's letter; z has two, by the kind of GRU."""
    if letter != "z":
        return MEANING[letter]
    return f"{MEANING[letter]}: how much {'of the candidate is taken' if layer.takes else 'of h is kept'}"


def _is_drawn(track: Track, before: Sequence[Track]) -> bool:
    """Whether the track is drawn already, or is a wide one-hot input."""
    if track.kind not in ("to", "output"):
        return False
    for other in before:
        same = (other.tensor, other.step, other.size) == (track.tensor, track.step, track.size)
        if same and (other.labels or not track.labels) and np.array_equal(other.values, track.values):
            return True
    if track.kind == "to" and track.size > MAX_LINES:
        values = track.values
        return bool(((values == 0) | (values == 1)).all() and (values.sum(axis=1) <= 1).all())
    return False
