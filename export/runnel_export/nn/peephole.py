"""The LSTM with peepholes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import marks
from .recurrent import Gated, States


class PeepholeLSTM(Gated):
    """An LSTM with peepholes: i and f also see the old cell state, and o the new one.

    With a = W x_t + b_W + R h_{t-1} + b_R, in four parts::

        i_t = σ(a_i + P_i c_{t-1})        f_t = σ(a_f + P_f c_{t-1})        g_t = tanh(a_g)
        c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t
        o_t = σ(a_o + P_o c_t)            h_t = o_t ⊙ tanh(c_t)

    ``form="diagonal"``: each P is a diagonal, so a cell is seen by its own gates only. F. A. Gers and
    J. Schmidhuber, "Recurrent nets that time and count", IJCNN 2000; this form and its backward pass are
    the "vanilla LSTM" of K. Greff et al., "LSTM: a search space odyssey", 2017. The layer is exported as one
    ONNX LSTM with its input ``P``. onnxruntime runs that on the CPU only: on CUDA it moves the node to the
    CPU.

    ``form="full"``: each P is a matrix, so f_t = σ(W_f · [c_{t-1}, h_{t-1}, x_t] + b_f) and so on, as in the
    drawing by C. Olah, "Understanding LSTM networks", 2015. ONNX has no such operator. The layer is exported
    as single operations, and the step model takes exactly one tick per call.

    Args:
        input_size, hidden_size, num_layers, bias: as for torch.nn.LSTM.
        form: form of the peepholes.

    Shapes: x (batch, time, input_size), y (batch, time, hidden_size); state: a tuple (h, c), each
    (num_layers, batch, hidden_size). Always batch first.

    Parameters of layer k: those of torch.nn.LSTM, with the gates in its order (i, f, g, o), and
    ``weight_ch_lk``: the peepholes of i, f and o, (3, hidden) or, for ``"full"``, (3 · hidden, hidden). All
    are initialised uniformly within ±1/√hidden. If ``weight_ch_lk`` is zero, the layer equals torch.nn.LSTM,
    whose weights load with ``strict=False``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        *,
        form: Literal["diagonal", "full"] = "diagonal",
    ) -> None:
        if form not in ("diagonal", "full"):
            raise ValueError(f"form={form!r}: 'diagonal' or 'full'")
        super().__init__(("h", "c"), 4, input_size, hidden_size, num_layers, bias)
        self.form = form
        for layer in range(num_layers):
            shape = (3, hidden_size) if form == "diagonal" else (3 * hidden_size, hidden_size)
            self.add(layer, "weight_ch", *shape)
        self.reset_parameters()

    def tick(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States]:
        h, c = state
        i, f, g, o = (x + linear(h, self.of(layer, "weight_hh"))).chunk(4, -1)
        peepholes = self.of(layer, "weight_ch")
        if self.form == "diagonal":
            i, f = i + peepholes[0] * c, f + peepholes[1] * c
        else:
            seen_i, seen_f = linear(c, peepholes[: 2 * self.hidden_size]).chunk(2, -1)
            i, f = i + seen_i, f + seen_f
        c = self.show("f", f.sigmoid()) * c + self.show("i", i.sigmoid()) * self.show("g", g.tanh())
        if self.form == "diagonal":
            o = o + peepholes[2] * c
        else:
            o = o + linear(c, peepholes[2 * self.hidden_size :])
        h = self.show("o", o.sigmoid()) * torch.tanh(c)
        return h, (h, c)

    def operator(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States] | None:
        if self.form == "full":
            return None
        return marks.layer("lstm", x, state, self.weights(layer), layer, self.of(layer, "weight_ch"))

    def extra_repr(self) -> str:
        return super().extra_repr() + f", form={self.form!r}"
