"""The arena: rows that hold streams' model states, two rows per stream.

A stream's model state is a row number. Row ``r`` and its twin ``r ^ 1`` form one slot. A step reads one row
and writes the other, so the old state stays intact until the new one is committed by storing the other
number. The cost of opening, closing and stepping does not depend on the number of open streams.

A fork of a stream's state has a spare slot of its own, and is stepped between that slot's two rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..errors import LimitError, NonFiniteError
from ..spec import Array, ModelState

_ALIGN = 64  # bytes: a cache line, and the alignment that onnxruntime's kernels prefer


class Slots:
    """Which of the slots `first` to ``first + count - 1`` are held.

    Only the flags of held slots decide. A slot becomes held by one assignment, the last action of its taker,
    so that an interrupt cannot lose a slot: a slot that `find` returned and that was never held is found
    again.
    """

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count
        self._held = bytearray(count)  # 1 if held: one byte per slot; a set of ints takes 60
        self._fresh = first  # slots below were used before
        self._free: list[int] = []  # heap: the lowest slot first, so that few streams use few memory pages

    @property
    def held(self) -> int:
        """Number of held slots."""
        return self._held.count(1)

    def find(self) -> int | None:
        """Return the lowest free slot, used ones first; None if all are held."""
        while self._free:
            slot = heapq.heappop(self._free)
            if not self._held[slot - self.first]:
                return slot
        if self._fresh < self.first + self.count:
            self._fresh += 1
            return self._fresh - 1
        if self.held == self.count:
            return None
        self._find_free()  # an interrupt lost a free slot
        return heapq.heappop(self._free)

    def hold(self, slot: int) -> None:
        """Mark a slot from `find` as held."""
        self._held[slot - self.first] = 1

    def release(self, slot: int) -> None:
        """Free the slot. A free slot is ignored: a failure may free a slot twice."""
        if self._held[slot - self.first]:
            self._held[slot - self.first] = 0
            heapq.heappush(self._free, slot)

    def hold_only(self, slots: Iterable[int]) -> None:
        """Hold exactly these slots."""
        held = bytearray(self.count)
        for slot in slots:
            held[slot - self.first] = 1
        self._held = held
        self._find_free()

    def _find_free(self) -> None:
        held = self._held
        self._free = [slot for slot in range(self.first, self._fresh) if not held[slot - self.first]]


class Arena:
    """State rows for up to `slots` streams.

    The memory of a slot is touched when the slot is first taken. `spares`: slots for forks, after those of
    the streams.
    """

    def __init__(self, states: Sequence[ModelState], slots: int, spares: int = 0) -> None:
        offsets, stride = [], 0
        for state in states:
            offsets.append(stride)
            stride += -(-state.row_bytes // _ALIGN) * _ALIGN
        self.slots, self.spares = slots, spares
        self.row_bytes = max(stride, _ALIGN)
        self.first_spare = 2 * slots  # the first row of the forks' slots
        self.scratch = 2 * (slots + spares)  # first row of a slot that is never taken
        rows = self.scratch + 2
        try:
            raw = np.zeros(rows * self.row_bytes + _ALIGN, np.uint8)
        except (MemoryError, ValueError):
            raise LimitError(
                f"the states of {slots} streams take {rows * self.row_bytes / 2**30:.1f} GiB: "
                "load the engine with a smaller max_streams (serve: --max-streams)"
            ) from None
        raw = raw[-raw.ctypes.data % _ALIGN :][: rows * self.row_bytes]
        self._rows = raw.reshape(rows, self.row_bytes)
        self.columns: dict[str, Array] = {}
        for state, offset in zip(states, offsets, strict=True):
            column = self._rows[:, offset : offset + state.row_bytes].view(state.dtype)
            self.columns[state.input] = column.reshape(rows, *state.row_shape)
        self._initial = {s.input: s.initial for s in states}
        # With one float type, a whole row is checked at once; the padding between states stays zero.
        kinds = {s.dtype for s in states}
        kind = kinds.pop() if len(kinds) == 1 else ""
        self.floats = self._rows.view(kind) if kind in ("float32", "float64") else None
        self._streams, self._forks = Slots(0, slots), Slots(slots, spares)

    @property
    def used(self) -> int:
        """Slots that streams hold."""
        return self._streams.held

    @property
    def forked(self) -> int:
        """Slots that forks hold."""
        return self._forks.held

    def allocate(self) -> int:
        """Take a slot; return its first row, with the initial state.

        Raises LimitError if all slots are taken. Both rows are written now, so that a lack of memory shows
        when a stream is opened, and not later.
        """
        slot = self._streams.find()
        if slot is None:
            raise LimitError(
                f"all {self.slots} streams are open: close some, or allow more: max_streams of Engine.load, "
                "--max-streams of runnel serve"
            )
        self.write(2 * slot + 1, self._initial)
        self.write(2 * slot, self._initial)
        self._streams.hold(slot)
        return 2 * slot

    def fork(self, row: int) -> int:
        """Copy `row` to a spare slot; return the slot's first row.

        Raises LimitError if all spare slots are taken.
        """
        slot = self._forks.find()
        if slot is None:
            raise LimitError(
                f"all {self.spares} places for chunks on their way are taken: let some end, or feed fewer "
                "streams, or shorter chunks, at once"
            )
        self.copy(row, 2 * slot)
        self._forks.hold(slot)
        return 2 * slot

    def release(self, row: int) -> None:
        """Free the slot of this row, a stream's or a fork's."""
        (self._streams if row < self.first_spare else self._forks).release(row // 2)

    def reclaim(self, rows: Iterable[int]) -> None:
        """Hold exactly the slots of these rows."""
        kept = list(rows)
        self._streams.hold_only(row // 2 for row in kept if row < self.first_spare)
        self._forks.hold_only(row // 2 for row in kept if row >= self.first_spare)

    def write(self, row: int, arrays: Mapping[str, Array]) -> None:
        for name, column in self.columns.items():
            column[row] = arrays[name]

    def copy(self, source: int, target: int) -> None:
        """Copy one whole row to another."""
        self._rows[target] = self._rows[source]

    def read(self, row: int) -> dict[str, Array]:
        """Return views of one row by state name."""
        return {name: column[row, ...] for name, column in self.columns.items()}

    def check(self, row: int, where: str) -> None:
        """Raise NonFiniteError if a state in this row has a NaN or an infinity."""
        for name, array in self.read(row).items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise blown_up(name, where)


def blown_up(state: str, where: str) -> NonFiniteError:
    """Return the error for a state that has a NaN or an infinity."""
    error = NonFiniteError(
        f"{where}: state {state!r} became non-finite; the chunk was not applied. "
        "Large inputs, or a model that is not stable?"
    )
    error.state = f"{where}.{state}"
    return error
