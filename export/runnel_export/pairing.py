"""Which returned tensor is which state's next value, and whether that can be so.

Names decide where forward gives them; else the order of forward's parameters, never that of a dict
that the caller wrote. Two states of one shape can still be returned in the other order: the numbers
cannot tell, since the module would be stepped in the same wrong way. So the graph is asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from runnel.errors import ExportError

from .lowering import Lowering, State

HELP = "are the returned states in the order of forward's parameters? return a dict to pair them by name"


def parameter_order(module: nn.Module, named: Mapping[str, Any]) -> dict[str, Any]:
    """`named` in the order of forward's parameters; names that it has not come last."""
    order = list(inspect.signature(module.forward).parameters)
    return {n: named[n] for n in sorted(named, key=lambda n: order.index(n) if n in order else len(order))}


def pair(states: Sequence[str], returned: Sequence[str]) -> tuple[dict[str, int], bool]:
    """(index into `returned` of each state's next, whether names alone decided).

    `states` are leaf names in parameter order (``h``, ``hx.0``), `returned` the last paths of a tuple, as
    many (``1``, ``2.c``). A dict in it pairs by its keys: with all the states, or with one parameter's.
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
    """What a user must know where two states of one shape were told apart by position only."""
    alike = [n for n, s in shapes.items() if list(shapes.values()).count(s) > 1]
    if not alike:
        return None
    pairs = ", ".join(f"{name} <- output {places[name]}" for name in alike)
    return f"states paired by position: {pairs}; return a dict to pair them by name"


@dataclass(frozen=True)
class _Slot:
    """One state of one recurrent layer: 0 is its hidden state, 1 an LSTM's cell state."""

    node: int
    place: int


def check_slots(low: Lowering) -> None:
    """Refuse given states that enter a layer as one state and are replaced by another.

    Raises ExportError where a layer's h and c, or the states of several layers, were exchanged. A state
    that passes through other operations on its way is its author's own affair.
    """
    enters = _entries(low)
    leaves = {s.name: slot for s in low.states.values() if s.given and (slot := _made_by(low, s)) is not None}
    for name, slot in leaves.items():
        mine = enters.get(name, [])
        if not mine or slot in mine:
            continue
        swapped = next((m for m in mine if m.node == slot.node), None) or _round_trip(
            mine, slot, enters, leaves
        )
        if swapped is not None:
            owners = [n for n, slots in enters.items() if slot in slots]
            whose = f", which belongs to state {owners[0]!r}" if owners else ""
            raise ExportError(
                f"state {name!r} enters {_called(low, swapped)} as its {_role(swapped)} and "
                f"is replaced by the {_role(slot)} of {_called(low, slot)}{whose}: {HELP}"
            )


def _round_trip(
    mine: Sequence[_Slot], slot: _Slot, enters: Mapping[str, list[_Slot]], leaves: Mapping[str, _Slot]
) -> _Slot | None:
    """The slot of `mine` to which the states lead back from `slot`, each replaced by the next one's."""
    seen: set[_Slot] = set()
    while slot not in seen:
        if slot in mine:
            return slot
        seen.add(slot)
        owner = next((n for n, slots in enters.items() if slot in slots and n in leaves), None)
        if owner is None:
            return None
        slot = leaves[owner]
    return None


def _entries(low: Lowering) -> dict[str, list[_Slot]]:
    found: dict[str, list[_Slot]] = {}
    for i, made in enumerate(low.recurrences):
        for place, start in enumerate(made.initial):
            state = low.states.get(low.graph.origin(start))
            if state is not None and state.given:
                found.setdefault(state.name, []).append(_Slot(i, place))
    return found


def _made_by(low: Lowering, state: State) -> _Slot | None:
    source = low.graph.origin(str(state.next))
    for i, made in enumerate(low.recurrences):
        if source == low.graph.origin(made.y):
            return _Slot(i, 0)
        for place, final in enumerate(made.finals):
            if source == low.graph.origin(final):
                return _Slot(i, place)
    return None


def _called(low: Lowering, slot: _Slot) -> str:
    return low.recurrences[slot.node].layer


def _role(slot: _Slot) -> str:
    return ("hidden state h", "cell state c")[slot.place] if slot.place < 2 else f"state {slot.place + 1}"
