"""Checks of a stage's arguments: its float arrays, numbers per feature, and restored states."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from runnel.errors import PipelineError, SnapshotError
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays

from ._choose import one

MAX_HELD = 2**24  # bytes of past in one stage for one stream: a quarter of the engine's limit


def floats(stage: str, inputs: Signal, of: str | None, dtypes: str = "efd") -> tuple[TensorSpec, ...]:
    """Return the tensors of an elementwise stage: the one named `of`, else all float tensors.

    `dtypes`: the dtype characters that the stage supports. Raises PipelineError if no tensor fits, or if one
    has an unsupported dtype.
    """
    if of is not None:
        chosen: tuple[TensorSpec, ...] = (one(stage, inputs, of, _is_float, "floats"),)
    else:
        chosen = tuple(t for t in inputs.tensors if _is_float(t))
    if not chosen:
        raise PipelineError(f"{stage} takes floats, but {inputs} arrives: put a 'cast' stage before it")
    for tensor in chosen:
        if np.dtype(tensor.dtype).char not in dtypes:
            takes = " or ".join(np.dtype(c).name for c in dtypes)
            raise PipelineError(f"{stage} takes {takes}, but {tensor} arrives: put a 'cast' stage before it")
    return chosen


def _is_float(tensor: TensorSpec) -> bool:
    return np.dtype(tensor.dtype).kind == "f"


def require_small(stage: str, rows: int, tensors: Iterable[TensorSpec]) -> None:
    """Raise PipelineError if `rows` time steps of all `tensors` are too large."""
    held = rows * sum(math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in tensors)
    if held > MAX_HELD:
        raise PipelineError(
            f"{stage}: {rows} rows would be held for each stream, {held} bytes; at most {MAX_HELD}"
        )


def per_feature(stage: str, option: str, value: float | list[float], tensor: TensorSpec) -> Array:
    """Return a number, or one per feature, as an array of the tensor's dtype.

    A feature is an element of the last axis.
    """
    if isinstance(value, list) and (not tensor.shape or len(value) != tensor.shape[-1]):
        size = tensor.shape[-1] if tensor.shape else "no"
        raise PipelineError(
            f"{stage}: {option} has {len(value)} numbers, but {tensor} has {size} features: give one number, "
            "or one for each element of the last axis"
        )
    with np.errstate(over="ignore"):
        numbers = np.array(value, tensor.dtype)
    if not np.isfinite(numbers).all():
        raise PipelineError(f"{stage}: {option} must be finite in {tensor.dtype}, not {value!r}")
    return numbers


def finite_option(stage: str, option: str, value: float, above: float = -math.inf) -> float:
    """Return `value` if it is finite and greater than `above`; else raise PipelineError."""
    if not (math.isfinite(value) and value > above):
        bound = f" above {above:g}" if above > -math.inf else ""
        raise PipelineError(f"{stage}: {option} must be a finite number{bound}, not {value:g}")
    return value


def require_state(stage: str, arrays: Arrays, like: Arrays) -> None:
    """Raise SnapshotError unless `arrays` are finite, with the shapes of `like`."""
    for name, wanted in like.items():
        if arrays[name].shape != wanted.shape:
            raise SnapshotError(f"{stage}: {name!r} has shape {arrays[name].shape}, expected {wanted.shape}")
        require_finite_state(stage, name, arrays[name])


def require_finite_state(stage: str, name: str, array: Array) -> None:
    """Raise SnapshotError for a NaN or an infinity."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise SnapshotError(f"{stage}: {name!r} is not finite")


def require_range(stage: str, name: str, array: Array, low: float, high: float) -> None:
    """Raise SnapshotError unless all of `array` lies in low..high."""
    if not ((array >= low) & (array <= high)).all():
        raise SnapshotError(f"{stage}: {name!r} is outside {low:g}..{high:g}: none that a stream can have")
