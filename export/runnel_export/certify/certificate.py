"""What an export proved, as a value that fits into the model file.

A certificate says what was compared, how large the errors were and with which versions. It is stored
as JSON in the file that it vouches for; `runnel.loading.container.seal` adds the hash that ties the two.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from runnel.errors import ModelError


@dataclass(frozen=True, slots=True)
class Limits:
    """What a check may show: the error relative to each element's peak, and for outputs of integers the
    share of elements that differ.

    `floor`: an element that is smaller than this part of the typical element's peak is measured by that.
    """

    tolerance: float
    mismatched: float
    floor: float = 1e-3


FLOAT32 = Limits(1e-4, 0.0)  # far above rounding, far below any wiring mistake
# What eight bits do to weights and activations, several layers deep; they have one scale a layer.
INT8 = Limits(0.1, 0.1, floor=1.0)


_NAMED = 12  # outputs and states that a line for people has room for: a probe has more


@dataclass(frozen=True, slots=True)
class Error:
    """The largest error of one output: over all elements, ticks and streams that were compared.

    `absolute` is in the output's unit, `peak` the largest finite |reference|. Integers and booleans
    are compared for equality: `mismatches` of `elements`.

    `relative` is the largest error of an element (of a time step) against the peak of that element, so
    that a channel of large numbers does not hide what is wrong in another; see `figures.Measured.scale`.
    """

    absolute: float = 0.0
    peak: float = 0.0
    mismatches: int = 0
    elements: int = 0
    relative: float = 0.0

    def merge(self, other: Error) -> Error:
        return Error(
            max(self.absolute, other.absolute), max(self.peak, other.peak),
            self.mismatches + other.mismatches, self.elements + other.elements,
            max(self.relative, other.relative),
        )  # fmt: skip

    def within(self, limits: Limits) -> bool:
        """Whether both the relative error and the share of mismatches are small enough."""
        return self.relative <= limits.tolerance and self.mismatches <= limits.mismatched * self.elements


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: its name, what it showed, and its figures per output (or per state)."""

    name: str
    about: str
    passed: bool
    errors: Mapping[str, Error] = field(default_factory=dict)
    tolerance: float | None = None  # None: a figure for information

    def row(self) -> str:
        """One line for people."""
        errors = sorted(self.errors.items(), key=lambda item: -item[1].relative)
        few = len(errors) <= _NAMED
        worst = ", ".join(f"{name} {_shown(e)}" for name, e in (self.errors.items() if few else errors[:1]))
        worst += "" if few else f", the largest of {len(errors)}"
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.name:<12} {self.about}" + (
            f": {worst}" if worst else ""
        )


@dataclass(frozen=True, slots=True)
class Certificate:
    """The proof that a step model computes what a module does.

    Attributes:
        errors: per output, the largest error of the file, stepped by the engine, against the original.
        tolerance: the relative error that was allowed.
        reference: the dtype that the original was run in, ``float64`` if the module can be doubled.
        checks: what was compared, in the order in which it was done.
        alive: the states that were shown to change and to matter.
        seed, streams, ticks: of the random data.
        long: the ticks of one long random sequence, beyond any length that forward may have in mind.
        sources: how the random data of each input is drawn, so that `verify` can draw it again.
        vectors: a short input with the original's own outputs, for `verify`.
        quantize: what became int8 and what stayed in float32; None for a float32 model.
        versions: of the packages that took part; date: ISO 8601, UTC.
        notes: what a user should know.
        hash: of the file, as `runnel.loading.container.digest` gives it; empty until the file is written.
    """

    errors: Mapping[str, Error]
    tolerance: float
    reference: str
    checks: tuple[Check, ...]
    alive: tuple[str, ...]
    seed: int
    streams: int
    ticks: int
    sources: tuple[Mapping[str, Any], ...]
    vectors: Mapping[str, Any]
    versions: Mapping[str, str]
    date: str
    quantize: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    long: int = 0
    hash: str = ""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def error(self) -> float:
        """The largest relative error of any output."""
        return max((e.relative for e in self.errors.values()), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; the inverse of `from_json`. The hash is left to `runnel.loading.container.seal`."""
        document = asdict(self)
        del document["hash"]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str) -> Certificate:
        """Read a certificate; raises ModelError, naming `where`, for one that this version cannot read."""
        try:
            parts = dict(document)
            parts["errors"] = {name: Error(**e) for name, e in parts["errors"].items()}
            parts["checks"] = tuple(_check(c) for c in parts["checks"])
            for name in ("alive", "sources", "notes"):
                parts[name] = tuple(parts[name])
            return cls(**parts)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{where}: its certificate is not one that this version of runnel writes ({error}): "
                "export the model again"
            ) from None

    def __repr__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        many = f"{len(self.checks)} checks, {len(self.alive)} states alive"
        return f"<Certificate {verdict}: error {self.error:.1e} of {self.tolerance:g} allowed, {many}>"

    def __str__(self) -> str:
        lines = [check.row() for check in self.checks]
        for name, error in self.errors.items():
            lines.append(f"largest error of {name}: {_shown(error)} (allowed {self.tolerance:g} of a peak)")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def totals(checks: Iterable[Check]) -> dict[str, Error]:
    """The largest error per output over several checks."""
    found: dict[str, Error] = {}
    for check in checks:
        for name, error in check.errors.items():
            found[name] = found.get(name, Error()).merge(error)
    return found


def versions() -> dict[str, str]:
    """The versions of what takes part in a certificate; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in ("runnel", "onnxruntime", "numpy", "onnx", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _check(document: Mapping[str, Any]) -> Check:
    parts = dict(document)
    parts["errors"] = {name: Error(**e) for name, e in parts["errors"].items()}
    return Check(**parts)


def _shown(error: Error) -> str:
    if error.mismatches or (error.elements and not error.peak):
        return f"{error.mismatches} of {error.elements} differ"
    if math.isinf(error.absolute):
        return "not comparable"
    return f"{error.relative:.1e}"
