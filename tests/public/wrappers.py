"""The only changes that a case may make to a model: pick an output, swap axes, fix an argument."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Pick(nn.Module):
    """The output at `index` alone."""

    def __init__(self, module: nn.Module, index: int | str = 0) -> None:
        super().__init__()
        self.module, self.index = module, index

    def forward(self, x: Tensor) -> Any:
        return self.module(x)[self.index]


class Swapped(nn.Module):
    """Axes 1 and 2 exchanged, before the model and after it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x.transpose(1, 2))
        return y.transpose(1, 2)


class Fixed(nn.Module):
    """Other arguments of forward fixed."""

    def __init__(self, module: nn.Module, **arguments: Any) -> None:
        super().__init__()
        self.module, self.arguments = module, arguments

    def forward(self, x: Tensor) -> Any:
        return self.module(x, **self.arguments)


class FullLengths(nn.Module):
    """A model that takes lengths as well: each is the sequence's. Its first output alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x, torch.full((x.shape[0],), x.shape[1]))[0]
