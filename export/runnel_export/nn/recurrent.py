"""A recurrent layer written as one tick of it: what the layers here have in common, and yours may have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from runnel.errors import ExportError
from runnel.probe import MEANING

from . import marks

States = tuple[Tensor, ...]


class Recurrent(nn.Module):
    """Layers of one recurrence, each tick of which is given by `tick`; streams without further ado.

    A subclass says how wide its states are and writes `tick`, with torch's ordinary operations; in training
    they run in a loop over time, and the exporter writes them once. What needs no state (the product with
    the input) belongs in `prepare`, which sees the whole sequence at once. For a recurrence of your own::

        class Leaky(Recurrent):
            def __init__(self, size: int) -> None:
                super().__init__({"h": size})
                self.mix = nn.Linear(2 * size, size)

            def tick(self, layer, x, state):
                (h,) = state
                h = 0.9 * h + 0.1 * torch.tanh(self.mix(torch.cat([x, h], -1)))
                return h, (h,)

    With ``export(..., probe="gates")`` its states are shown at each tick, and what `tick` gives to `show`.

    Shapes: x is (batch, time, features): batch first, and never unbatched. A state is (num_layers, batch,
    width), as torch's are; `forward` takes and gives one where the layer has one state, else a tuple.
    """

    def __init__(self, states: Mapping[str, int], num_layers: int = 1) -> None:
        """`states`: their widths by name, in the order in which `tick` takes and gives them."""
        super().__init__()
        if num_layers < 1 or not states or min(states.values()) < 1:
            raise ValueError(
                f"num_layers={num_layers}, states={dict(states)}: at least one of each, and wide"
            )
        self.num_layers = num_layers
        self.widths = dict(states)

    def prepare(self, layer: int, x: Tensor) -> Tensor:
        """(batch, time, …): what `tick` is to be given of each tick, from (batch, time, features)."""
        return x

    def tick(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States]:
        """(output, next states) of one tick: x (batch, …), states (batch, width)."""
        raise NotImplementedError

    def show(self, letter: str, value: Tensor) -> Tensor:
        """`value`, (batch, width) of float32, as it is; a probe shows it under this letter.

        Of the letters in `runnel.probe.MEANING`: ``i = self.show("i", torch.sigmoid(i))``. Go on with what
        it gives: nothing is known of a value that nothing is made of.
        """
        if letter not in MEANING:
            raise ValueError(f"show({letter!r}, …): one of {', '.join(MEANING)}")
        return marks.shown(letter, value)

    def operator(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States] | None:
        """While being lifted: the layer as one ONNX operator, by `marks.layer`; None: `tick`, written out."""
        return None

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """(output, last state); `state`: where to begin, zeros if None."""
        if x.dim() != 3:
            raise ValueError(f"{type(self).__name__} takes (batch, time, features), not {tuple(x.shape)}")
        starts = self._starts(x, state)
        ends = []
        for layer in range(self.num_layers):
            x, end = self._over_time(layer, x, tuple(s[layer] for s in starts))
            ends.append(end)
        last = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
        return x, last if len(last) > 1 else last[0]

    def _starts(self, x: Tensor, state: Any) -> States:
        """Each state, (num_layers, batch, width)."""
        shapes = [(self.num_layers, x.shape[0], width) for width in self.widths.values()]
        if state is None:
            return tuple(x.new_zeros(shape) for shape in shapes)
        given = (state,) if isinstance(state, Tensor) else tuple(state)
        if [tuple(s.shape) for s in given] != shapes:
            raise ValueError(
                f"{type(self).__name__}: the state has shapes {[tuple(s.shape) for s in given]}, expected "
                f"{dict(zip(self.widths, shapes, strict=True))}"
            )
        return given

    def _over_time(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States]:
        if marks.lifted():
            made = self.operator(layer, x, state)
            if made is not None:
                return made
        if marks.written_once(x):
            return self._marked(layer, x, state)
        outputs = []
        for row in self.prepare(layer, x).unbind(1):
            y, state = self.tick(layer, row, state)
            outputs.append(y)
        return torch.stack(outputs, 1), state

    def _marked(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States]:
        x = self.prepare(layer, x)
        begun = tuple(
            marks.before(s, x, f"{name}.{layer}") for name, s in zip(self.widths, state, strict=True)
        )
        y, ended = self.tick(layer, marks.tick(x), begun)
        if len(ended) != len(begun):
            raise ExportError(f"{type(self).__name__}.tick gives {len(ended)} states, expected {len(begun)}")
        return marks.over(y, begun, ended, x.shape[1], list(self.widths), layer)


class Gated(Recurrent):
    """What torch's own recurrent layers have: W and R of so many gates, two biases, torch's names and init.

    Parameters of layer k: ``weight_ih_lk`` (gates · hidden, features), ``weight_hh_lk`` (gates · hidden,
    hidden) and, with `bias`, ``bias_ih_lk`` and ``bias_hh_lk`` (gates · hidden); all uniform within
    ±1/√hidden, as in torch. A second bias adds nothing, but weights can be exchanged with torch's layers.
    """

    def __init__(
        self,
        states: tuple[str, ...],
        gates: int,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
    ) -> None:
        super().__init__(dict.fromkeys(states, hidden_size), num_layers)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        for layer in range(num_layers):
            width = hidden_size if layer else input_size
            self.add(layer, "weight_ih", gates * hidden_size, width)
            self.add(layer, "weight_hh", gates * hidden_size, hidden_size)
            if bias:
                self.add(layer, "bias_ih", gates * hidden_size)
                self.add(layer, "bias_hh", gates * hidden_size)

    def add(self, layer: int, name: str, *shape: int) -> None:
        """A parameter of a layer, ``NAME_lLAYER``, not initialised yet."""
        self.register_parameter(f"{name}_l{layer}", nn.Parameter(torch.empty(shape)))

    def of(self, layer: int, name: str) -> Tensor:
        """A layer's parameter."""
        found: Tensor = getattr(self, f"{name}_l{layer}")
        return found

    def biases(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """The input's and the state's; None where there are none."""
        return (self.of(layer, "bias_ih"), self.of(layer, "bias_hh")) if self.bias else (None, None)

    def weights(self, layer: int) -> list[Tensor]:
        """W, R and the biases there are, in torch's order."""
        biases = [b for b in self.biases(layer) if b is not None]
        return [self.of(layer, "weight_ih"), self.of(layer, "weight_hh"), *biases]

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def prepare(self, layer: int, x: Tensor) -> Tensor:
        """W x + b_W + b_R for all ticks at once: the one product that does not wait for the last tick."""
        mine, states = self.biases(layer)
        bias = None if mine is None or states is None else mine + states
        return nn.functional.linear(x, self.of(layer, "weight_ih"), bias)

    def extra_repr(self) -> str:
        layers = f", num_layers={self.num_layers}" if self.num_layers > 1 else ""
        return f"{self.input_size}, {self.hidden_size}{layers}" + ("" if self.bias else ", bias=False")
