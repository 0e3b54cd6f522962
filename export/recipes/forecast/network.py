"""The network: what changed in other years over the weeks to come, put right by a recurrent layer.

With d(l) = x[t] - x[t-l], the linear part begins as the mean change of the last years,

    x[t] + 1/5 sum over k = 1 … 5 of d(52 k) - d(52 k - h),

and is trained; a GRU (K. Cho et al., 2014), which begins as 0, adds what it makes of these differences over
time. Only differences go into either, so that a level that no training has seen is none to be afraid of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .series import HORIZONS, YEAR, YEARS

HIDDEN = 16
GAIN, SHARE = 5.0, 0.2  # differences are small beside the level's deviation; so is what is to be put right
LAGS = tuple(
    sorted({0, 1, 2, 3} | {k * YEAR - h for k in range(1, YEARS + 1) for h in (0, *HORIZONS)})
)  # weeks
NAMES = tuple(f"week_{h}" for h in HORIZONS)


class Forecaster(nn.Module):
    """(past (batch, weeks, lags), missing (batch, weeks)) -> each of `NAMES`, and the week itself.

    Everything is normalized by the training part's mean and deviation. `missing`: 1 where a week was filled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(len(LAGS) - 1, len(HORIZONS), bias=False)
        self.gru = nn.GRU(len(LAGS), HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, len(HORIZONS))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.linear.weight.zero_()
            for row, h in zip(self.linear.weight, HORIZONS, strict=True):
                for k in range(1, YEARS + 1):
                    row[LAGS.index(k * YEAR) - 1] += 1 / YEARS
                    if k * YEAR > h:  # else it is the week itself, which differs from itself by 0
                        row[LAGS.index(k * YEAR - h) - 1] -= 1 / YEARS

    def forward(self, past: Tensor, missing: Tensor) -> dict[str, Tensor]:
        now = past[..., :1]
        change = now - past[..., 1:]
        hidden, _ = self.gru(torch.cat([GAIN * change, missing.unsqueeze(-1)], dim=-1))
        made = now + self.linear(change) + SHARE * self.head(hidden)
        return {**{name: made[..., k] for k, name in enumerate(NAMES)}, "co2": now[..., 0]}
