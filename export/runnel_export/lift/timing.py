"""The timing of values: how fast rows come, how late they are, and how many there are in the end.

The module computes on a whole sequence of T ticks: a value over time is an array of rows 0 … L-1, with
L a known function of T. The step graph computes the same rows a few at a time. After k ticks it has
computed the rows below ``k*rate - delay``. Rows below 0 lie before the sequence and rows from L on behind
it: the graph computes numbers for them, which mean nothing.

Pure: nothing here writes a node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

ONE = Fraction(1)
ENDLESS = 2**50  # ticks: no stream is as long (743 years of 48 kHz), and products with it fit int64


@dataclass(frozen=True, slots=True)
class Length:
    """The number of rows as a function of the number of ticks: a chain of L -> (L*times + plus) // over."""

    chain: tuple[tuple[int, int, int], ...] = ()

    def __call__(self, ticks: int) -> int:
        length = ticks
        for times, plus, over in self.chain:
            length = max(0, (length * times + plus) // over)
        return length

    def then(self, times: int = 1, plus: int = 0, over: int = 1) -> Length:
        """The length after one more operation."""
        chain = self.chain
        if chain and chain[-1][2] == 1:
            a, b, _ = chain[-1]
            chain, times, plus = chain[:-1], a * times, b * times + plus
        if (times, plus, over) == (1, 0, 1):
            return Length(chain)
        return Length((*chain, (times, plus, over)))


TICKS = Length()  # a row for each tick


def padded_to(length: Length, given: Mapping[int, int]) -> tuple[Length, int] | None:
    """The length of what is padded behind by so many rows: (as a function of the ticks, the most rows).

    `given`: rows that the module puts behind a value of this length, by the number of ticks. They are always
    the same, or make the length that of the input, or a multiple of some size and a rest, perhaps of some
    least size. None if they are neither.
    """
    rows = {ticks: length(ticks) + more for ticks, more in given.items()}
    least, most = min(given.values()), max(given.values())
    if least == most:
        return length.then(plus=least), least
    if all(ticks == total for ticks, total in rows.items()):
        return TICKS, max(0, *(ticks - length(ticks) for ticks in range(1, max(rows) + 1)))
    shortest = min(rows.values())
    size = math.gcd(*(total - shortest for total in rows.values()))
    longer = [more for ticks, more in given.items() if rows[ticks] > shortest]
    if not longer or max(longer) - min(longer) >= size:
        return None
    fixed = 0 if max(longer) < size else min(longer)
    if all(length(ticks) + fixed > shortest - size for ticks in given):  # nothing shows that there is a least
        shortest = shortest % size or size
    steps = length.then(plus=fixed - shortest + size - 1, over=size)
    return steps.then(times=size, plus=shortest), max(most, fixed + size - 1)


@dataclass(frozen=True, slots=True)
class Edge:
    """Padding that is not written yet: the first and the last rows, which whoever reads the value fills in.

    `back`: the most rows behind; `end`: the number of the first of them, if there are any. `mode`:
    "constant", or "reflect" and "replicate", which repeat the rows between. `fill`: the constant; None if the
    rows went through operations since, so that what they became is taken from the module's run.
    """

    front: int = 0
    back: int = 0
    mode: str = "constant"
    fill: float | None = field(default=0.0, compare=False)
    end: Length = TICKS


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a value's rows are in time.

    `rate`: rows a tick. `delay`: in rows; negative if rows are constants that are known before the first
    tick. `edge`: the padding among the value's rows that is not written yet.
    """

    rate: Fraction = ONE
    delay: int = 0
    length: Length = TICKS
    edge: Edge | None = None

    @property
    def latency(self) -> Fraction:
        """The delay in ticks of the input."""
        return self.delay / self.rate

    @property
    def plain(self) -> bool:
        """Whether a row comes with each tick, and no more: the timing of an ordinary recurrent model."""
        return self == PLAIN

    def uncertain(self, ticks: int) -> int:
        """Rows by which a stream must be later still: a row may be given once it is known to be one.

        A sequence that ends now may have fewer rows than were computed. `ticks`: of a step.
        """
        rows = int(ticks * self.rate)
        steps = range(1, 64 + 4 * abs(math.ceil(self.latency)) // ticks)
        return max(0, *(n * rows - self.delay - self.length(n * ticks) for n in steps))

    def padded(self, front: int, length: Length, edge: Edge | None) -> Timing:
        """With rows put before, and behind up to a length."""
        return replace(self, delay=self.delay - front, length=length, edge=edge)

    def cut(self, front: int, back: int) -> Timing:
        """Without its first and its last rows. What is cut of an edge never has to be filled."""
        edge = self.edge
        if edge is not None:
            left, behind = max(0, edge.front - front), max(0, edge.back - back)
            end = edge.end.then(plus=-front) if behind else TICKS
            edge = replace(edge, front=left, back=behind, end=end)
            edge = edge if edge.front or edge.back else None
        length = self.length.then(plus=-front - back)
        return replace(self, delay=self.delay + front, length=length, edge=edge)

    def delayed(self, rows: int) -> Timing:
        return replace(self, delay=self.delay + rows)

    def spread(self, times: int) -> Timing:
        """Each row becomes `times` rows."""
        length = self.length.then(times=times)
        return replace(self, rate=self.rate * times, delay=self.delay * times, length=length)

    def gathered(self, size: int) -> Timing:
        """`size` rows become one. The delay must be a multiple of `size`."""
        return replace(
            self, rate=self.rate / size, delay=self.delay // size, length=self.length.then(over=size)
        )


PLAIN = Timing()


@dataclass(frozen=True, slots=True)
class Windows:
    """How an operator that reads windows of rows moves: row i reads the rows i*stride … i*stride + reach.

    `past`: rows of the input to keep from before a call; negative: that many of a call's rows are skipped.
    `lead`: rows at the beginning of those that only the edge's rows are made of. `spare`: rows at a call's
    end that no window of this call reads.
    """

    timing: Timing
    past: int
    lead: int
    spare: int

    @classmethod
    def of(cls, x: Timing, reach: int, stride: int = 1) -> Windows:
        """For an input with this timing, whose edge is filled in on the way."""
        edge = x.edge or Edge()
        ahead, behind = 0, 0
        if edge.mode != "constant":  # a mirrored row is read twice as far away from the padded end
            far = 2 if edge.mode == "reflect" else 1
            ahead, behind = far * edge.front, max(0, far * edge.back - reach)
        delay = -(-(x.delay + max(reach, ahead) - stride + 1) // stride)
        kept = delay * stride - x.delay
        length = x.length.then(plus=stride - 1 - reach, over=stride)
        timing = Timing(x.rate / stride, delay, length)
        return cls(timing, kept + behind, behind, kept + stride - 1 - reach)
