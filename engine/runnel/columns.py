"""The columns of a signal in tables and messages: names, and chunks made of rows.

For authors of sources and sinks. A time step is a row of a table: the numbers of each tensor in C order, one
tensor after another. A float64 tensor called ``time``, with one number per time step, holds the time of the
time step in seconds since 1970 UTC, or since the input's own origin.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from .errors import UsageError, nearest
from .spec import Array, Signal, TensorSpec

TIME: Final = "time"
SAMPLE: Final = 100  # rows that are read before columns are proposed
ORDERED: Final = 8  # rows in order that make an ordered column: of random columns, 1 in 20,000 has this

_TIMES: Final = re.compile(
    r"(((date|time)[ _-]?)?(time|stamp|date)s?|ts|t|epoch)([ _-]?[(\[]?(s|sec|seconds|ms|us|ns|utc)[)\]]?)?"
)
_IDS: Final = re.compile(
    r"|#|unnamed: ?0|((row|line|record)[ _-]?)?(id|idx|index|no|nr|number)|row|line|uuid|guid"
)


def columns_of(signal: Signal) -> list[str]:
    """Return a name for each number of a time step.

    A tensor of one number is ``x``; the numbers of others are ``y.0``, ``y.1`` … or ``z.0.1``.
    """
    return [name for tensor in signal.tensors for name in tensor_columns(tensor)]


def tensor_columns(tensor: TensorSpec) -> list[str]:
    """Return the columns of one array, in C order."""
    if math.prod(tensor.shape) == 1:
        return [tensor.name]
    indices = itertools.product(*map(range, tensor.shape))
    return [".".join([tensor.name, *map(str, index)]) for index in indices]


def other_names(signal: Signal) -> dict[str, str]:
    """Return second names of inputs of one number: ``x.0`` for ``x``."""
    taken = set(columns_of(signal))
    pairs = {t.name: ".".join([t.name, *["0"] * len(t.shape)]) for t in signal.tensors if t.shape}
    ones = {t.name for t in signal.tensors if math.prod(t.shape) == 1}
    return {name: other for name, other in pairs.items() if name in ones and other not in taken}


def is_time_name(name: str) -> bool:
    """Whether such a column holds times: ``time``, ``Timestamp``, ``t_ms`` …"""
    return _TIMES.fullmatch(name.strip().lower()) is not None


def is_row_name(name: str) -> bool:
    """Whether such a column numbers the rows: ``id``, ``index``, or an empty name."""
    return _IDS.fullmatch(name.strip().lower()) is not None


def time_of(signal: Signal) -> TensorSpec | None:
    """Return the tensor that holds the time of each time step, or None."""
    wanted = TensorSpec(TIME, "float64")
    return next((tensor for tensor in signal.tensors if tensor == wanted), None)


def untimed(signal: Signal) -> Signal:
    """Return the signal without the tensor of `time_of`."""
    return Signal(tuple(t for t in signal.tensors if t != time_of(signal)), signal.rate)


def only_tensor(where: str, signal: Signal) -> TensorSpec:
    """Return the signal's only tensor; raise UsageError if the signal has several."""
    if len(signal.tensors) != 1:
        raise UsageError(
            f"{where}: it holds one array, but the pipeline takes {signal}: use a table, JSON lines or a "
            ".npy of records"
        )
    return signal.tensors[0]


