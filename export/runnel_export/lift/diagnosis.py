"""Why a module was refused, in terms of the user's own example.

A module is traced at sizes that the user never saw. An error that holds such a size is found again by running
forward on an example that is one row, or one tick, larger. Else the error is made at two pairs of sizes, and
what differs between the two texts is written as a formula of the batch B and the time T.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from runnel.errors import ExportError, NotStreamableError

from ..dry_run import described, failure, resample, without_batch
from .trace import Prepared, UntraceableError

_NUMBER = re.compile(r"(\d+)")
_LEGEND = " (B: the batch size, T: the number of ticks)"


def in_users_terms(
    error: ExportError, module: nn.Module, prepared: Prepared, again: Callable[[], object]
) -> ExportError:
    """The same error without the exporter's own sizes. `again` repeats what failed at the other sizes."""
    refused = isinstance(error, NotStreamableError)
    kind: type[ExportError] = NotStreamableError if refused else ExportError
    # A loop over a fixed number of ticks runs on longer sequences too, and is no recurrence.
    fixed = prepared.lengths[0].least > 1 and "hand-written recurrence" in error.message
    if isinstance(error, UntraceableError) or fixed:
        told = _of_one_size(module, prepared)
        if told:
            lacks = "" if prepared.state else without_batch(module, prepared.inputs)
            return ExportError(lacks or told)
    if not _NUMBER.search(error.message):
        return kind(error.message)
    other = ""
    try:
        again()
    except ExportError as second:
        other = second.message
    sizes = prepared.sizes
    return kind(general(error.message, other, sizes[0], sizes[1]))


# ------------------------------------------------------------------ an example one larger


def _of_one_size(module: nn.Module, prepared: Prepared) -> str:
    """What to say of a forward that runs on the example, and not on one row or one tick more or less."""
    given = {**prepared.inputs, **(prepared.state or {})}
    name = next(iter(prepared.inputs))
    for changed, axis, where in _resized(prepared):
        found = failure(module, changed)
        if not found:
            continue
        likely = "the batch size is written into the module, or into a state on self (pass that as state=)"
        help = "a stream is stepped in batches of any size"
        if axis == prepared.time_axis:
            likely = "the sequence's length is written into the module"
            help = (
                "a stream has no length. What sees a window of fixed length is a causal convolution, or state"
            )
        return (
            f"{type(module).__name__}: forward runs on the example you gave ({described(given)}), but not "
            f"with one {where} ({described(changed)}): {found}. Likely {likely}. "
            f"What would help: take it from {name}.shape[{axis}]; {help}"
        )
    return ""


def _resized(prepared: Prepared) -> Iterator[tuple[dict[str, Any], int | None, str]]:
    """(arguments of forward, the axis that was changed, how), one change at a time."""
    inputs, axes = prepared.inputs, prepared.axes
    leaves = [
        resample(leaf, prepared.states_at[name], leaf.shape[prepared.states_at[name]] + 1)
        for name, leaf in prepared.given.items()
    ]
    state = {}
    if prepared.state is not None:
        state = pytree.tree_unflatten(leaves, pytree.tree_flatten(dict(prepared.state))[1])
    rows = {n: resample(t, axes[n][0], t.shape[axes[n][0]] + 1) for n, t in inputs.items()}
    yield {**rows, **state}, prepared.batch_axis, "row more in the batch"
    for more, where in ((1, "tick more"), (-1, "tick less")):
        ticks = {}
        for name, tensor in inputs.items():
            axis = axes[name][1]
            if axis is not None and tensor.shape[axis] + more > 0:
                ticks[name] = resample(tensor, axis, tensor.shape[axis] + more)
        if len(ticks) == len(inputs):
            yield {**ticks, **(prepared.state or {})}, prepared.time_axis, where


# ------------------------------------------------------------------ formulas of the sizes


def general(text: str, other: str, sizes: tuple[int, int], others: tuple[int, int]) -> str:
    """`text`, made at `sizes`, with each number that comes from them as a formula.

    `other` is the text that was made at `others`. If it is another sentence, a number that is one of the
    sizes is taken for it.
    """
    one, two = _NUMBER.split(text), _NUMBER.split(other)
    if one[::2] != two[::2]:  # (numbers are at the odd places)
        two = [str(_swapped(int(p), sizes, others)) if i % 2 else p for i, p in enumerate(one)]
    parts = [
        a if a == b else _formula((int(a), int(b)), sizes, others) for a, b in zip(one, two, strict=True)
    ]
    said = "".join(parts)
    return said if parts == one else said + _LEGEND


def _swapped(number: int, sizes: tuple[int, int], others: tuple[int, int]) -> int:
    """What a number would be at the other sizes if it is one of them, or both multiplied."""
    known = dict(zip((*sizes, sizes[0] * sizes[1]), (*others, others[0] * others[1]), strict=True))
    return known.get(number, number)


def _formula(numbers: tuple[int, int], one: tuple[int, int], two: tuple[int, int]) -> str:
    """In B and T, what is the first number at sizes `one`, and the second at `two`."""
    products = {"B": (one[0], two[0]), "T": (one[1], two[1]), "B*T": (one[0] * one[1], two[0] * two[1])}
    for name, size in products.items():
        if all(n % s == 0 for n, s in zip(numbers, size, strict=True)):
            factors = {n // s for n, s in zip(numbers, size, strict=True)}
            if len(factors) == 1:
                factor = factors.pop()
                return name if factor == 1 else f"{factor}*{name}"
    for name, size in (("T", products["T"]), ("B", products["B"])):
        apart = {n - s for n, s in zip(numbers, size, strict=True)}
        if len(apart) == 1:
            return f"{name}{apart.pop():+d}"
    if all(n == t // 2 for n, t in zip(numbers, products["T"], strict=True)):
        return "T//2"
    return "some number"
