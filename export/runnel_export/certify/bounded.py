"""What a bounded lookahead means, in torch: the definition that a model with blocks is compared with.

A bidirectional layer's backward pass begins anew for each block of N ticks, R ticks behind the block's end
(or at the sequence's end), as Zhang et al. (2016, https://arxiv.org/abs/1510.08983) have it. Block k of the
result is what the module gives at its ticks when it is run on the sequence's first (k + 1) N + R ticks, with
one thing kept from the blocks before: for their ticks a layer's backward pass gives again what it gave then.
So a layer behind a bidirectional one, a second one or a convolution, sees of the past what a stream has.

Nothing of the exporter is used here, and no state is carried: each block runs all of the past again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from runnel.grouping import Blocks

from ..dry_run import copied

_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}

_Key = tuple[int, int, int]  # a layer, which of its calls within one forward, and which of its layers


class Bounded:
    """A copy of a module; call `module` on what `windows` gives, in that order."""

    def __init__(self, module: nn.Module, blocks: Blocks) -> None:
        self.module, self.blocks = copied(module), blocks
        self._block = 0  # the first tick of the block whose window is being run
        self._before: dict[_Key, Tensor] = {}  # what backward passes gave for the ticks before it
        self._calls: dict[int, int] = {}
        for layer in self.module.modules():
            if isinstance(layer, nn.RNNBase) and layer.bidirectional:
                layer.forward = functools.partial(self._run, layer)

    def windows(self, ticks: int) -> Iterator[tuple[int, int, int]]:
        """For each block its first tick, the end of its ticks and the end of what is to be run for it."""
        self._before.clear()
        for start in range(0, ticks, self.blocks.ticks):
            self._block = start
            self._calls.clear()
            yield start, min(ticks, start + self.blocks.ticks), min(ticks, start + self.blocks.window)

    def _run(self, layer: nn.RNNBase, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """The layer's forward: x is (batch, time, features), or (time, batch, features)."""
        call = self._calls[id(layer)] = self._calls.get(id(layer), 0) + 1
        time = 1 if layer.batch_first else 0
        ends: list[tuple[Tensor, ...]] = []
        for i in range(layer.num_layers):
            forward, end = _one_way(layer, x, hx, 2 * i)
            ends.append(end)
            fresh = x.narrow(time, self._block, x.shape[time] - self._block)
            backward, end = _one_way(layer, fresh.flip(time), hx, 2 * i + 1)
            ends.append(end)
            backward = backward.flip(time)
            key = (id(layer), call, i)
            if self._block:
                backward = torch.cat([self._before[key].narrow(time, 0, self._block), backward], time)
            self._before[key] = backward
            x = torch.cat([forward, backward], 2)
        states = tuple(torch.cat(parts) for parts in zip(*ends, strict=True))
        return x, states if layer.mode == "LSTM" else states[0]


def _one_way(layer: nn.RNNBase, x: Tensor, hx: Any, at: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One direction of one layer: its output, and its last states, (1, batch, hidden)."""
    is_lstm = layer.mode == "LSTM"
    if hx is None:
        zeros = x.new_zeros(1, x.shape[0 if layer.batch_first else 1], layer.hidden_size)
        start = (zeros, zeros) if is_lstm else (zeros,)
    else:
        start = tuple(h[at : at + 1] for h in (hx if is_lstm else (hx,)))
    y, *ends = _FUNCTIONS[layer.mode](
        x,
        list(start) if is_lstm else start[0],
        layer.all_weights[at],
        layer.bias,
        1,
        0.0,
        False,
        False,
        layer.batch_first,
    )
    return y, tuple(ends)
