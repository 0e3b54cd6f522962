"""Liquid, spiking and other recurrences written as loops over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..case import Built, Case


def ncps(layer: str, *, stated: bool) -> Built:
    from ncps import torch as layers

    model = getattr(layers, layer)(20, 50)
    example = torch.randn(1, 12, 20)
    return Built(model, example, {"state": {"hx": torch.zeros(1, 50)}} if stated else {})


class Spiking(nn.Module):
    """snntorch's layer in the loop that its tutorials write."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.f, self.layer = nn.Linear(20, 50), layer

    def forward(self, x: Tensor) -> Tensor:
        held, spikes = torch.zeros(x.shape[0], 50), []
        for t in range(x.shape[1]):
            spike, held = self.layer(self.f(x[:, t]), held)
            spikes.append(spike)
        return torch.stack(spikes, 1)


def leaky() -> Built:
    import snntorch

    return Built(Spiking(snntorch.Leaky(beta=0.9)), torch.randn(1, 12, 20))


CASES = (
    Case("CfC, state given", "ncps", lambda: ncps("CfC", stated=True), "today"),
    Case("LTC, state given", "ncps", lambda: ncps("LTC", stated=True), "today"),
    Case("CfC", "ncps", lambda: ncps("CfC", stated=False), "second"),
    Case("LTC", "ncps", lambda: ncps("LTC", stated=False), "second"),
    Case("snnTorch Leaky", "snntorch", leaky, "second", "the tutorials' loop"),
)
