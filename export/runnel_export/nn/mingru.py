"""minGRU: a GRU whose gates do not depend on the state, so that training needs no loop over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import marks
from .scan import linear_scan


class MinGRU(nn.Module):
    """A gated recurrence that is linear in its state::

        z_t = σ(W_z x_t + b_z)
        n_t = W_n x_t + b_n
        h_t = (1 − z_t) ⊙ h_{t-1} + z_t ⊙ n_t

    L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi, "Were RNNs all we needed?", 2024,
    https://arxiv.org/abs/2410.01201, section 3.1. h is an average of the values n, so it stays within their
    range; the paper's variant in logarithms, for half precision, is not needed. Since z and n do not depend
    on h, training computes all ticks together: see `linear_scan`. One layer is a moving average whose weights
    depend on the input; a second layer adds what one cannot represent.

    Args:
        input_size, hidden_size, num_layers, bias: as for torch.nn.GRU.

    Shapes: x (batch, time, input_size), y (batch, time, hidden_size); state: h, (num_layers, batch,
    hidden_size), or None for zeros. Always batch first.

    Parameters of layer k: ``weight_lk`` (2 · hidden, features), first for z and then for n, and ``bias_lk``
    (2 · hidden). All are initialised uniformly within ±1/√features, as in torch.nn.Linear.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True) -> None:
        super().__init__()
        if min(input_size, hidden_size, num_layers) < 1:
            raise ValueError(f"MinGRU({input_size}, {hidden_size}, {num_layers}): all at least 1")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias = bias
        for layer in range(num_layers):
            width = hidden_size if layer else input_size
            self.register_parameter(f"weight_l{layer}", nn.Parameter(torch.empty(2 * hidden_size, width)))
            if bias:
                self.register_parameter(f"bias_l{layer}", nn.Parameter(torch.empty(2 * hidden_size)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name, parameter in self.named_parameters():
            width = self.hidden_size if not name.endswith("_l0") else self.input_size
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (output, last state)."""
        if x.dim() != 3:
            raise ValueError(f"MinGRU takes (batch, time, features), not {tuple(x.shape)}")
        if state is None:
            state = x.new_zeros(self.num_layers, x.shape[0], self.hidden_size)
        ends = []
        for layer in range(self.num_layers):
            bias = getattr(self, f"bias_l{layer}") if self.bias else None
            z, n = nn.functional.linear(x, getattr(self, f"weight_l{layer}"), bias).chunk(2, -1)
            z, n = marks.shown("z", torch.sigmoid(z)), marks.shown("n", n)
            x = linear_scan(1 - z, z * n, state[layer], layer)
            ends.append(x[:, -1])
        return x, torch.stack(ends)

    def extra_repr(self) -> str:
        layers = f", num_layers={self.num_layers}" if self.num_layers > 1 else ""
        return f"{self.input_size}, {self.hidden_size}{layers}" + ("" if self.bias else ", bias=False")
