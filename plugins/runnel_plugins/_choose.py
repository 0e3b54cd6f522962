"""Choose the array that a stage works on, and make its output signal."""

from __future__ import annotations

from collections.abc import Callable

from runnel.errors import PipelineError, nearest
from runnel.spec import Signal, TensorSpec


def one(
    stage: str,
    inputs: Signal,
    of: str | None,
    fits: Callable[[TensorSpec], bool],
    what: str,
    option: str = "of",
) -> TensorSpec:
    """Return the array named by the option, or the only one that fits.

    Raises PipelineError, which says that `what` is needed.
    """
    if of is not None:
        named = next((t for t in inputs.tensors if t.name == of), None)
        if named is None:
            raise PipelineError(
                f"{stage}: {option} is {of!r}, but {inputs} arrives{nearest(of, list(inputs.names))}"
            )
        if not fits(named):
            raise PipelineError(f"{stage} takes {what}, but {named} is named by {option}")
        return named
    fitting = [t for t in inputs.tensors if fits(t)]
    if not fitting:
        raise PipelineError(f"{stage} takes {what}, but {inputs} arrives")
    if len(fitting) > 1:
        names = ", ".join(repr(t.name) for t in fitting)
        raise PipelineError(f"{stage} takes {what}, and {names} are: say with {option} which one is meant")
    return fitting[0]


def with_tensors(stage: str, inputs: Signal, out: TensorSpec | None, *made: TensorSpec) -> Signal:
    """Return `inputs` with `made` in place of `out`, or after all arrays."""
    if out is None:
        tensors = (*inputs.tensors, *made)
    else:
        at = inputs.names.index(out.name)
        tensors = (*inputs.tensors[:at], *made, *inputs.tensors[at + 1 :])
    names = [t.name for t in tensors]
    for t in made:
        if names.count(t.name) > 1:
            raise PipelineError(f"{stage} makes {t.name!r}, but an array of that name arrives: {inputs}")
    return Signal(tensors, inputs.rate)


def is_classes(tensor: TensorSpec) -> bool:
    """Whether it holds one number for each of several classes: float32 (..., n)."""
    return tensor.dtype == "float32" and len(tensor.shape) > 0


def is_float(tensor: TensorSpec) -> bool:
    return tensor.dtype == "float32"
