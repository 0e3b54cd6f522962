"""What became of one case, as a value that passes between processes and into the table."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

Result = Literal["certified", "refused", "fault", "absent"]


@dataclass(frozen=True)
class Outcome:
    """A row of the table.

    `result`: "refused" if `export` raised an ExportError; "absent" if the package does not import or the
    model cannot be built; "fault" for all else: another exception, a crash, a time-out, a wrong number.
    """

    name: str
    version: str
    result: Result
    reason: str = ""
    parameters: int = 0
    error: float | None = None
    rate: str = ""
    latency: int | None = None
    nodes: int | None = None
    ratio: float | None = None
    step_us: float | None = None
    seconds: float | None = None


def installed(package: str) -> str:
    """The version of a package; empty if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
