"""Modules as people write them, each with an example and a plain loop that says what must come out.

`ZOO` maps a name to a `Case`; `exported(name)` exports it once a session. The engine's laws and the
exporter's numbers are tested over all of them.
"""

from __future__ import annotations

import fcntl
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import runnel_export
from runnel import Framing
from runnel.spec import Array
from runnel_export.nn import GRU, CoupledLSTM, MinGRU, PeepholeLSTM, WindowAttention

Chunk = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """How to make a module, an example of its input, and how `export` is to be called.

    `kind` says what its output at tick t is: "sequence", row t of one call on the whole sequence;
    "last", the call on the sequence up to t; "step", the call on tick t with the states of t - 1.
    """

    make: Callable[[], nn.Module]
    example: Mapping[str, Tensor]
    kind: str = "sequence"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def time_major(self) -> bool:
        return self.options.get("time_axis") == 0

    @property
    def channels(self) -> bool:
        """(batch, channels, time), as convolutions take it."""
        return self.options.get("time_axis") == 2

    @property
    def framing(self) -> Framing | None:
        return self.options.get("framing")

    def module(self) -> nn.Module:
        """The same weights each time; in eval mode."""
        torch.manual_seed(7)
        return self.make().eval()

    def chunk(self, ticks: int, seed: int = 0) -> Chunk:
        """Random data: (time steps, ...) by input name; `ticks` hops of samples with framing."""
        rng = np.random.default_rng(seed)
        made = {}
        for name, tensor in self.example.items():
            shape = list(tensor.shape)
            features = shape[1:] if self.kind == "step" else shape[1:2] if self.channels else shape[2:]
            steps = ticks * self.framing.hop if self.framing else ticks
            size = (steps, *(features[1:] if self.framing else features))
            if tensor.is_floating_point():
                made[name] = rng.normal(size=size).astype(np.float32)
            else:
                made[name] = rng.integers(0, int(tensor.max()) + 1, size).astype(tensor.numpy().dtype)
        return made

    def reference(self, chunk: Chunk) -> dict[str, Array]:
        """What the module gives at each tick, in float64, by a plain loop in torch."""
        module = self.module().double()
        given = {n: torch.from_numpy(np.asarray(a)) for n, a in chunk.items()}
        given = {n: t.double() if t.is_floating_point() else t for n, t in given.items()}
        if self.framing:
            given = {n: _frames(t, self.framing) for n, t in given.items()}
        ticks = len(next(iter(given.values())))
        state = {n: s[..., :1, :].double() for n, s in self.options.get("state", {}).items()}
        with torch.no_grad():
            if self.kind == "step":
                rows = []
                for t in range(ticks):
                    out = module(**{n: x[t][None] for n, x in given.items()}, **state)
                    state = dict(zip(state, out[1:], strict=True))
                    rows.append({"y": out[0][0]})
            elif self.kind == "last":
                rows = [
                    {n: v.reshape(v.shape[1:]) for n, v in self._call(module, given, t + 1, state).items()}
                    for t in range(ticks)
                ]
            else:
                axis = 1 if self.time_major else 0
                whole = self._call(module, given, ticks, state)
                rows = [
                    {
                        n: v.select(axis, 0)[..., t] if self.channels else v.select(axis, 0)[t]
                        for n, v in whole.items()
                    }
                    for t in range(ticks)
                ]
        return {name: np.stack([row[name].numpy() for row in rows]) for name in rows[0]}

    def _call(
        self, module: nn.Module, given: Mapping[str, Tensor], ticks: int, state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        arguments = {}
        for name, tensor in given.items():
            part = tensor[:ticks]
            arguments[name] = (
                part[:, None] if self.time_major else part.T[None] if self.channels else part[None]
            )
        out = module(**arguments, **state)
        if state:
            return {"y": out[0]}
        if isinstance(out, dict):
            return out
        return {f"y{i}": v for i, v in enumerate(out)} if isinstance(out, tuple) else {"y": out}


def _frames(samples: Tensor, framing: Framing) -> Tensor:
    """(T, window): zeros before the first sample."""
    padded = F.pad(samples, (framing.context, 0))
    steps = len(samples) // framing.hop
    return torch.stack([padded[k * framing.hop : k * framing.hop + framing.window] for k in range(steps)])


def x(*shape: int) -> dict[str, Tensor]:
    return {"x": torch.randn(shape, generator=torch.Generator().manual_seed(5))}


def tokens(size: int, *shape: int) -> dict[str, Tensor]:
    values = torch.randint(0, size, shape, generator=torch.Generator().manual_seed(5))
    values.view(-1)[0], values.view(-1)[-1] = 0, size - 1
    return {"tokens": values}


def row(features: int) -> Tensor:
    return torch.randn(1, features, generator=torch.Generator().manual_seed(5))


# Recurrent layers by themselves


class Layer(nn.Module):
    """One recurrent module; all of its output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class LSTMModel(nn.Module):
    def __init__(self, input_size, hidden_size, num_layers):
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, 1)

    def forward(self, x):
        out, (h_n, c_n) = self.lstm(x)  # noqa: RUF059 - verbatim
        return self.fc(out[:, -1, :])


class LastHidden(nn.Module):
    """Many-to-one by h_n of the last layer."""

    def __init__(self, layer: type[nn.RNNBase], layers: int) -> None:
        super().__init__()
        self.rnn = layer(4, 6, layers, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.rnn(x)
        h = h[0] if isinstance(h, tuple) else h
        return torch.softmax(self.fc(h[-1]), dim=-1)


class LearnedStart(nn.Module):
    """The initial state is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, batch_first=True)
        self.h0 = nn.Parameter(torch.randn(2, 1, 6))
        self.c0 = nn.Parameter(torch.randn(2, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        size = (2, x.shape[0], 6)
        return self.lstm(x, (self.h0.expand(size).contiguous(), self.c0.expand(size).contiguous()))[0]


# Models around them


class Tagger(nn.Module):
    """Embedding, LSTM, norm, dropout, Linear, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 5)
        self.lstm = nn.LSTM(5, 6, 2, batch_first=True, dropout=0.3)
        self.norm = nn.LayerNorm(6)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.log_softmax(self.fc(self.drop(self.norm(self.lstm(self.embed(tokens))[0]))), dim=-1)


class Residual(nn.Module):
    """Several recurrent layers in one model, of different kinds, with residual connections."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.gru = nn.GRU(6, 6, 2, batch_first=True)
        self.rnn = nn.RNN(6, 6, batch_first=True, nonlinearity="relu")
        self.gate = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        a = x + self.lstm(x)[0]
        b = a + F.gelu(self.gru(a)[0])
        return b * torch.sigmoid(self.gate(self.rnn(b)[0])) + x


class Normed(nn.Module):
    """BatchNorm over the features, with running statistics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.norm.running_mean = torch.randn(6)
        self.norm.running_var = torch.rand(6) + 0.5
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.before(x).transpose(1, 2)).transpose(1, 2)
        return self.gru(F.silu(y))[0]


class Decision(nn.Module):
    """A dict with an integer output, which must be equal exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.fc(self.lstm(x)[0])
        return {"probability": scores.softmax(-1), "label": scores.argmax(-1)}


class TwoInputs(nn.Module):
    """Audio features and tokens in, a tuple out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 3)
        self.gru = nn.GRU(4 + 3, 6, batch_first=True)
        self.fc = nn.Linear(6, 2)

    def forward(self, sound: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.gru(torch.cat([sound, self.embed(tokens)], dim=-1))
        return self.fc(y), y.abs()


# Cells in a loop over time


class LSTMCellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 6, dtype=x.dtype)
        c = torch.zeros(x.shape[0], 6, dtype=x.dtype)
        outputs = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            outputs.append(h)
        return torch.stack(outputs, dim=1)


class TwoCellLoop(nn.Module):
    """Two layers of cells, the output written into a preallocated tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GRUCell(4, 6), nn.RNNCell(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = x.new_zeros(x.shape[0], 6)
        b = x.new_zeros(x.shape[0], 5)
        out = x.new_zeros(x.shape[0], x.shape[1], 5)
        for t in range(x.shape[1]):
            a = self.first(x[:, t, :], a)
            b = self.second(a, b)
            out[:, t] = b
        return out


class CellLast(nn.Module):
    """Many-to-one by the loop's last h; no initial state given."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(4, 6, nonlinearity="relu")
        self.fc = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = None
        for step in x.unbind(dim=1):
            h = self.cell(step, h)
        return self.fc(h)


# Causal convolutions


class LeftPadded(nn.Module):
    """(batch, channels, time); padding on the left only."""

    def __init__(self, dilation: int = 2) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.conv = nn.Conv1d(4, 6, 3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(F.pad(x, (self.pad, 0))))


class Chomp(nn.Module):
    """Padding on both sides, and the end cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=4, dilation=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x)[:, :, :-4])


class TemporalBlock(nn.Module):
    """A residual block of a temporal convolutional network."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        self.one = nn.Conv1d(inputs, outputs, 3, padding=self.cut, dilation=dilation)
        self.two = nn.Conv1d(outputs, outputs, 3, padding=self.cut, dilation=dilation)
        self.drop = nn.Dropout(0.2)
        self.side = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(torch.relu(self.one(x)[:, :, : -self.cut]))
        y = self.drop(torch.relu(self.two(y)[:, :, : -self.cut]))
        return torch.relu(y + self.side(x))


class ConvLSTM(nn.Module):
    """A causal convolution before a recurrent layer: two kinds of state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3)
        self.lstm = nn.LSTM(6, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.pad(x.transpose(1, 2), (2, 0)))
        return self.lstm(torch.relu(y).transpose(1, 2))[0]


