"""How much of the loss at the cue is felt where the tag was seen."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .networks import Recall
from .task import sequences

_COUNT = 64  # sequences


def at_tag(network: Recall, distance: int, seed: int) -> tuple[float, float]:
    """(‖∂L/∂s₁‖, ‖∂L/∂s₁‖ / ‖∂L/∂s₋₁‖), medians over sequences, in float64.

    L: the cross entropy at the cue; s₁: the layer's whole state (h, and c where there is one) behind the
    tag, s₋₁: before the cue. A network that knows its answer has a small L, and so all gradients of it
    are small; the ratio is free of that: what is left of a gradient on its way to the tag.
    """
    network = copy.deepcopy(network).double()
    symbols, tags = sequences(_COUNT, distance, torch.Generator().manual_seed(seed))
    _, seen = network.run(symbols[:, :1])
    seen = _leaves(seen)
    _, late = network.run(symbols[:, 1:-1], seen)
    output, _ = network.run(symbols[:, -1:], late)
    loss = nn.functional.cross_entropy(network.scores(output[:, -1]), tags, reduction="sum")
    ends = [*_parts(seen), *_parts(late)]
    found = torch.autograd.grad(loss, ends)  # of a sum: each sequence's own
    half = len(ends) // 2
    first, last = _norms(found[:half]), _norms(found[half:])
    return first.median().item(), (first / last).median().item()


def _norms(parts: tuple[Tensor, ...]) -> Tensor:
    """(batch,): over all of the state's parts, each (1, batch, hidden)."""
    squares: Tensor = torch.cat(parts, -1)[0].square().sum(-1)
    return squares.sqrt()


def _leaves(state: Any) -> Any:
    fresh = [part.detach().requires_grad_() for part in _parts(state)]
    return tuple(fresh) if isinstance(state, tuple) else fresh[0]


def _parts(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)
