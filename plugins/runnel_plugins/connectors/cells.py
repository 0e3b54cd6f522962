"""Numbers and times in text or JSON: the common part of tables, lines and messages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from runnel.columns import columns_of, other_names, tensor_columns, time_of, untimed, whole_columns
from runnel.errors import UsageError
from runnel.spec import Signal, TensorSpec
from runnel.times import SECONDS, RowClock, Unit

Missing = Literal["refuse", "nan"]
"""How a missing number is treated: as an error, or as NaN (for a pipeline that begins with `impute`)."""

Rate = Literal["check", "any"]
"""Whether the times of the rows must be at the pipeline's rate."""


def number(cell: str) -> float | None:
    """Return the finite number written as text, or None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_number(cell: str) -> bool:
    """Whether the text is a number, including nan."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_cell(cell: str, whole: bool, missing: Missing = "refuse") -> float:
    """Return the number in a cell; ValueError gives the reason if there is none.

    `whole`: an integer is expected.
    """
    if missing == "nan" and not whole and cell.strip().lower() in ("", "nan", "na", "null"):
        return math.nan
    value = number(cell)
    if value is None:
        raise ValueError(f"{cell!r:.80} is not a finite number")
    if not whole:
        return value
    try:
        return int(cell)  # not through a float, which holds 53 bits
    except ValueError:
        raise ValueError(f"{cell!r:.80} is not a whole number") from None


def read_time(cell: object, unit: Unit = "s") -> tuple[float, float]:
    """Return a time as its number, and in seconds. Raises ValueError.

    A finite number is in `unit`. A time in ISO 8601 is in UTC unless it has an offset; its number is the
    seconds since 1970.
    """
    value = None
    if isinstance(cell, int | float) and not isinstance(cell, bool) and math.isfinite(cell):
        value = float(cell)
    elif isinstance(cell, str):
        value = number(cell)
        if value is None:
            try:
                when = datetime.fromisoformat(cell.strip())
            except ValueError:
                pass
            else:
                seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
                return seconds, seconds
    if value is None:
        raise ValueError(f"{cell!r:.80} is neither a number nor a time in ISO 8601")
    return value, value * SECONDS[unit]


class Row:
    """Rows of a signal made of named values: their order, and how each is read.

    `time` names the value that holds the time of the row, in `unit`. It fills the signal's float64 tensor
    ``time`` if there is one. Otherwise the times must be at the signal's rate, unless `rate` is "any".
    """

    def __init__(
        self,
        where: str,
        signal: Signal,
        time: str | None,
        unit: Unit = "s",
        rate: Rate = "check",
        live: bool = False,
    ) -> None:
        self.signal = signal
        self.time, self.unit = time, unit
        tensor = time_of(signal)
        self.timed = time is not None and tensor is not None
        self.numbers = untimed(signal) if self.timed else signal
        if not self.numbers.tensors:
            raise UsageError(f"{where}: the pipeline takes {signal}, and no numbers beside the time")
        self.clock: RowClock | None = None
        if time is not None and tensor is None:
            self.clock = RowClock(where, time, signal.rate if rate == "check" else None, live, unit)
        self.columns = columns_of(self.numbers)
        self.whole = whole_columns(self.numbers)
        # The index of the time in a row of the signal, if it has one.
        at = 0
        for t in signal.tensors:
            if self.timed and t == tensor:
                break
            at += len(tensor_columns(t))
        self._at = at

    def when(self, cell: object) -> tuple[float, float]:
        """Call `read_time` for the rows in order. ValueError and UsageError as from `RowClock.follow`."""
        stamp, seconds = read_time(cell, self.unit)
        if self.clock is not None:
            self.clock.follow(seconds)
        return stamp, seconds

    def full(self, numbers: Sequence[float], stamp: float | None) -> Sequence[float]:
        """Return the numbers with the time inserted, in the order of the signal's columns."""
        if not self.timed or stamp is None:
            return numbers
        return [*numbers[: self._at], stamp, *numbers[self._at :]]


class Json:
    """Time steps as JSON: ``{"x": [1, 2]}``.

    The keys are the names of the tensors, or of their columns (``x.0``). If the signal has one tensor, its
    value may stand alone. `columns` names other keys instead, one per number, in the order of the signal's
    columns.
    """

    def __init__(self, where: str, row: Row, columns: list[str] | None, missing: Missing) -> None:
        self.row = row
        self._missing = missing
        self._named: list[tuple[TensorSpec, list[str]]] = []
        keys = self.row.columns if columns is None else columns
        if len(keys) != len(self.row.columns):
            raise UsageError(
                f"{where}: --columns names {len(keys)}, but a time step holds {len(self.row.columns)} "
                f"numbers ({self.row.numbers})"
            )
        at = 0
        for tensor in self.row.numbers.tensors:
            width = len(tensor_columns(tensor))
            self._named.append((tensor, keys[at : at + width]))
            at += width
        self._by_tensor = columns is None
        self._others = other_names(self.row.numbers) if columns is None else {}
        self.used = [*(t.name for t, _ in self._named if self._by_tensor), *keys]

    def read(self, value: Any) -> tuple[Sequence[float], tuple[float, float] | None]:
        """Return a row of the signal's numbers, and its time from `Row.when`, if it has one.

        Raises ValueError for a value that does not fit, and UsageError as `Row.when` does.
        """
        if not isinstance(value, dict):
            if len(self._named) > 1 or self.row.time is not None or not self._by_tensor:
                raise ValueError(f"expected an object with {self._wanted()}, not {value!r:.80}")
            value = {self._named[0][0].name: value}
        numbers: list[float] = []
        for tensor, keys in self._named:
            whole = tensor.dtype.lstrip("u").startswith("int")
            if self._by_tensor and tensor.name in value:
                if math.prod(tensor.shape) == 1 and not isinstance(value[tensor.name], list):
                    numbers.append(self._scalar(value[tensor.name], tensor.name, whole))
                    continue
                self._flatten(value[tensor.name], tensor.shape, tensor, whole, numbers)
                continue
            for key in keys:
                found = key if key in value else self._others.get(key, key)
                if found not in value:
                    raise ValueError(f"no {key!r} in it; it has {', '.join(map(repr, value))!s:.200}")
                numbers.append(self._scalar(value[found], found, whole))
        when = None
        if self.row.time is not None:
            if self.row.time not in value:
                raise ValueError(f"no time {self.row.time!r} in it")
            when = self.row.when(value[self.row.time])
        return self.row.full(numbers, when and when[1]), when

    def _wanted(self) -> str:
        return ", ".join(repr(tensor.name) for tensor, _ in self._named)

    def _flatten(
        self, value: Any, shape: tuple[int, ...], tensor: TensorSpec, whole: bool, into: list[float]
    ) -> None:
        if not shape:
            into.append(self._scalar(value, tensor.name, whole))
            return
        if not isinstance(value, list) or len(value) != shape[0]:
            given = f"a list of {len(value)}" if isinstance(value, list) else f"{value!r:.80}"
            raise ValueError(f"{tensor.name!r}: {given}, but a time step has shape {tensor.shape} ({tensor})")
        for item in value:
            self._flatten(item, shape[1:], tensor, whole, into)

    def _scalar(self, value: Any, name: str, whole: bool) -> float:
        if value is None and self._missing == "nan" and not whole:
            return math.nan
        if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and not whole):
            return value
        what = "whole number" if whole else "finite number"
        raise ValueError(f"{name!r}: {value!r:.80} is not a {what}")
