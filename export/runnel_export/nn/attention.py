"""Causal self-attention over the last W ticks: a memory of bounded size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class WindowAttention(nn.Module):
    """Multi-head attention of each tick over itself and the W − 1 ticks before it. For each head::

        s_{t,j} = q_t · k_{t−j} / √d + p_j        j = 0 … W − 1, as far as tick t − j exists
        y_t     = Σ_j softmax_j(s_{t,j}) v_{t−j}

    The joined heads go through one more matrix. This is the attention of A. Vaswani et al., "Attention is
    all you need", 2017, https://arxiv.org/abs/1706.03762, limited to a causal band as in I. Beltagy et al.,
    "Longformer", 2020, https://arxiv.org/abs/2004.05150, section 3.1.

    *Positions*: a stream has no beginning to count from, so a tick has no position; only the distance j
    between two ticks is known. p_j is learned: one number for each head and distance, zero at first. It is
    the bias by distance of C. Raffel et al., 2020, https://arxiv.org/abs/1910.10683, section 2.1, without
    buckets, because W is small.

    Args:
        embed_dim: features of x and y; a multiple of `num_heads`.
        num_heads: as for torch.nn.MultiheadAttention.
        window: W, which counts the tick itself; at least 1.
        bias: whether the four products have a bias.

    Shapes: x and y (batch, time, embed_dim), batch first. The state is (batch, W − 1, 2 · embed_dim + 1): the
    key, the value and a 1 for each of the last W − 1 ticks, and zeros for ticks that did not exist. None
    starts a new sequence.

    Parameters: ``query``, ``key_value`` and ``out`` are torch.nn.Linear, with its initialisation.
    ``distance`` is (num_heads, W); the entry for the tick itself is the last. If ``distance`` is zero and W
    is at least the sequence's length, the result equals torch.nn.MultiheadAttention with a causal mask.

    A stream keeps the same state and shifts it by one at each tick. In training, the windows of all ticks are
    in memory, W times the size of x, so W should be tens, at most hundreds.
    """

    def __init__(self, embed_dim: int, num_heads: int, window: int, bias: bool = True) -> None:
        super().__init__()
        if window < 1 or num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(
                f"WindowAttention({embed_dim}, {num_heads}, {window}): embed_dim must be a multiple of "
                "num_heads, and window at least 1"
            )
        self.embed_dim, self.num_heads, self.window = embed_dim, num_heads, window
        self.query = nn.Linear(embed_dim, embed_dim, bias)
        self.key_value = nn.Linear(embed_dim, 2 * embed_dim, bias)
        self.out = nn.Linear(embed_dim, embed_dim, bias)
        self.distance = nn.Parameter(torch.zeros(num_heads, window))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (output, last state)."""
        if x.dim() != 3 or x.shape[2] != self.embed_dim:
            raise ValueError(f"WindowAttention takes (batch, time, {self.embed_dim}), not {tuple(x.shape)}")
        batch, ticks, width = x.shape
        past, heads = self.window - 1, self.num_heads
        # The 1 marks a tick that exists. Before the first tick, the state is zeros.
        rows = torch.cat([self.key_value(x), x.new_ones(batch, ticks, 1)], 2)
        rows = pad(rows, (0, 0, past, 0)) if state is None else torch.cat([state, rows], 1)
        windows = rows.unfold(1, self.window, 1)  # (batch, time, 2 · width + 1, window)
        keys, values, there = torch.split(windows, [width, width, 1], 2)
        query = self.query(x).view(batch, ticks, heads, 1, width // heads)
        keys = keys.reshape(batch, ticks, heads, width // heads, self.window)
        values = values.reshape(batch, ticks, heads, width // heads, self.window)
        scores = query @ keys * (width // heads) ** -0.5 + self.distance.unsqueeze(1)
        weights = scores.masked_fill(there.unsqueeze(2) == 0, -torch.inf).softmax(-1)
        y = (weights @ values.transpose(3, 4)).reshape(batch, ticks, width)
        return self.out(y), rows[:, rows.shape[1] - past :]

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, window={self.window}"
