"""Train the network on mixtures that are drawn anew for each update."""

from __future__ import annotations

import time

import numpy as np
import torch
from measured import Say
from torch import Tensor

from .network import RATE, Suppressor
from .sounds import Speech, draw

BATCH = 8
SECONDS = 2.0  # of each mixture
LEARNING_RATE = 4e-3
_CEILING = 1e-3  # of the speech's power: an error below it (30 dB) counts little
_SAY_EVERY = 50  # updates


def train(speech: Speech, updates: int, seed: int, say: Say) -> Suppressor:
    """Return the network after so many updates."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = Suppressor()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=updates)
    began, recent = time.monotonic(), []
    for done in range(1, updates + 1):
        mixtures = [draw(speech, random, int(SECONDS * RATE)) for _ in range(BATCH)]
        noisy, clean = (
            torch.from_numpy(np.stack(rows))
            for rows in zip(*((m.noisy, m.clean) for m in mixtures), strict=True)
        )
        loss = -ratio(network(noisy), clean).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        recent.append(-loss.item())
        if done % _SAY_EVERY == 0 or done == updates:
            took = time.monotonic() - began
            say(f"  {done} updates of {updates}: {np.mean(recent):.2f} dB, {took:.0f} s")
            recent.clear()
    return network.eval()


def ratio(made: Tensor, clean: Tensor) -> Tensor:
    """Return the ratio of speech to error in dB for each sequence, (batch,), at most 30.

    Unlike SI-SDR it also asks for the right loudness.
    """
    power = clean.square().sum(-1) + 1e-8
    error = (made - clean).square().sum(-1)
    return 10 * torch.log10(power / (error + _CEILING * power))
