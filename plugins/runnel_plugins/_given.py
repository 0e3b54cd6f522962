"""What a stage is given: which of the tensors it works on, numbers for each feature, and whether arrays
from a snapshot are a state."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from runnel.errors import PipelineError, SnapshotError
from runnel.spec import Array, Signal, TensorSpec
from runnel.stage import Arrays


def floats(stage: str, inputs: Signal, of: str | None, dtypes: str = "efd") -> tuple[TensorSpec, ...]:
    """The tensors that an elementwise stage acts on: the one named `of`, or else all that are floats.

    `dtypes`: the characters of those that it can take. PipelineError where there is none, or one of another
    dtype.
    """
    chosen = tuple(t for t in inputs.tensors if np.dtype(t.dtype).kind == "f") if of is None else ()
    if of is not None:
        chosen = (named(stage, inputs, of),)
    if not chosen:
        raise PipelineError(f"{stage} takes floats, but {inputs} arrives: put a 'cast' stage before it")
    for tensor in chosen:
        if np.dtype(tensor.dtype).char not in dtypes:
            takes = " or ".join(np.dtype(c).name for c in dtypes)
            raise PipelineError(f"{stage} takes {takes}, but {tensor} arrives: put a 'cast' stage before it")
    return chosen


def one(
    stage: str, inputs: Signal, of: str | None, fits: Callable[[TensorSpec], bool], what: str
) -> TensorSpec:
    """The tensor named `of`, or else the only one that fits; `what` says in an error which those are."""
    fitting = [t for t in inputs.tensors if fits(t)]
    if of is not None:
        tensor = named(stage, inputs, of)
        if tensor not in fitting:
            raise PipelineError(f"{stage} takes {what}, but {of!r} is {tensor}")
        return tensor
    if not fitting:
        raise PipelineError(f"{stage} takes {what}, but {inputs} arrives")
    if len(fitting) > 1:
        names = ", ".join(repr(t.name) for t in fitting)
        raise PipelineError(f"{stage} works on one tensor, and {names} would do: name it with of = …")
    return fitting[0]


def named(stage: str, inputs: Signal, of: str) -> TensorSpec:
    """The tensor of that name; PipelineError where there is none."""
    for tensor in inputs.tensors:
        if tensor.name == of:
            return tensor
    names = ", ".join(map(repr, inputs.names))
    raise PipelineError(f"{stage}: of = {of!r} is none of the tensors that arrive: {names}")


def per_feature(stage: str, option: str, value: float | list[float], tensor: TensorSpec) -> Array:
    """A number, or one for each element of the tensor's last axis, as an array of the tensor's dtype."""
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
    """`value`, if it is finite and above `above`."""
    if not (math.isfinite(value) and value > above):
        bound = f" above {above:g}" if above > -math.inf else ""
        raise PipelineError(f"{stage}: {option} must be a finite number{bound}, not {value:g}")
    return value


def require_state(stage: str, arrays: Arrays, like: Arrays) -> None:
    """Raise SnapshotError unless `arrays` have the shapes of `like`, and hold no NaN and no infinity."""
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
