"""Plant faults into the test part, and count which pipelines notice them.

Each trial is a separate stream. All trials continue from one snapshot, taken at the begin of the test part,
and run in batches. An alarm that the stream without the fault also raises does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from runnel import Engine
from runnel.errors import RunnelError
from runnel.spec import Array

from .series import YEAR, Series

SIZE = 2.0  # ppm: size of spikes and shifts
STUCK = 13  # weeks in which a stuck sensor repeats one value
NOTICED_WITHIN = 13  # weeks after the begin of a fault
KINDS = (
    f"spike: {SIZE:g} ppm, one week",
    f"shift: {SIZE:g} ppm, for good",
    f"stuck: {STUCK} weeks the same",
)


@dataclass(frozen=True)
class Fault:
    kind: str
    at: int  # week of the test part
    sign: int

    def planted(self, values: Array) -> Array:
        """Return a copy of the test part with the fault in it."""
        bad = values.copy()
        if self.kind.startswith("spike"):
            bad[self.at] += self.sign * SIZE
        elif self.kind.startswith("shift"):
            bad[self.at :] += self.sign * SIZE
        else:
            bad[self.at : self.at + STUCK] = bad[self.at - 1]
        return bad


@dataclass(frozen=True)
class Watched:
    """Alarms of one pipeline on all trials."""

    clean: Array  # (weeks,) bool: alarms on the unchanged test part
    alarms: dict[Fault, Array]

    @property
    def false_a_year(self) -> float:
        return begins(self.clean) / (len(self.clean) / YEAR)

    def of(self, kind: str) -> tuple[int, int, float | None, float]:
        """Return (faults noticed, faults, median delay in weeks, mean number of later alarms per fault)."""
        delays: list[int] = []
        later = 0
        trials = [fault for fault in self.alarms if fault.kind == kind]
        for fault in trials:
            own = self.alarms[fault] & ~self.clean
            (within,) = np.nonzero(own[fault.at : fault.at + NOTICED_WITHIN])
            delays += within[:1].tolist()
            later += begins(own[fault.at + NOTICED_WITHIN :])
        return len(delays), len(trials), median(delays) if delays else None, later / len(trials)


def begins(alarms: Array) -> int:
    """Count the alarms. Alarms in consecutive weeks count as one."""
    return int((alarms & ~np.concatenate([[False], alarms[:-1]])).sum())


def draw(series: Series, trials: int, seed: int) -> list[Fault]:
    """Draw `trials` faults of each kind, at random weeks before the last year of the test part.

    The last year is left out so that the alarms after each fault can be seen.
    """
    random = np.random.default_rng(seed)
    weeks = len(series.values) - series.test
    # Draw without replacement: otherwise two equal trials would count twice.
    return [
        Fault(kind, int(at), int(random.choice((-1, 1))))
        for kind in KINDS
        for at in random.choice(np.arange(1, weeks - YEAR - NOTICED_WITHIN), trials, replace=False)
    ]


def watched(pipeline: Path, series: Series, faults: list[Fault]) -> Watched:
    """Run one stream up to the test part, then one stream for each fault and one without a fault."""
    values = series.values.astype(np.float32)
    before, test = values[: series.test], values[series.test :]
    with Engine.load(pipeline, max_streams=len(faults) + 2) as engine:
        with engine.open() as stream:
            stream.feed({"co2": before})
            blob = stream.snapshot()
        chunks = [test, *(fault.planted(test) for fault in faults)]
        outs = engine.feed_many([(engine.restore(blob), {"co2": chunk}) for chunk in chunks])
        for out in outs:
            if isinstance(out, RunnelError):
                raise out
    clean, *alarms = [out["anomaly"] for out in outs]
    return Watched(clean, dict(zip(faults, alarms, strict=True)))
