"""How far what came out is from what was expected, element by element, and when that is too far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runnel.spec import Array

from .certificate import Check, Error, Limits

_ROUNDING = 4.0  # how many times the module's own float32 rounding another order of sums may make


@dataclass(frozen=True, slots=True)
class Measured:
    """One output's figures for each element of a time step: the largest over ticks and streams.

    `rounding` is how far the original's own float32 is from the reference, if that is known.
    """

    absolute: Array
    peak: Array
    rounding: Array
    mismatches: int
    elements: int

    def merge(self, other: Measured) -> Measured:
        return Measured(
            np.maximum(self.absolute, other.absolute), np.maximum(self.peak, other.peak),
            np.maximum(self.rounding, other.rounding),
            self.mismatches + other.mismatches, self.elements + other.elements,
        )  # fmt: skip

    def error(self, scale: Array) -> Error:
        return Error(
            absolute=float(self.absolute.max(initial=0.0)),
            peak=float(self.peak.max(initial=0.0)),
            mismatches=self.mismatches,
            elements=self.elements,
            relative=float((self.absolute / scale).max(initial=0.0)),
        )

    def scale(self, limits: Limits) -> Array:
        """What each element's error is relative to: its own peak, so that no element hides another.

        Not less than a part of what is typical of the elements, and than what lets the module's own
        float32 rounding through; 1 where all is zero.
        """
        present = np.sort(self.peak[self.peak > 0], axis=None)
        if not present.size:
            return np.ones_like(self.peak)
        typical = limits.floor * present[(present.size - 1) // 2]
        allowed = np.minimum(_ROUNDING * self.rounding / limits.tolerance, present[-1])
        scale: Array = np.maximum(np.maximum(self.peak, typical), allowed)
        return scale


@dataclass(frozen=True, slots=True)
class Finding:
    """A comparison that is not judged yet."""

    name: str
    about: str
    passed: bool
    measured: Mapping[str, Measured] = field(default_factory=dict)


class Tally:
    """The figures per output over the streams of one comparison."""

    def __init__(self) -> None:
        self.measured: dict[str, Measured] = {}

    def add(self, name: str, got: Array, expected: Array, rough: Array | None = None) -> None:
        """Compare two arrays, of which the first axis is time; `rough` is the original's own float32.

        A shape that differs, or a NaN on one side only, is an infinite error. Integers that are others
        in `rough` are decided by rounding (an argmax between two equals): neither is wrong.
        """
        found = _measured(got, expected, rough)
        before = self.measured.get(name)
        self.measured[name] = before.merge(found) if before else found

    def finding(self, name: str, about: str, passed: bool = True) -> Finding:
        return Finding(name, about, passed, self.measured)


def judge(findings: Iterable[Finding], limits: Limits) -> tuple[Check, ...]:
    """The verdicts: errors relative to the peaks that each output has in any of the findings.

    One finding's own peaks would turn silence into a division by almost nothing.
    """
    findings = tuple(findings)
    pooled: dict[str, Measured] = {}
    for finding in findings:
        for name, measured in finding.measured.items():
            pooled[name] = pooled[name].merge(measured) if name in pooled else measured
    scales = {name: measured.scale(limits) for name, measured in pooled.items()}
    judged = []
    for finding in findings:
        errors = {name: measured.error(scales[name]) for name, measured in finding.measured.items()}
        passed = finding.passed and all(error.within(limits) for error in errors.values())
        judged.append(Check(finding.name, finding.about, passed, errors, limits.tolerance))
    return tuple(judged)


def informed(finding: Finding, limits: Limits) -> Check:
    """A figure for information: never a failure."""
    errors = {name: measured.error(measured.scale(limits)) for name, measured in finding.measured.items()}
    return Check(finding.name, finding.about, finding.passed, errors)


def _measured(got: Array, expected: Array, rough: Array | None) -> Measured:
    nothing = np.zeros(expected.shape[1:])
    if got.shape != expected.shape:
        return Measured(np.full_like(nothing, np.inf), nothing, nothing, 0, expected.size)
    if expected.dtype.kind not in "fc":
        wrong = got != expected
        if rough is not None:
            wrong &= rough == expected
        return Measured(nothing, nothing, nothing, int(wrong.sum()), expected.size)
    absolute = _distance(got, expected)
    rounding = nothing if rough is None else _distance(rough, expected).max(0, initial=0.0)
    peak = np.abs(np.where(np.isfinite(expected), expected, 0.0)).max(0, initial=0.0)
    return Measured(absolute.max(0, initial=0.0), peak, rounding, 0, expected.size)


def _distance(got: Array, expected: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """|got - expected| for each element: zero for equal infinities, infinite for what has no difference."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(got.astype(np.float64) - expected)
    same = (got == expected.astype(got.dtype)) | (np.isnan(got) & np.isnan(expected))
    finite = np.isfinite(expected) & np.isfinite(got)
    return np.where(finite, difference, np.where(same, 0.0, np.inf))
