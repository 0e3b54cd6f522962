"""Compare two results for one sound: are the segments the same, and how far are they apart?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from runnel_export.demo import silero

from .vendor import Found


@dataclass(frozen=True)
class Compared:
    """Counts of segments and the largest differences, for one sound or several."""

    sounds: int = 0
    seconds: float = 0.0
    unfilled: int = 0  # the vendor's segments if the last windows are not padded
    theirs: int = 0
    ours: int = 0
    identical: int = 0  # segments of ours whose start and end equal the vendor's, to the sample
    unmatched: int = 0  # segments in sounds for which the two numbers of segments differ
    samples: int = 0  # largest difference between starts, or ends, of paired segments
    probability: float = 0.0

    def __add__(self, other: Compared) -> Compared:
        return Compared(
            self.sounds + other.sounds,
            self.seconds + other.seconds,
            self.unfilled + other.unfilled,
            self.theirs + other.theirs,
            self.ours + other.ours,
            self.identical + other.identical,
            self.unmatched + other.unmatched,
            max(self.samples, other.samples),
            max(self.probability, other.probability),
        )

    @property
    def within_a_window(self) -> bool:
        return not self.unmatched and self.samples <= silero.FRAMING.hop

    def cells(self) -> list[str]:
        apart = f"{self.samples / silero.RATE * 1e3:g}"
        return [
            f"{self.sounds}",
            f"{self.seconds:,.0f}",
            f"{self.unfilled:,}",
            f"{self.theirs:,}",
            f"{self.ours:,}",
            f"{self.identical:,}",
            apart if not self.unmatched else f"{self.unmatched} unmatched",
            f"{self.probability:.1e}",
        ]


CELLS = (
    "sounds",
    "seconds",
    "vendor's segments, unfilled",
    "vendor's",
    "ours",
    "identical",
    "ms apart, at most",
    "P(speech) apart",
)


def compare(ours: Found, theirs: Found, length: int) -> Compared:
    """Compare the results for one sound of `length` samples at 16 kHz. Segments are paired in order."""
    if len(ours.probability) != len(theirs.probability):
        raise ValueError(
            f"{len(ours.probability)} windows of ours, {len(theirs.probability)} of the vendor's"
        )
    paired = len(ours.segments) == len(theirs.segments)
    apart = np.abs(np.subtract(ours.segments, theirs.segments)) if paired and ours.segments else np.zeros(1)
    return Compared(
        1,
        length / silero.RATE,
        theirs.unfilled,
        len(theirs.segments),
        len(ours.segments),
        len(set(ours.segments) & set(theirs.segments)),
        0 if paired else len(set(ours.segments) ^ set(theirs.segments)),
        int(apart.max()),
        float(np.abs(ours.probability - theirs.probability).max(initial=0)),
    )


def total(every: Iterable[Compared]) -> Compared:
    return sum(every, Compared())