class Attentive(nn.Module):
    """A recurrent layer, and attention over its last ticks."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 6, batch_first=True)
        self.attention = WindowAttention(6, 2, 4)
        nn.init.normal_(self.attention.distance)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.gru(x)
        return h + self.attention(h)[0]


# State given and returned


class Explicit(nn.Module):
    """forward(x, h, c) -> (y, h, c) over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(x, (h, c))
        return self.fc(y), h, c


class Cell(nn.Module):
    """One step: a hand-written recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4 + 6, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        new = torch.tanh(self.mix(torch.cat([x, h], dim=-1)))
        h = 0.9 * h + 0.1 * new
        return self.out(h), h


class LSTMStep(nn.Module):
    """One step by nn.LSTMCell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 6)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.cell(x, (h, c))
        return h.tanh(), h, c


# Samples in


class Framed(nn.Module):
    """Windows of samples, (batch, time, window), in; one number a window out."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Linear(12, 6)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.fc = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(self.gru(torch.relu(self.front(x)))[0]))


def _layer(kind: type[nn.RNNBase], *sizes: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: Layer(kind(*sizes, batch_first=True, **options))


_H0, _C0 = torch.zeros(2, 1, 6), torch.zeros(2, 1, 6)

ZOO: dict[str, Case] = {
    "rnn-tanh": Case(_layer(nn.RNN, 4, 6), x(2, 9, 4)),
    "rnn-relu": Case(_layer(nn.RNN, 4, 6, 2, nonlinearity="relu"), x(2, 9, 4)),
    "rnn-3": Case(_layer(nn.RNN, 4, 6, 3), x(2, 9, 4)),
    "lstm": Case(_layer(nn.LSTM, 4, 6), x(2, 9, 4)),
    "lstm-2": Case(_layer(nn.LSTM, 4, 6, 2), x(2, 9, 4)),
    "lstm-3": Case(_layer(nn.LSTM, 4, 6, 3), x(2, 9, 4)),
    "gru": Case(_layer(nn.GRU, 4, 6), x(2, 9, 4)),
    "gru-2": Case(_layer(nn.GRU, 4, 6, 2), x(2, 9, 4)),
    "gru-3": Case(_layer(nn.GRU, 4, 6, 3), x(2, 9, 4)),
    "lstm-no-bias": Case(_layer(nn.LSTM, 4, 6, 2, bias=False), x(2, 9, 4)),
    "gru-no-bias": Case(_layer(nn.GRU, 4, 6, bias=False), x(2, 9, 4)),
    "rnn-no-bias": Case(_layer(nn.RNN, 4, 6, bias=False), x(2, 9, 4)),
    "lstm-time-first": Case(lambda: Layer(nn.LSTM(4, 6, 2)), x(9, 2, 4), options={"time_axis": 0}),
    "gru-time-first": Case(lambda: Layer(nn.GRU(4, 6)), x(9, 2, 4), options={"time_axis": 0}),
    "lstm-projected": Case(_layer(nn.LSTM, 4, 6, 2, proj_size=3), x(2, 9, 4)),
    "peephole": Case(lambda: Layer(PeepholeLSTM(4, 6, 2)), x(2, 9, 4)),
    "peephole-full": Case(lambda: Layer(PeepholeLSTM(4, 6, 2, form="full")), x(2, 9, 4)),
    "coupled": Case(lambda: Layer(CoupledLSTM(4, 6)), x(2, 9, 4)),
    "gru-before": Case(lambda: Layer(GRU(4, 6, 2)), x(2, 9, 4)),
    "learned-start": Case(LearnedStart, x(2, 9, 4)),
    "many-to-one": Case(lambda: LSTMModel(4, 6, 2), x(2, 9, 4), kind="last"),
    "last-hidden-lstm": Case(lambda: LastHidden(nn.LSTM, 2), x(2, 9, 4), kind="last"),
    "last-hidden-gru": Case(lambda: LastHidden(nn.GRU, 1), x(2, 9, 4), kind="last"),
    "tagger": Case(Tagger, tokens(20, 2, 9)),
    "residual": Case(Residual, x(2, 9, 6)),
    "batch-norm": Case(Normed, x(2, 9, 4)),
    "decision": Case(Decision, x(2, 9, 4)),
    "two-inputs": Case(TwoInputs, {"sound": x(2, 9, 4)["x"], **tokens(9, 2, 9)}),
    "lstm-cells": Case(LSTMCellLoop, x(2, 9, 4)),
    "two-cells": Case(TwoCellLoop, x(2, 9, 4)),
    "cell-last": Case(CellLast, x(2, 9, 4), kind="last"),
    "conv-left-padded": Case(LeftPadded, x(2, 4, 19), options={"time_axis": 2}),
    "conv-chomp": Case(Chomp, x(2, 4, 19), options={"time_axis": 2}),
    "tcn": Case(
        lambda: nn.Sequential(TemporalBlock(4, 6, 1), TemporalBlock(6, 6, 2)),
        {"input": x(2, 4, 29)["x"]},
        options={"time_axis": 2},
    ),
    "conv-lstm": Case(ConvLSTM, x(2, 9, 4)),
    "mingru": Case(lambda: Layer(MinGRU(4, 6, 2)), x(2, 9, 4)),
    "attention": Case(Attentive, x(2, 9, 4)),
    "explicit": Case(Explicit, x(1, 9, 4), options={"state": {"h": _H0, "c": _C0}}),
    "cell": Case(Cell, x(1, 4), kind="step", options={"time_axis": None, "state": {"h": row(6)}}),
    "lstm-step": Case(
        LSTMStep, x(1, 4), kind="step", options={"time_axis": None, "state": {"h": row(6), "c": row(6) * 2}}
    ),
    "framed": Case(Framed, x(2, 9, 12), options={"framing": Framing(window=12, hop=8), "rate": 100.0}),
}


@functools.cache
def exported(name: str) -> Path:
    """The case's model file: exported, and so certified, once a session of all workers. Not to be changed."""
    case, path = ZOO[name], Path(os.environ["RUNNEL_TEST_FILES"]) / f"{name}.onnx"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            runnel_export.export(case.module(), dict(case.example), path, **case.options)
    return path
