"""Pair each returned tensor with the state whose next value it is.

If forward returns a dict, its names decide. Otherwise the order of forward's parameters decides, never the
order of a dict from the caller.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from torch import nn

HELP = "are the returned states in the order of forward's parameters? return a dict to pair them by name"


def parameter_order(module: nn.Module, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return `named` in the order of forward's parameters. Names that forward does not have come last."""
    order = list(inspect.signature(module.forward).parameters)
    return {n: named[n] for n in sorted(named, key=lambda n: order.index(n) if n in order else len(order))}


def pair(states: Sequence[str], returned: Sequence[str]) -> tuple[dict[str, int], bool]:
    """Return (index into `returned` of each state's next value, whether names alone decided).

    `states` are leaf names in parameter order (``h``, ``hx.0``). `returned` are the last paths of a tuple
    (``1``, ``2.c``), of the same number. A dict in the tuple pairs by its keys, either all the states or
    those of one parameter.
    """
    keys = [_below(path) for path in returned]
    if sorted(keys) == sorted(states):
        return {name: keys.index(name) for name in states}, True
    found: dict[str, int] = {}
    for _, group in groupby(states, key=lambda name: name.partition(".")[0]):
        mine, start = list(group), len(found)
        wanted, here = [_below(name) for name in mine], keys[start : start + len(mine)]
        by_key = len(mine) > 1 and sorted(here) == sorted(wanted)
        found |= {
            n: start + (here.index(k) if by_key else i)
            for i, (n, k) in enumerate(zip(mine, wanted, strict=True))
        }
    return found, False


def _below(path: str) -> str:
    return path.partition(".")[2]


def positions_note(shapes: Mapping[str, tuple[int, ...]], places: Mapping[str, str]) -> str | None:
    """Return the note for states of the same shape that were paired by position; None if there are none."""
    alike = [n for n, s in shapes.items() if list(shapes.values()).count(s) > 1]
    if not alike:
        return None
    pairs = ", ".join(f"{name} <- output {places[name]}" for name in alike)
    return f"states paired by position: {pairs}; return a dict to pair them by name"
