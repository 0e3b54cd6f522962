"""A linear recurrence over time: h_t = a_t ⊙ h_{t-1} + b_t, for all ticks in log2(T) steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library


def linear_scan(a: Tensor, b: Tensor, start: Tensor, layer: int = 0) -> Tensor:
    """Return h with h_t = a_t ⊙ h_{t-1} + b_t and h_{-1} = `start`, as in minGRU and other gated averages.

    Shapes: a, b and h (batch, time, width); start (batch, width). Differentiable once, in all three. In a
    stream, h is the state; `layer` is the number in the state's name. If |a| is above 1, h grows.

    Two ticks in a row have the form of one tick: (a, b) and then (a', b') give (a'a, a'b + b'). So the number
    of composed ticks is doubled again and again (W. D. Hillis and G. L. Steele, "Data parallel algorithms",
    CACM 29, 1986). That needs few operations on whole tensors, instead of one operation for each tick. The
    gradient is the same recurrence, from the last tick to the first.
    """
    if a.dim() != 3 or a.shape != b.shape or start.shape != (a.shape[0], a.shape[2]):
        raise ValueError(
            f"linear_scan takes a and b of (batch, time, width) and start of (batch, width), not "
            f"{tuple(a.shape)}, {tuple(b.shape)} and {tuple(start.shape)}"
        )
    found: Tensor = _linear_scan(a, b, start, layer)
    return found


def _doubled(a: Tensor, b: Tensor) -> Tensor:
    """Return h for h_{-1} = 0."""
    ahead, ticks = 1, a.shape[1]
    while ahead < ticks:
        # Entry t now composes tick t and up to `ahead` - 1 ticks before it.
        b = torch.cat([b[:, :ahead], b[:, ahead:] + a[:, ahead:] * b[:, :-ahead]], 1)
        a = torch.cat([a[:, :ahead], a[:, ahead:] * a[:, :-ahead]], 1)
        ahead *= 2
    return b


# A custom operator, so that the exporter sees the recurrence and not the doubling.
@library.custom_op("runnel::linear_scan", mutates_args=())
def _linear_scan(a: Tensor, b: Tensor, start: Tensor, layer: int) -> Tensor:
    first = b[:, :1] + a[:, :1] * start.unsqueeze(1)
    return _doubled(a, torch.cat([first, b[:, 1:]], 1)).clone()


@_linear_scan.register_fake
def _(a: Tensor, b: Tensor, start: Tensor, layer: int) -> Tensor:
    return torch.empty_like(b)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    a, _, start, _ = inputs
    ctx.save_for_backward(a, start, output)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    """The gradient of b_t is G_t = g_t + a_{t+1} ⊙ G_{t+1}. The gradient of a_t is G_t ⊙ h_{t-1}."""
    a, start, h = ctx.saved_tensors
    later = torch.cat([torch.zeros_like(a[:, :1]), a[:, 1:].flip(1)], 1)
    of_b = _doubled(later, grad.flip(1)).flip(1)
    before = torch.cat([start.unsqueeze(1), h[:, :-1]], 1)
    return of_b * before, of_b, of_b[:, 0] * a[:, 0], None


_linear_scan.register_autograd(_gradient, setup_context=_keep)