def choose_columns(
    where: str,
    header: Sequence[str],
    numeric: Sequence[str],
    signal: Signal,
    columns: Sequence[str] | None,
    rises: Callable[[str], bool] = lambda name: False,
) -> list[int]:
    """Return the index in `header` of the column for each number of a time step.

    `numeric`: the columns that hold numbers. `columns`: the columns requested by the user, in the signal's
    order. `rises`: whether a column's numbers are `is_ordered`; called only for the advice in an error.
    Raises UsageError if a column is missing or if the choice would be a guess.
    """
    wanted = columns_of(signal)
    chosen = list(columns) if columns is not None else wanted
    if len(chosen) != len(wanted):
        raise UsageError(
            f"{where}: --columns names {len(chosen)}, but a time step holds {len(wanted)} numbers ({signal})"
        )
    if columns is None:
        others = other_names(signal)
        chosen = [others[c] if c not in header and others.get(c) in header else c for c in chosen]
    twice = next((name for name in chosen if list(header).count(name) > 1), None)
    if twice is not None:
        many = list(header).count(twice)
        raise UsageError(f"{where}: {many} columns are called {twice!r}: give them other names")
    missing = [name for name in chosen if name not in header]
    if not missing:
        return [list(header).index(name) for name in chosen]
    if columns is None and len(signal.tensors) == 1:
        # One array with other names in the file: use the whole table if it fits exactly. Never guess a part
        # of a larger table, because an id is a number too.
        odd = [name for name in header if is_time_name(name) or is_row_name(name)]
        if len(missing) == len(wanted) == len(header) == len(numeric) and not odd:
            return list(range(len(header)))
        found = f"; its columns are {', '.join(header)}, {len(numeric)} of them hold numbers"
        are = "is" if len(wanted) == 1 else "are"
        choose = f"{len(wanted)} {are} needed ({signal})" + _advice(len(wanted), header, numeric, rises)
    else:
        found, choose = "", "Choose with --columns"
    raise UsageError(f"{where}: no column {missing[0]!r}{nearest(missing[0], list(header))}{found}. {choose}")


def is_ordered(values: Sequence[float | None]) -> bool:
    """Whether the numbers only rise or only fall, as a time does.

    False for fewer than ORDERED numbers.
    """
    if len(values) < ORDERED:
        return False
    known = [value for value in values if value is not None]
    pairs = list(itertools.pairwise(known))
    return len(known) == len(values) and (all(a < b for a, b in pairs) or all(a > b for a, b in pairs))


def _advice(wanted: int, header: Sequence[str], numeric: Sequence[str], rises: Callable[[str], bool]) -> str:
    """Advise which columns to choose.

    Never a time or an id, whose numbers a model cannot use.
    """
    fit = [n for n in numeric if not (is_time_name(n) or is_row_name(n) or rises(n))]
    time = next((name for name in header if is_time_name(name)), None)
    advice = ""
    if len(fit) >= wanted:
        advice = f": say which, in order, such as --columns {','.join(fit[:wanted])}"
    elif len(numeric) >= wanted:
        advice = ": say which, in order, with --columns"
    if time is not None:
        advice += f"; for the time of a row, ?time={time} behind the file's name, in quotes"
    return advice


def whole_columns(signal: Signal) -> list[bool]:
    """For each column, whether it holds whole numbers, which a float's 53 bits could change."""
    return [np.dtype(t.dtype).kind in "iu" for t in signal.tensors for _ in tensor_columns(t)]


def pack(rows: Sequence[Sequence[float]], signal: Signal) -> dict[str, Array]:
    """Make a chunk of rows of numbers in the order of `columns_of`.

    Raises OverflowError, with the tensor's name, for a number that the dtype cannot hold.
    """
    chunk: dict[str, Array] = {}
    at = 0
    for tensor in signal.tensors:
        width = math.prod(tensor.shape)
        try:
            with np.errstate(over="raise"):  # otherwise a number beyond a float's range would become infinite
                values = np.array([row[at : at + width] for row in rows], tensor.dtype)
        except (OverflowError, FloatingPointError) as error:
            raise OverflowError(f"{error} ({tensor})") from None
        chunk[tensor.name] = values.reshape(-1, *tensor.shape)
        at += width
    return chunk


def flat(tensor: TensorSpec, array: Array) -> Array:
    """Return an array of a chunk as columns: shape (T, numbers of a time step)."""
    return array.reshape(len(array), math.prod(tensor.shape))


def label_texts(tensor: TensorSpec) -> dict[int, str] | None:
    """Return the label of each number; None without labels, or for floats."""
    if not tensor.labels or np.dtype(tensor.dtype).kind not in "iu":
        return None
    return dict(enumerate(tensor.labels))
