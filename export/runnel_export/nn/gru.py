"""The GRU in each of its published forms."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import marks
from .recurrent import Gated, States


class GRU(Gated):
    """A gated recurrent unit in one of four forms. torch.nn.GRU is one of them.

    With r_t = σ(W_r x_t + R_r h_{t-1} + b_r) and z_t = σ(W_z x_t + R_z h_{t-1} + b_z)::

        reset="before":  n_t = tanh(W_n x_t + b_n + R_n (r_t ⊙ h_{t-1}) + b'_n)
        reset="after":   n_t = tanh(W_n x_t + b_n + r_t ⊙ (R_n h_{t-1} + b'_n))

        update="takes":  h_t = (1 − z_t) ⊙ h_{t-1} + z_t ⊙ n_t
        update="keeps":  h_t = z_t ⊙ h_{t-1} + (1 − z_t) ⊙ n_t

    *Position of the reset gate.* ``"before"`` the product with R_n: K. Cho et al., "Learning phrase
    representations using RNN encoder-decoder", EMNLP 2014, equation 8, and most of the literature; in ONNX,
    ``linear_before_reset=0``. ``"after"`` the product: torch.nn.GRU, cuDNN, and the first version of Cho's
    paper on arXiv (v1); in ONNX, ``linear_before_reset=1``. The two are different functions: weights that
    were trained for one are wrong for the other.

    *Meaning of the update gate z.* ``"takes"``, z is the share of the new value: J. Chung et al., "Empirical
    evaluation of gated recurrent neural networks", 2014. ``"keeps"``, z is the share of the old value: Cho
    2014, equation 7, torch and ONNX. The two are the same function with the weights of z negated, since
    1 − σ(a) = σ(−a).

    Args:
        input_size, hidden_size, num_layers, bias: as for torch.nn.GRU.
        reset: position of the reset gate.
        update: meaning of the update gate.

    Shapes: x (batch, time, input_size), y (batch, time, hidden_size); state: h, (num_layers, batch,
    hidden_size). Always batch first.

    Parameters: those of torch.nn.GRU, with the gates in its order (r, z, n). All are initialised uniformly
    within ±1/√hidden. With ``reset="after", update="keeps"`` the layer equals torch.nn.GRU and can load its
    weights.

    The layer is exported as one ONNX GRU. onnxruntime runs ``reset="before"`` on the CPU only: on CUDA it
    moves that node to the CPU.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        *,
        reset: Literal["before", "after"] = "before",
        update: Literal["takes", "keeps"] = "takes",
    ) -> None:
        if reset not in ("before", "after") or update not in ("takes", "keeps"):
            raise ValueError(f"reset={reset!r}, update={update!r}: 'before' or 'after'; 'takes' or 'keeps'")
        super().__init__(("h",), 3, input_size, hidden_size, num_layers, bias)
        self.reset, self.update = reset, update
        self.reset_parameters()

    def prepare(self, layer: int, x: Tensor) -> Tensor:
        return linear(x, self.of(layer, "weight_ih"), self.biases(layer)[0])  # `tick` adds R's bias

    def tick(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States]:
        (h,) = state
        two = 2 * self.hidden_size
        w, b = self.of(layer, "weight_hh"), self.biases(layer)[1]
        gates = x[..., :two] + linear(h, w[:two], None if b is None else b[:two])
        r, z = torch.sigmoid(gates).chunk(2, -1)
        shift = None if b is None else b[two:]
        seen = linear(r * h, w[two:], shift) if self.reset == "before" else r * linear(h, w[two:], shift)
        n = torch.tanh(x[..., two:] + seen)
        h = (1 - z) * h + z * n if self.update == "takes" else z * h + (1 - z) * n
        return h, (h,)

    def operator(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States]:
        weights = self.weights(layer)
        if self.update == "takes":  # in ONNX, z is the share of the old value
            size = self.hidden_size
            weights = [torch.cat([w[:size], -w[size : 2 * size], w[2 * size :]]) for w in weights]
        kind = "gru" + " before" * (self.reset == "before") + " takes" * (self.update == "takes")
        return marks.layer(kind, x, state, weights, layer)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", reset={self.reset!r}, update={self.update!r}"
