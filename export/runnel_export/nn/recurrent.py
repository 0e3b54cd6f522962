"""Base classes of recurrent layers that are written as one tick, for the layers here and for yours."""

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
    """Base class: layers of one recurrence, defined by one `tick`. Such a layer can be streamed.

    A subclass declares the widths of its states and defines `tick` with torch's ordinary operations. In
    training, `tick` runs in a loop over time; the exporter writes it once. Work that needs no state, such as
    the product with the input, belongs in `prepare`, which gets the whole sequence at once. An example::

        class Leaky(Recurrent):
            def __init__(self, size: int) -> None:
                super().__init__({"h": size})
                self.mix = nn.Linear(2 * size, size)

            def tick(self, layer, x, state):
                (h,) = state
                h = 0.9 * h + 0.1 * torch.tanh(self.mix(torch.cat([x, h], -1)))
                return h, (h,)

    With ``export(..., probe="gates")``, the probe shows the states and the values passed to `show` at each
    tick.

    Shapes: x is (batch, time, features): always batched, batch first. A state is (num_layers, batch, width),
    as in torch. `forward` takes and returns a tensor if the layer has one state, and a tuple otherwise.
    """

    def __init__(self, states: Mapping[str, int], num_layers: int = 1) -> None:
        """`states`: widths by name, in the order in which `tick` takes and returns the states."""
        super().__init__()
        if num_layers < 1 or not states or min(states.values()) < 1:
            raise ValueError(
                f"num_layers={num_layers}, states={dict(states)}: at least one of each, and wide"
            )
        self.num_layers = num_layers
        self.widths = dict(states)

    def prepare(self, layer: int, x: Tensor) -> Tensor:
        """Return what `tick` receives of each tick, (batch, time, …), from x (batch, time, features)."""
        return x

    def tick(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States]:
        """Return (output, next states) of one tick: x (batch, …), states (batch, width)."""
        raise NotImplementedError

    def show(self, letter: str, value: Tensor) -> Tensor:
        """Return `value`, (batch, width) float32, unchanged. A probe shows it under this letter.

        The letter is one of `runnel.probe.MEANING`: ``i = self.show("i", torch.sigmoid(i))``. Continue with
        the returned value: if nothing depends on it, the trace does not contain it.
        """
        if letter not in MEANING:
            raise ValueError(f"show({letter!r}, …): one of {', '.join(MEANING)}")
        return marks.shown(letter, value)

    def operator(self, layer: int, x: Tensor, state: States) -> tuple[Tensor, States] | None:
        """Return the layer as one ONNX operator by `marks.layer`, or None if `tick` should be written out.

        Called only while the module is being lifted.
        """
        return None

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Return (output, last state). `state`: the initial state, or None for zeros."""
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
        """Return each initial state, (num_layers, batch, width)."""
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
    """Base class with the parameters of torch's recurrent layers: W, R and two biases for all gates.

    Parameters of layer k: ``weight_ih_lk`` (gates · hidden, features), ``weight_hh_lk`` (gates · hidden,
    hidden) and, with `bias`, ``bias_ih_lk`` and ``bias_hh_lk`` (gates · hidden). All are initialised
    uniformly within ±1/√hidden, as in torch. The second bias has no effect of its own. It is there so that
    weights can be exchanged with torch's layers.
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
        """Add an uninitialised parameter ``NAME_lLAYER`` to a layer."""
        self.register_parameter(f"{name}_l{layer}", nn.Parameter(torch.empty(shape)))

    def of(self, layer: int, name: str) -> Tensor:
        """Return a layer's parameter."""
        found: Tensor = getattr(self, f"{name}_l{layer}")
        return found

    def biases(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the input's and the state's bias, or (None, None)."""
        return (self.of(layer, "bias_ih"), self.of(layer, "bias_hh")) if self.bias else (None, None)

    def weights(self, layer: int) -> list[Tensor]:
        """Return W, R and the biases, if any, in torch's order."""
        biases = [b for b in self.biases(layer) if b is not None]
        return [self.of(layer, "weight_ih"), self.of(layer, "weight_hh"), *biases]

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def prepare(self, layer: int, x: Tensor) -> Tensor:
        """Return W x + b_W + b_R for all ticks at once, since this product does not need the state."""
        mine, states = self.biases(layer)
        bias = None if mine is None or states is None else mine + states
        return nn.functional.linear(x, self.of(layer, "weight_ih"), bias)

    def extra_repr(self) -> str:
        layers = f", num_layers={self.num_layers}" if self.num_layers > 1 else ""
        return f"{self.input_size}, {self.hidden_size}{layers}" + ("" if self.bias else ", bias=False")
