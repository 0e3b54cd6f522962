"""What one public model is: where it is from, how it is built, and what it needs of the exporter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

Needs = Literal["today", "first", "second", "never"]
GROUPS: Mapping[Needs, str] = {
    "today": "exported before rates and delays",
    "first": "rates, delays, frames",
    "second": "loops, folded axes, attention, states of any form",
    "never": "all of the sequence at once (a mean or a normalisation over time): a refusal is right",
}


@dataclass(frozen=True)
class Built:
    """A module with random weights, and the arguments of `export`.

    `example`: as `export` takes it. `options`: its other arguments. `ticks`: the length of the sequence that
    the independent check runs, for a model that takes certain lengths only; by default three examples and a
    few ticks. `last`: the module gives one row for a whole sequence, that of the last tick.
    """

    module: nn.Module
    example: Tensor | Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    ticks: int | None = None
    last: bool = False


@dataclass(frozen=True)
class Case:
    """One public model. `wrapper`: what stands between it and `export`, empty if nothing does."""

    name: str
    package: str
    build: Callable[[], Built]
    needs: Needs
    wrapper: str = ""
