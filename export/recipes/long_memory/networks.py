"""The four networks: an embedding, one recurrent layer, and scores of the tags at each tick."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from runnel_export.nn import PeepholeLSTM

from .task import DISTANCES, SYMBOLS, TAGS

CELLS = ("RNN", "LSTM", "GRU", "peephole")
HIDDEN, EMBEDDED = 64, 16


class Recall(nn.Module):
    """Map symbols (batch, time) to scores (batch, time, tags)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        layer: nn.Module
        if kind == "peephole":
            layer = PeepholeLSTM(EMBEDDED, HIDDEN)
        else:
            layer = getattr(nn, kind)(EMBEDDED, HIDDEN, batch_first=True)
        self.embedding = nn.Embedding(SYMBOLS, EMBEDDED)
        self.layer = layer
        self.scores = nn.Linear(HIDDEN, TAGS)
        _favour_memory(kind, layer)

    def forward(self, symbol: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.run(symbol)[0])
        return scores

    def run(self, symbol: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Run from `state` or zeros. Return (the layer's output (batch, time, hidden), its last state)."""
        output, state = self.layer(self.embedding(symbol), state)
        return output, state


def _favour_memory(kind: str, layer: nn.Module) -> None:
    """Initialise each cell for a long memory, so that the comparison is of the cells, not of their defaults.

    Gated cells: the bias of a unit makes it forget at a rate of 1/t, with t uniform up to the longest
    distance (C. Tallec and Y. Ollivier, "Can recurrent neural networks warp time?", 2018). With a bias of 1,
    as in R. Jozefowicz et al., "An empirical exploration of recurrent network architectures", 2015, a cell
    would keep 0.73^50 = 2e-7 of a tag after 50 ticks. RNN: it has no gates. Its matrix is orthogonal at
    first, so that the linear part loses nothing (A. M. Saxe et al., "Exact solutions to the nonlinear
    dynamics of learning in deep linear neural networks", 2014).
    """
    with torch.no_grad():
        recurrent, bias = layer.get_parameter("weight_hh_l0"), layer.get_parameter("bias_ih_l0")
        if kind == "RNN":
            nn.init.orthogonal_(recurrent)
            return
        keep = torch.log(torch.rand(HIDDEN) * (max(DISTANCES) - 2) + 1)
        first, second = slice(0, HIDDEN), slice(HIDDEN, 2 * HIDDEN)  # LSTM: i, f; GRU: r, z
        layer.get_parameter("bias_hh_l0")[second] = 0.0
        bias[second] = keep
        if kind != "GRU":
            layer.get_parameter("bias_hh_l0")[first] = 0.0
            bias[first] = -keep
