"""How to show the inside of a layer that is written out: its own values, by what they were called."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from runnel.errors import ExportError
from runnel.probe import KNOWN

from ..lowering import Inside, Lowering, Row
from ..values import BATCH, HIDDEN, TIME, Data, Value


def inside(
    low: Lowering, values: Mapping[str, Data | Tensor], number: int, letters: tuple[str, ...]
) -> Inside:
    """The layer at hand, number `number` of its module; `letters` are those of its states."""
    where = low.where

    def write() -> dict[str, Row]:
        return {letter: _row(low, letter, value, where) for letter, value in values.items()}

    # A class of somebody's own may be called GRU; nothing is known of its formula.
    kind = f"{low.layer}, written out" if low.layer in KNOWN else low.layer
    return Inside(low.named(low.layer, number), kind, write, letters)


def _row(low: Lowering, letter: str, value: Data | Tensor, where: str) -> Row:
    """A value as (time, slot, width)."""
    if isinstance(value, Value) and value.dtype == torch.float32 and isinstance(value.axes[-1], int):
        width, step = value.axes[-1], value.tick is None and low.ticks is None
        if step and value.axes == (BATCH, width):
            value = low.insert(value, 1)  # the one tick of a call
        if value.tick is not None and value.axes == (BATCH, width):
            return low.arrange(value, (HIDDEN, 0, 1)).name, width
        if value.axes == (BATCH, 1 if step else TIME, width):
            return low.arrange(value, (1, 0, 2)).name, width
    raise ExportError(
        f"{where}: show({letter!r}, …) was given what is not (batch, width) of float32, made of the stream"
    )
