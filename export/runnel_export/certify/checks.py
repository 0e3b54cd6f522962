"""The ONNX side of a certificate: the file, stepped by the engine itself, in every way that matters.

Each function runs the engine on some streams and returns one `Check`. They know nothing of torch: what
must come out is part of a `Trial`, so that `verify` runs the very same checks without the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from runnel import Engine, Stream
from runnel import snapshot as snapshots
from runnel.errors import RunnelError
from runnel.model.session import ModelStage
from runnel.spec import Array

from .certificate import Check, Limits
from .errors import Finding, Tally, judge

Rows = Mapping[str, Array]  # a model's states by input name
_COVERED = "sequences that the lookahead covers, against the original unchanged"
_LONG = "one sequence of {} ticks, one tick at a time"


@dataclass(frozen=True)
class Trial:
    """One stream's data, what must come out of it, and where state is given, from where to where.

    `at`: the ticks that an output is known for, where not for all. `rough`: what the original gives in
    float32.
    """

    chunk: Mapping[str, Array]
    expected: Mapping[str, Array]
    start: Rows | None = None
    final: Rows = field(default_factory=dict)
    rough: Mapping[str, Array] = field(default_factory=dict)
    at: Mapping[str, Array] = field(default_factory=dict)

    def compare(self, got: Mapping[str, Array], tally: Tally) -> None:
        """Add what a stream gave to a tally."""
        for name, expected in self.expected.items():
            values = got[name][self.at[name]] if name in self.at else got[name]
            tally.add(name, values, expected, self.rough.get(name))


class Prover:
    """Runs one engine through the checks. `unit` is the chunk length of one tick: the hop, or 1."""

    def __init__(self, engine: Engine, rng: np.random.Generator) -> None:
        model = engine.pipeline.model
        assert model is not None  # a model file makes a pipeline with a model
        self.engine, self.model, self.rng = engine, model, rng
        self.unit = model.framing.hop if model.framing else 1
        kinds = [isinstance(stage, ModelStage) for stage in engine.pipeline.stages]
        self._at = kinds.index(True)  # the model's place among its file's stages

    # The checks

    def stepped(self, trials: Sequence[Trial], name: str, about: str) -> Finding:
        """One tick at a time, each stream alone; its last states too, if the trial has them."""
        tally = Tally()
        for trial in trials:
            with self._opened(trial) as stream:
                trial.compare(self._play(stream, trial.chunk, self.evenly(trial.chunk)), tally)
                states = self.states(stream)
                for state, expected in trial.final.items():
                    tally.add(f"state {state}", states[state].ravel(), expected.ravel())
        return tally.finding(name, about)

    def cuts(self, trials: Sequence[Trial]) -> Finding:
        """Random cuts, each stream alone."""
        tally = Tally()
        for trial in trials:
            for _ in range(2):
                with self._opened(trial) as stream:
                    trial.compare(self._play(stream, trial.chunk, self.randomly(trial.chunk)), tally)
        return tally.finding("cuts", "the sequence cut at random places")

    def batched(self, trials: Sequence[Trial]) -> tuple[Finding, Finding]:
        """All streams together, at different phases; and the same compared with each alone."""
        streams = [self._opened(trial) for trial in trials]
        pieces: list[list[Mapping[str, Array]]] = [[] for _ in trials]
        done = [0] * len(trials)
        sizes = [_length(t.chunk) for t in trials]
        while any(at < size for at, size in zip(done, sizes, strict=True)):
            live = [i for i in range(len(trials)) if done[i] < sizes[i]]
            chosen = [i for i in live if self.rng.random() < 0.7] or live[:1]
            lockstep = self.rng.random() < 0.5  # the engine has a path of its own for one tick each
            pairs = []
            for i in chosen:
                ticks = 1 if lockstep else int(self.rng.integers(1, 8))
                end = min(sizes[i], done[i] + ticks * self.unit)
                pairs.append((streams[i], _slice(trials[i].chunk, done[i], end)))
                done[i] = end
            for i, out in zip(chosen, self.engine.feed_many(pairs), strict=True):
                if isinstance(out, RunnelError):
                    raise out
                pieces[i].append(out)
        batched, isolated = Tally(), Tally()
        for trial, stream, parts in zip(trials, streams, pieces, strict=True):
            together = _joined([*parts, self._flushed(stream)])
            stream.close()
            trial.compare(together, batched)
            with self._opened(trial) as alone:
                itself = self._play(alone, trial.chunk, self.evenly(trial.chunk))
                for name, values in itself.items():
                    isolated.add(name, together[name], values)
        return (
            batched.finding("batched", f"{len(trials)} streams in batches, at different ticks"),
            isolated.finding("isolated", "each stream of those batches against itself alone"),
        )

    def reset(self, trials: Sequence[Trial]) -> Finding:
        """A stream in mid-sequence, reset, is a new stream."""
        tally = Tally()
        fresh = [t for t in trials if t.start is None]
        for before, after in zip(fresh, [*fresh[1:], fresh[0]], strict=True):
            with self.engine.open() as stream:
                self._feed(stream, _slice(before.chunk, 0, self._middle(before)), [])
                stream.reset()
                after.compare(self._play(stream, after.chunk, self.randomly(after.chunk)), tally)
        return tally.finding("reset", "reset in mid-sequence, then another sequence")

    def restored(self, trials: Sequence[Trial]) -> Finding:
        """A snapshot in mid-sequence continues bit for bit as the stream itself does."""
        tally, exact = Tally(), True
        for trial in trials:
            middle = self._middle(trial)
            rest = _slice(trial.chunk, middle, _length(trial.chunk))
            cuts = self.randomly(rest)
            with self._opened(trial) as stream:
                before = self._feed(stream, _slice(trial.chunk, 0, middle), [])
                blob = stream.snapshot()
                itself = self._play(stream, rest, cuts)
                with self.engine.restore(blob) as again:
                    restored = self._play(again, rest, cuts)
                    exact &= _same(self.states(again), self.states(stream))
                exact &= _same(restored, itself)
                trial.compare(_joined([before, restored]), tally)
        about = "snapshot and restore in mid-sequence" + ("" if exact else ": the two then differ")
        return tally.finding("restored", about, exact)

    def alive(self, trials: Sequence[Trial]) -> tuple[Check, tuple[str, ...]]:
        """Each state changes, and another stream's in its place changes what comes later.

        Returns the check and the names of the states that are alive. Where all outputs are integers,
        which a small change need not move, a change of another state counts too. Where no output ever
        changed (a detector that heard nothing), nothing can be told of what a state does to it.
        """
        trials = [t for t in trials if _length(t.chunk) > self.unit]
        counter = self.model.steps.position if self.model.steps else None
        silent = constant_outputs(trials) == [t.name for t in self.model.given]
        initial = {s.input: s.initial for s in self.model.states}
        middles = [self._middle(t) for t in trials]
        blobs, rows = [], []
        for trial, middle in zip(trials, middles, strict=True):
            with self._opened(trial) as stream:
                self._feed(stream, _slice(trial.chunk, 0, middle), [])
                blobs.append(stream.snapshot())
                rows.append(self.states(stream))
        alive: list[str] = []
        dead: list[str] = []
        unknown: list[str] = []
        for name in initial:
            if name == counter:
                counted = all(self._counted(r[name], m) for r, m in zip(rows, middles, strict=True))
                (alive if counted else dead).append(name if counted else f"{name!r} does not count ticks")
                continue
            moved = any(not np.array_equal(r[name].ravel(), initial[name].ravel()) for r in rows)
            matters = any(
                self._matters(name, blobs[i], donor[name], _slice(t.chunk, middles[i], _length(t.chunk)))
                for i, t in enumerate(trials)
                for donor in (rows[i - 1], initial)
            )
            if moved and matters:
                alive.append(name)
            elif moved and silent:
                unknown.append(f"{name!r} changes, and what it does was not seen, as no output changed")
            elif moved:
                dead.append(
                    f"{name!r} changes, but another value in its place changes no later output: nothing "
                    "reads it, or only through weights that are zero"
                )
            else:
                dead.append(f"{name!r} keeps its initial value: is its output wired to its own input?")
        found = f"each of {len(alive)} states changes, and changes what comes after"
        about = "; ".join(dead or unknown) or found
        return Check("alive", about, not dead), tuple(alive)

    # Running the engine

    def states(self, stream: Stream) -> dict[str, Array]:
        """The model's states of a stream, by input name."""
        _, arrays = snapshots.decode(stream.snapshot()).stages[self._at]
        return dict(arrays)

    def whole(self, chunk: Mapping[str, Array]) -> dict[str, Array]:
        """What a new stream gives for a chunk fed in one piece."""
        with self.engine.open() as stream:
            return self._play(stream, chunk, [])

    def final(self, trial: Trial) -> dict[str, Array]:
        """The model's states at the end of a trial."""
        with self._opened(trial) as stream:
            self._feed(stream, trial.chunk, [])
            return self.states(stream)

    def played(self, trial: Trial, cuts: Sequence[int]) -> tuple[dict[str, Array], dict[str, Array]]:
        """A trial's outputs, fed in pieces and to its end, and the model's states there."""
        with self._opened(trial) as stream:
            outputs = self._play(stream, trial.chunk, cuts)
            return outputs, self.states(stream)

    def replaced(self, blob: bytes, rows: Rows) -> Stream:
        """A stream from a snapshot with some of the model's states replaced."""
        snapshot = snapshots.decode(blob)
        name, arrays = snapshot.stages[self._at]
        # (np.ascontiguousarray would make a state of one number an array of one axis.)
        given = {
            n: np.array(np.reshape(v, arrays[n].shape), arrays[n].dtype, order="C") for n, v in rows.items()
        }
        changed = list(snapshot.stages)
        changed[self._at] = (name, {**arrays, **given})
        return self.engine.restore(snapshots.encode(replace(snapshot, stages=tuple(changed))))

    def _opened(self, trial: Trial) -> Stream:
        """A new stream, started from the trial's own state if it has one."""
        stream = self.engine.open()
        if trial.start is None:
            return stream
        blob = stream.snapshot()
        stream.close()
        return self.replaced(blob, trial.start)

    def _matters(self, name: str, blob: bytes, value: Array, rest: Mapping[str, Array]) -> bool:
        with self.engine.restore(blob) as own, self.replaced(blob, {name: value}) as other:
            if _same(self.states(own), self.states(other)):
                return False  # the donor's value is its own
            if not _same(self._play(own, rest, []), self._play(other, rest, [])):
                return True
            counted = all(np.dtype(t.dtype).kind in "iub" for t in self.model.given)
            now, then = self.states(own), self.states(other)
            return counted and any(not np.array_equal(now[n], then[n]) for n in now if n != name)

    def _counted(self, position: Array, ticks: int) -> bool:
        """Whether the counter of a model that takes steps is right after `ticks` ticks."""
        steps = self.model.steps
        assert steps is not None
        return int(position) == ticks // steps.ticks * steps.ticks

    def _feed(self, stream: Stream, chunk: Mapping[str, Array], cuts: Sequence[int]) -> dict[str, Array]:
        """The outputs of a chunk fed in pieces, joined."""
        return _joined([stream.feed(piece) for piece in _pieces(chunk, cuts)])

    def _play(self, stream: Stream, chunk: Mapping[str, Array], cuts: Sequence[int]) -> dict[str, Array]:
        """The same to the stream's end, with what was still inside."""
        return _joined([self._feed(stream, chunk, cuts), self._flushed(stream)])

    def _flushed(self, stream: Stream) -> Mapping[str, Array]:
        out = stream.flush()
        return out if isinstance(out, Mapping) else {self.model.given[0].name: out}

    def evenly(self, chunk: Mapping[str, Array]) -> list[int]:
        return list(range(self.unit, _length(chunk), self.unit))

    def randomly(self, chunk: Mapping[str, Array]) -> list[int]:
        """Up to eight cuts anywhere: with framing, inside a hop too."""
        size = _length(chunk)
        if size < 2:
            return []
        return sorted({int(c) for c in self.rng.integers(1, size, min(8, size - 1))})

    def _middle(self, trial: Trial) -> int:
        """A whole number of ticks near the middle."""
        return max(1, _length(trial.chunk) // self.unit // 2) * self.unit


def prove(
    engine: Engine,
    trials: Sequence[Trial],
    given: Sequence[Trial],
    long: Trial | None,
    rng: np.random.Generator,
    limits: Limits,
    report: Callable[[str], None],
    covered: Sequence[Trial] = (),
    short: Sequence[Trial] = (),
) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    """All checks of a loaded file, judged, and the names of the states that are alive.

    `trials` are random, at least two of them without a `start`; `given` is the user's own data; `long`
    is one random sequence far longer than the others; `covered` are sequences that a model sees to their end,
    with what the original gives for them as it was written; `short` are sequences of a few ticks.
    """
    prover = Prover(engine, rng)
    fresh, started = [t for t in trials if t.start is None], [t for t in trials if t.start is not None]
    report("one tick at a time")
    checks = [prover.stepped(fresh, "stepped", "one tick at a time against the whole sequence")]
    if started:
        checks.append(prover.stepped(started, "started", "from random states given to both"))
    if given:
        checks.append(prover.stepped(given, "given", "given data against the original's own numbers"))
    if covered:
        checks.append(prover.stepped(covered, "covered", _COVERED))
    if short:
        sizes = [_length(t.chunk) for t in short]
        checks.append(prover.stepped(short, "short", f"sequences of {min(sizes)} to {max(sizes)} ticks"))
    if long:
        report(f"{_length(long.chunk) // prover.unit} ticks")
        checks.append(prover.stepped([long], "long", _LONG.format(_length(long.chunk) // prover.unit)))
    report("cut at random, batched, reset, restored")
    checks += [prover.cuts(trials), *prover.batched(trials), prover.reset(fresh), prover.restored(trials)]
    report("whether each state is alive")
    alive, names = prover.alive([*trials, *given, *([long] if long else [])])
    return (*judge(checks, limits), alive), names


def constant_outputs(trials: Sequence[Trial]) -> list[str]:
    """The outputs of which every element has one value, over all ticks of all trials."""
    if not trials:
        return []
    found = []
    for name, values in trials[0].expected.items():
        first = values[:1]
        if all(bool((t.expected[name] == first).all()) for t in trials):
            found.append(name)
    return found


def _length(chunk: Mapping[str, Array]) -> int:
    return len(next(iter(chunk.values())))


def _slice(chunk: Mapping[str, Array], start: int, end: int) -> dict[str, Array]:
    return {name: array[start:end] for name, array in chunk.items()}


def _pieces(chunk: Mapping[str, Array], cuts: Sequence[int]) -> Iterator[dict[str, Array]]:
    for start, end in zip([0, *cuts], [*cuts, _length(chunk)], strict=True):
        yield _slice(chunk, start, end)


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _same(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    return all(np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f") for name in a)
