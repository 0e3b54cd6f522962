"""LSTM that forgets exactly as much as it takes in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import marks
from .recurrent import Gated, States


class CoupledLSTM(Gated):
    """An LSTM whose input gate is one minus its forget gate: i = 1 − f.

    With a = W x_t + b_W + R h_{t-1} + b_R, in three parts::

        f_t = σ(a_f)        g_t = tanh(a_g)        o_t = σ(a_o)
        c_t = f_t ⊙ c_{t-1} + (1 − f_t) ⊙ g_t
        h_t = o_t ⊙ tanh(c_t)

    K. Greff et al., "LSTM: a search space odyssey", 2017 (there called CIFG; here without peepholes). The
    paper computes the input gate and sets f = 1 − i. Since 1 − σ(a) = σ(−a), that is this layer with the
    weights of a_f negated.

    Args:
        input_size, hidden_size, num_layers, bias: as for torch.nn.LSTM.

    Shapes: x (batch, time, input_size), y (batch, time, hidden_size); state: a tuple (h, c), each
    (num_layers, batch, hidden_size). Always batch first.

    Parameters: as for torch.nn.LSTM, with three gates in the order f, g, o. All are initialised uniformly
    within ±1/√hidden.

    The layer is exported as one ONNX LSTM with ``input_forget=1``. ONNX does not define which of the two
    gates is then computed from the other; onnxruntime computes i and sets f = 1 − i. In the file, i has the
    negated weights of a_f, and f has the weights of a_f. Both readings then give the right result, and so
    does a runtime that ignores ``input_forget``. onnxruntime runs ``input_forget`` on the CPU only: on CUDA
    it moves that node to the CPU.
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
