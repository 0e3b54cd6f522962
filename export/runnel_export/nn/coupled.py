"""LSTM that forgets exactly as much as it takes in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import marks
from .recurrent import Gated, States


class CoupledLSTM(Gated):
    """An LSTM whose input gate is what its forget gate leaves: i = 1 − f.

    With a = W x_t + b_W + R h_{t-1} + b_R, in three parts::

        f_t = σ(a_f)        g_t = tanh(a_g)        o_t = σ(a_o)
        c_t = f_t ⊙ c_{t-1} + (1 − f_t) ⊙ g_t
        h_t = o_t ⊙ tanh(c_t)

    K. Greff et al., "LSTM: a search space odyssey", 2017 (its CIFG, here without peepholes). There the
    input gate is kept and f = 1 − i; since 1 − σ(a) = σ(−a), that is this layer with a_f's weights negated.

    Args:
        input_size, hidden_size, num_layers, bias: as of torch.nn.LSTM.

    Shapes: x (batch, time, input_size), y (batch, time, hidden_size); state: a tuple (h, c), each
    (num_layers, batch, hidden_size). Batch first, always.

    Parameters: as of torch.nn.LSTM, with three gates in the order f, g, o; all begin uniform within
    ±1/√hidden.

    Exported as one ONNX LSTM with ``input_forget=1``. ONNX does not say which gate is then computed from
    which; onnxruntime keeps i and takes f = 1 − i. The file's i has the weights of a_f negated and f has
    them as they are, so that either reading is right, and so would be a runtime that couples nothing.
    onnxruntime runs ``input_forget`` on the CPU only: on CUDA it takes that node to the CPU.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True) -> None:
        super().__init__(("h", "c"), 3, input_size, hidden_size, num_layers, bias)
        self.reset_parameters()

    def tick(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States]:
        h, c = state
        f, g, o = (x + linear(h, self.of(layer, "weight_hh"))).chunk(3, -1)
        f = torch.sigmoid(f)
        c = f * c + (1 - f) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)

    def operator(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States]:
        four = [torch.cat([-w[: self.hidden_size], w]) for w in self.weights(layer)]  # i, f, g, o
        return marks.layer("coupled", x, state, four, layer)
