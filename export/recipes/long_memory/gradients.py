"""Measure the gradient of the loss at the cue with respect to the state behind the tag."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .networks import Recall
from .task import sequences

_COUNT = 64  # sequences


def at_tag(network: Recall, distance: int, seed: int) -> tuple[float, float]:
    """Return (‖∂L/∂s₁‖, ‖∂L/∂s₁‖ / ‖∂L/∂s₋₁‖): medians over sequences, in float64.

    L is the cross entropy at the cue. s₁ is the layer's whole state (h, and c if there is one) behind the
    tag, s₋₁ the state before the cue. A network that knows its answer has a small L, and so all its gradients
    are small. The ratio does not depend on that: it is the share of the gradient that reaches the tag.
    """
    network = copy.deepcopy(network).double()
    symbols, tags = sequences(_COUNT, distance, torch.Generator().manual_seed(seed))
    _, seen = network.run(symbols[:, :1])
    seen = _leaves(seen)
    _, late = network.run(symbols[:, 1:-1], seen)
    output, _ = network.run(symbols[:, -1:], late)
    loss = nn.functional.cross_entropy(network.scores(output[:, -1]), tags, reduction="sum")
    ends = [*_parts(seen), *_parts(late)]
    found = torch.autograd.grad(loss, ends)  # the loss is a sum, so each sequence gets its own gradient
    half = len(ends) // 2
    first, last = _norms(found[:half]), _norms(found[half:])
    return first.median().item(), (first / last).median().item()


def _norms(parts: tuple[Tensor, ...]) -> Tensor:
    """Return the norms (batch,) over all parts of the state, each (1, batch, hidden)."""
    squares: Tensor = torch.cat(parts, -1)[0].square().sum(-1)
    return squares.sqrt()


def _leaves(state: Any) -> Any:
    fresh = [part.detach().requires_grad_() for part in _parts(state)]
    return tuple(fresh) if isinstance(state, tuple) else fresh[0]


def _parts(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)
