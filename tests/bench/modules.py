"""The PyTorch modules behind the benchmarked files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class Tagger(nn.Module):
    """A recurrent stack and a Linear on top, a label's scores a tick: (batch, time, features) in."""

    def __init__(self, cell: str, features: int, hidden: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.rnn = CELLS[cell](features, hidden, layers, batch_first=True)
        self.top = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.top(self.rnn(x)[0])
        return scores


class Step(nn.Module):
    """The same with its state as argument and result: what a user hands to torch's own exporter.

    States are (layers, batch, hidden), as torch has them.
    """

    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        self.tagger = tagger

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        before = state if len(state) > 1 else state[0]
        out, after = self.tagger.rnn(x, before)
        return self.tagger.top(out), *(after if isinstance(after, tuple) else (after,))

    def initial(self) -> dict[str, Tensor]:
        """A batch of one at rest; the tensors are distinct, for an exporter may wire equal ones together."""
        rnn = self.tagger.rnn
        names = ("h", "c") if isinstance(rnn, nn.LSTM) else ("h",)
        return {name: torch.zeros(rnn.num_layers, 1, rnn.hidden_size) for name in names}
