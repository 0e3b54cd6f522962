"""Train the network on windows of the series, and keep the weights that are best on the validation part."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from measured import Say
from torch import Tensor, nn

from runnel.spec import Array

from .network import NAMES, Forecaster
from .series import HORIZONS, YEAR, YEARS, Series, errors, rmse

WINDOW = 4 * YEAR  # consecutive weeks; the first year, which only warms up the state, has no loss
BATCH = 16
RATE = 3e-3
LOOK_EVERY = 25  # rounds between two evaluations of the validation part
HUBER = 0.5  # ppm: larger errors count linearly, so that one bad week does not dominate


@dataclass(frozen=True)
class Scale:
    """Parameters of the stages `normalize` and `denormalize`: from the training part, in ppm."""

    mean: float
    std: float


def scale_of(series: Series) -> Scale:
    return Scale(round(float(np.nanmean(series.train)), 3), round(float(np.nanstd(series.train)), 3))


def train(
    series: Series, features: dict[str, Array], scale: Scale, rounds: int, seed: int, say: Say
) -> Forecaster:
    """Train the network. `features`: its input for the whole series, from the stages before the model."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    past, missing = (torch.from_numpy(features[name]) for name in ("co2", "co2.missing"))
    target = targets(series)
    network = Forecaster()
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=rounds)
    best, kept = validation(network, series, features, scale), copy.deepcopy(network.state_dict())
    say(f"  before training: {best:.3f} ppm over the validation years, the mean of all horizons")
    for done in range(1, rounds + 1):
        begin = draw.integers(YEARS * YEAR, series.validate - WINDOW, BATCH)
        weeks = torch.from_numpy(begin[:, None] + np.arange(WINDOW))
        made = stacked(network(past[weeks], missing[weeks])) * scale.std + scale.mean
        loss = huber(made[:, YEAR:], target[weeks][:, YEAR:])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if done % LOOK_EVERY == 0 or done == rounds:
            now = validation(network, series, features, scale)
            if now < best:
                best, kept = now, copy.deepcopy(network.state_dict())
            if done % (4 * LOOK_EVERY) == 0 or done == rounds:
                say(f"  {done} rounds of {rounds}: {now:.3f} ppm, best {best:.3f}")
    network.load_state_dict(kept)
    return network.eval()


def targets(series: Series) -> Tensor:
    """Return the true values (n, horizons), ppm; NaN without a measurement or after the training part."""
    known = np.full((len(series.values), len(HORIZONS)), np.nan, np.float32)
    for k, h in enumerate(HORIZONS):
        known[: series.validate - h, k] = series.train[h:]
    return torch.from_numpy(known)


def huber(made: Tensor, target: Tensor) -> Tensor:
    known = ~target.isnan()
    return nn.functional.smooth_l1_loss(made[known], target[known], beta=HUBER)


def stacked(made: dict[str, Tensor]) -> Tensor:
    """Stack the outputs of all horizons: (…, horizons)."""
    return torch.stack([made[name] for name in NAMES], dim=-1)


def whole(network: Forecaster, features: dict[str, Array], scale: Scale) -> Array:
    """Return the forecasts that the module itself makes in each week, in float64: (n, horizons), ppm."""
    exact = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        given = (torch.from_numpy(features[name]).double()[None] for name in ("co2", "co2.missing"))
        made: Array = stacked(exact(*given))[0].numpy()
    return made * scale.std + scale.mean


def validation(network: Forecaster, series: Series, features: dict[str, Array], scale: Scale) -> float:
    """Return the root mean square error in ppm on the validation part, as the mean of all horizons."""
    made = whole(network, features, scale)
    return float(np.mean([rmse(e) for e in errors(series, made, series.validate, series.test)]))
