"""The LSTM with layer normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from .recurrent import Gated, States


class LayerNormLSTM(Gated):
    """An LSTM that normalises the input's part, the state's part, and the cell state.

    With LN(v; γ, β) = γ ⊙ (v − mean v) / √(var v + eps) + β, over all four gates together::

        (i, f, g, o) = LN(W x_t; γ_x, β_x) + LN(R h_{t-1}; γ_h, β_h)
        c_t = σ(f) ⊙ c_{t-1} + σ(i) ⊙ tanh(g)
        h_t = σ(o) ⊙ tanh(LN(c_t; γ_c, β_c))

    J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", 2016, supplement. The paper has a further
    bias beside the two β; it changes nothing and is left out. ONNX has no such operator. The layer is
    exported as single operations, and the step model takes exactly one tick per call.

    Several untrained layers can be chaotic: each normalisation enlarges small differences, so that float32
    soon departs from float64. The exporter then compares only as far as the module's own float32 follows its
    float64, and may need a larger ``tolerance=``.

    Args:
        input_size, hidden_size, num_layers: as for torch.nn.LSTM.
        eps: added to each variance.

    Shapes: x (batch, time, input_size), y (batch, time, hidden_size); state: a tuple (h, c), each
    (num_layers, batch, hidden_size). Always batch first.

    Parameters of layer k: ``weight_ih_lk`` and ``weight_hh_lk`` as for torch.nn.LSTM, with the gates in its
    order (i, f, g, o), initialised uniformly within ±1/√hidden; ``gain_ih_lk`` and ``gain_hh_lk``
    (4 · hidden) and ``gain_c_lk`` (hidden), initialised to one; ``shift_ih_lk``, ``shift_hh_lk`` and
    ``shift_c_lk``, of the same sizes, initialised to zero.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, *, eps: float = 1e-5) -> None:
        super().__init__(("h", "c"), 4, input_size, hidden_size, num_layers, bias=False)
        self.eps = eps
        for layer in range(num_layers):
            for name, width in (("ih", 4 * hidden_size), ("hh", 4 * hidden_size), ("c", hidden_size)):
                self.add(layer, f"gain_{name}", width)
                self.add(layer, f"shift_{name}", width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.startswith("gain"):
                nn.init.ones_(parameter)
            elif name.startswith("shift"):
                nn.init.zeros_(parameter)

    def prepare(self, layer: int, x: Tensor) -> Tensor:
        return self._normed(layer, "ih", super().prepare(layer, x))

    def tick(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States]:
        h, c = state
        i, f, g, o = (x + self._normed(layer, "hh", linear(h, self.of(layer, "weight_hh")))).chunk(4, -1)
        c = self.show("f", f.sigmoid()) * c + self.show("i", i.sigmoid()) * self.show("g", g.tanh())
        h = self.show("o", o.sigmoid()) * torch.tanh(self._normed(layer, "c", c))
        return h, (h, c)

    def _normed(self, layer: int, name: str, v: Tensor) -> Tensor:
        gain, shift = self.of(layer, f"gain_{name}"), self.of(layer, f"shift_{name}")
        return layer_norm(v, v.shape[-1:], gain, shift, self.eps)

    def extra_repr(self) -> str:
        return super().extra_repr().replace(", bias=False", "") + f", eps={self.eps:g}"
