"""The network: the mean change of other years over the same weeks, corrected by a recurrent layer.

With d(l) = x[t] - x[t-l], the linear part is initialised to the mean change of the last years,

    x[t] + 1/5 sum over k = 1 … 5 of d(52 k) - d(52 k - h),

and is trained. A GRU (K. Cho et al., 2014), whose output is 0 at first, adds a correction from these
differences over time. Both parts see differences only, so that the network also works at a level that did not
occur in training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .series import HORIZONS, YEAR, YEARS

HIDDEN = 16
GAIN, SHARE = 5.0, 0.2  # scale the GRU's input and output: both are small beside the level's deviation
LAGS = tuple(
    sorted({0, 1, 2, 3} | {k * YEAR - h for k in range(1, YEARS + 1) for h in (0, *HORIZONS)})
)  # weeks
NAMES = tuple(f"week_{h}" for h in HORIZONS)


class Forecaster(nn.Module):
    """Map (past (batch, weeks, lags), missing (batch, weeks)) to a forecast for each of `NAMES` and the week.

    All values are normalized by the mean and deviation of the training part. `missing` is 1 for a week that
    was filled.
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
                    if k * YEAR > h:  # otherwise the lag is 0, and so is the difference
                        row[LAGS.index(k * YEAR - h) - 1] -= 1 / YEARS

    def forward(self, past: Tensor, missing: Tensor) -> dict[str, Tensor]:
        now = past[..., :1]
        change = now - past[..., 1:]
        hidden, _ = self.gru(torch.cat([GAIN * change, missing.unsqueeze(-1)], dim=-1))
        made = now + self.linear(change) + SHARE * self.head(hidden)
        return {**{name: made[..., k] for k, name in enumerate(NAMES)}, "co2": now[..., 0]}
