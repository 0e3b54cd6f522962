"""Two ways to train: at one distance from the start, and over growing distances with a truncated gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .networks import Recall
from .task import sequences

WINDOW = 50  # ticks that the gradient goes back, with `grown`
CLIP = 1.0  # largest norm of the gradient of an update
_BATCH, _RATE = 64, 3e-3
_LEARNT = 0.99  # share of recent sequences recalled at which training ends
_FURTHER = 0.95  # share at which the distance grows
_GROWTH = 1.25
_MEMORY = 0.9  # smoothing factor of the running share: about ten batches


@dataclass(frozen=True)
class Trained:
    network: Recall
    updates: int
    clipped: int  # updates whose gradient was clipped
    reached: int  # longest distance in training


def alone(network: Recall, distance: int, updates: int, random: torch.Generator) -> Trained:
    """Train at one distance, with the gradient over the whole sequence."""
    steps, share = Steps(network, window=None), 0.0
    while steps.done < updates and share < _LEARNT:
        share = _MEMORY * share + (1 - _MEMORY) * steps.take(*sequences(_BATCH, distance, random))
    return Trained(network, steps.done, steps.clipped, distance)


def grown(network: Recall, longest: int, updates: int, random: torch.Generator) -> Trained:
    """Train at distances that grow as they are learnt. No gradient goes back beyond the window.

    Every second batch has the longest distance so far. The others have any shorter distance, so that none is
    unlearnt.
    """
    steps, share, limit = Steps(network, WINDOW), 0.0, min(5.0, longest)
    while steps.done < updates and (limit < longest or share < _LEARNT):
        steps.take(*sequences(_BATCH, _any_up_to(limit, random), random))
        right = steps.take(*sequences(_BATCH, int(limit), random))
        share = _MEMORY * share + (1 - _MEMORY) * right
        if share > _FURTHER and limit < longest:
            limit, share = min(longest, limit * _GROWTH), 0.5
    return Trained(network, steps.done, steps.clipped, int(limit))


class Steps:
    """Updates of one network. With a window, the state of the ticks before it is carried, but detached."""

    def __init__(self, network: Recall, window: int | None) -> None:
        self.network, self.window = network, window
        self.done = self.clipped = 0
        self._adam = torch.optim.Adam(network.parameters(), _RATE)

    def take(self, symbols: Tensor, tags: Tensor) -> float:
        """Make one update. Return the share of the sequences that were recalled before it."""
        state, ticks = None, symbols.shape[1]
        if self.window is not None and ticks > self.window:
            with torch.no_grad():
                _, state = self.network.run(symbols[:, : -self.window])
            symbols = symbols[:, -self.window :]
        output, _ = self.network.run(symbols, state)
        scores = self.network.scores(output[:, -1])
        self._adam.zero_grad()
        nn.functional.cross_entropy(scores, tags).backward()  # type: ignore[no-untyped-call]
        self.clipped += int(nn.utils.clip_grad_norm_(self.network.parameters(), CLIP) > CLIP)
        self._adam.step()
        self.done += 1
        return _share(scores, tags)


def success(network: Recall, distance: int, count: int, random: torch.Generator) -> float:
    """Return the share of fresh sequences that the network recalls."""
    symbols, tags = sequences(count, distance, random)
    with torch.no_grad():
        output, _ = network.run(symbols)
        return _share(network.scores(output[:, -1]), tags)


def _share(scores: Tensor, tags: Tensor) -> float:
    return (scores.argmax(1) == tags).double().mean().item()


def _any_up_to(limit: float, random: torch.Generator) -> int:
    """Draw a distance up to `limit`, uniformly in its logarithm."""
    return round(math.exp(torch.rand(1, generator=random).item() * math.log(limit)))
