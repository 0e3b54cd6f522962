"""How many rows forward returns at other lengths than the traced ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..dry_run import copied
from .timing import Length
from .trace import Prepared, feed_at
from .writer import LengthError

Rows = Mapping[int, set[int]]  # by the number of ticks: the sizes of all axes of what forward returns

_LENGTHS = 6  # that follow each other, on which forward is run: strides of 2 and 3, and both


def rows_seen(module: nn.Module, prepared: Prepared) -> Rows:
    """Run forward at several lengths. A length that it does not take has no sizes."""
    unit, first = prepared.takes.unit, max(t for _, t in prepared.sizes)
    other = copied(module)
    found: dict[int, set[int]] = {}
    for ticks in range(first, first + _LENGTHS * unit, unit):
        try:
            with torch.no_grad():
                returned = other(**feed_at(module, prepared, ticks, prepared.sizes[0][0]))
        except Exception:  # the user's code raises of every kind
            found[ticks] = set()
            continue
        leaves = pytree.tree_leaves(returned)
        found[ticks] = {size for leaf in leaves if isinstance(leaf, Tensor) for size in leaf.shape}
    return found


def check_rows(module: nn.Module, seen: Rows, rows: Length) -> None:
    """Raise LengthError if at some length forward returns another number of rows than the step model, `rows`.

    Two traced lengths do not show all: of two branches, the shorter one may be another at another length.
    """
    for ticks, given in seen.items():
        if given and rows(ticks) not in given:
            raise LengthError(
                f"{type(module).__name__}: the number of rows that it makes does not follow from strides and "
                f"paddings (of {ticks} ticks, {rows(ticks)} rows were expected). Are branches cut to "
                "the shorter one, and which one that is changes with the length? What would help: cut to "
                "x.shape[1], or by constants"
            )
