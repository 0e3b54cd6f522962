"""The task: a tag, then N distractors, then a cue, at which the network must name the tag."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TAGS, DISTRACTORS = 8, 6
CUE = TAGS + DISTRACTORS
SYMBOLS = CUE + 1
CHANCE = 1 / TAGS
DISTANCES = (5, 10, 20, 50, 100, 200)


def sequences(count: int, distance: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (symbols (count, distance + 2) int64, tags (count,)): tag, `distance` distractors, cue."""
    tags = torch.randint(TAGS, (count,), generator=random)
    between = torch.randint(TAGS, CUE, (count, distance), generator=random)
    return torch.cat([tags[:, None], between, torch.full((count, 1), CUE)], 1), tags


def mixed(each: int, distances: Sequence[int], random: torch.Generator) -> list[Tensor]:
    """Return a list of `each` sequences for each distance: (ticks,) int64."""
    return [symbols for d in distances for symbols in sequences(each, d, random)[0]]
