"""Refuse states that a layer takes as one state and gives back as another.

Two states of one shape can be returned in the other order. The numbers cannot show it, since the module would
be stepped in the same wrong way. The graph can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runnel.errors import ExportError

from ..pairing import HELP
from .lowering import Lowering, State


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
