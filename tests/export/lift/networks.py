"""Random networks over time: convolutions, pooling, recurrent layers, shifts, branches that meet again.

A network is drawn from a number, so that one that fails can be made again.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Network(nn.Module):
    """Some layers on (batch, time, channels)."""

    def __init__(self, number: int) -> None:
        super().__init__()
        draw = random.Random(number)
        torch.manual_seed(number)
        self.channels = draw.choice([2, 3])
        self.layers = Layers(draw, self.channels, draw.randint(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.transpose(1, 2)).transpose(1, 2)
        return y


class Layers(nn.ModuleList):
    def __init__(self, draw: random.Random, channels: int, count: int, depth: int = 0) -> None:
        super().__init__()
        for _ in range(count):
            kinds: list[Callable[..., nn.Module]] = [Conv, Recurrent, Spread, Plain, Meeting]
            weights = [8, 2, 2, 5, 3 if depth < 2 else 0]
            (kind,) = draw.choices(kinds, weights)
            self.append(kind(draw, channels, depth) if kind is Meeting else kind(draw, channels))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class Conv(nn.Module):
    """Padded in one of many ways, with a stride and a dilation."""

    def __init__(self, draw: random.Random, channels: int) -> None:
        super().__init__()
        kernel, dilation, stride = draw.randint(1, 5), draw.choice([1, 1, 2]), draw.choice([1, 1, 1, 2, 3])
        reach = (kernel - 1) * dilation
        self.conv = nn.Conv1d(channels, channels, kernel, stride, dilation=dilation)
        self.mode, self.fill = "constant", draw.choice([0.0, 0.0, 0.5])
        self.pad, self.cut = (0, 0), 0
        match draw.choice(["causal", "centred", "valid", "cut", "any", "reflect", "replicate"]):
            case "causal":
                self.pad = (reach, 0)
            case "centred":
                self.pad = (reach // 2, reach - reach // 2)
            case "cut":
                self.pad, self.cut = (reach, reach), reach if stride == 1 else 0
            case "any":
                self.pad = (draw.randint(0, 6), draw.randint(0, 4))
            case "reflect" | "replicate" as mode:
                self.mode, self.pad = mode, (draw.randint(0, 3), draw.randint(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.pad != (0, 0):
            x = F.pad(x, self.pad, self.mode, *([self.fill] if self.mode == "constant" else []))
        y: Tensor = self.conv(x)
        return y[..., : -self.cut] if self.cut else y


class Recurrent(nn.Module):
    def __init__(self, draw: random.Random, channels: int) -> None:
        super().__init__()
        kind = draw.choice([nn.GRU, nn.LSTM, nn.RNN])
        self.layer = kind(channels, channels, draw.choice([1, 2]), batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.transpose(1, 2))[0].transpose(1, 2)
        return y


class Spread(nn.Module):
    """A transposed convolution, or an upsampling."""

    def __init__(self, draw: random.Random, channels: int) -> None:
        super().__init__()
        kernel, stride = draw.randint(1, 5), draw.choice([1, 2, 3])
        self.mode = draw.choice(["conv", "conv", "nearest", "linear"])
        self.stride = stride
        self.conv = nn.ConvTranspose1d(
            channels,
            channels,
            kernel,
            stride,
            padding=draw.randint(0, min(2, kernel - 1)),
            dilation=draw.choice([1, 1, 2]),
            output_padding=draw.choice([0, 0, min(1, stride - 1)]),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "conv":
            y: Tensor = self.conv(x)
            return y
        return F.interpolate(x, scale_factor=self.stride, mode=self.mode)


class Plain(nn.Module):
    """What works on each row, thins the rows out, or shifts them."""

    def __init__(self, draw: random.Random, channels: int) -> None:
        super().__init__()
        self.batch, self.rows = nn.BatchNorm1d(channels), nn.LayerNorm(channels)
        nn.init.normal_(self.batch.running_mean)  # type: ignore[arg-type]
        nn.init.normal_(self.batch.bias)
        nn.init.normal_(self.rows.bias)
        size, one = draw.randint(1, 3), draw.randint(0, 1)
        self.function: Callable[[Tensor], Tensor] = draw.choice(
            [
                lambda x: x.relu(),
                lambda x: self.batch(x),
                lambda x: self.rows(x.transpose(1, 2)).transpose(1, 2),
                lambda x: F.max_pool1d(x, size + 1, size, one),
                lambda x: F.avg_pool1d(x, size + 1, size, one),
                lambda x: F.pad(x, (size, -size)),
                lambda x: F.pad(x, (-size, size)),
                lambda x: x[..., size:],
                lambda x: x[..., :-size],
                lambda x: x[..., one::size],
                lambda x: F.pad(x[..., 1:] - x[..., :-1], (1, 0)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Meeting(nn.Module):
    """Two branches, cut to the shorter one, added or joined."""

    def __init__(self, draw: random.Random, channels: int, depth: int) -> None:
        super().__init__()
        self.one = Layers(draw, channels, draw.randint(1, 2), depth + 1)
        self.other = Layers(draw, channels, draw.randint(0, 1), depth + 1)
        self.joined, self.mix = draw.random() < 0.3, nn.Conv1d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.one(x), self.other(x)
        rows = min(a.shape[-1], b.shape[-1])
        a, b = a[..., :rows], b[..., :rows]
        y: Tensor = self.mix(torch.cat([a, b], 1)) if self.joined else a + b
        return y
