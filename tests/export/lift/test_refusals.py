"""What cannot be streamed: refused by name, with the reason and what would help."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runnel.errors import ExportError, NotStreamableError
from runnel_export.lift.lift import lift

from ..stepping import Apply


def channels_first(function: Callable[[Tensor, Any], Tensor], **parts: nn.Module) -> nn.Module:
    return Apply(lambda x, m: function(x.transpose(1, 2), m).transpose(1, 2), **parts)


def loop(step: Callable[[int, Tensor, list[Tensor]], Tensor], backwards: bool = False) -> nn.Module:
    def forward(x: Tensor, _: Any) -> Tensor:
        out: list[Tensor] = []
        order = range(x.shape[1])
        for t in reversed(order) if backwards else order:
            out.append(step(t, x, out))
        return torch.stack(out, 1)

    return Apply(forward)


class Backwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 6)
        for t in reversed(range(x.shape[1])):
            h = self.cell(x[:, t], h)
        return h


class Decoder(nn.Module):
    """Each input is the output before."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 6)
        y, out = x[:, 0], []
        for _ in range(x.shape[1]):
            h = self.cell(y, h)
            y = h.tanh()
            out.append(y)
        return torch.stack(out, 1)


class Reset(nn.Module):
    """The state is changed between two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 6)
        out = []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h * 0.9)
            out.append(h)
        return torch.stack(out, 1)


class Translate(nn.Module):
    """A second layer starts from the first one's final state."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(6, 6, batch_first=True)
        self.decoder = nn.GRU(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.encoder(x)
        out: Tensor = self.decoder(x, h)[0]
        return out


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attend(x, x, x)[0]
        return out


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.sum((0, 1))
        return x + self.seen


class Kept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(6, 6, batch_first=True)
        self.h = torch.zeros(1, 2, 6)

    def forward(self, x: Tensor) -> Tensor:
        y, self.h = self.cell(x, self.h)
        return y


REFUSED: dict[str, tuple[nn.Module, str, str, str]] = {
    # name: (module, the layer it must name, why, what would help)
    "bidirectional": (
        nn.Sequential(nn.Linear(6, 6), nn.LSTM(6, 4, bidirectional=True, batch_first=True)),
        "layer '1' (LSTM)", "reads the sequence from its end", "bidirectional=False",
    ),
    "batch_first forgotten": (
        Apply(lambda x, m: m.rnn(x)[0], rnn=nn.GRU(6, 4)),
        "layer 'rnn' (GRU)", "runs over the batch axis", "batch_first=True",
    ),
    "batch_first too much": (
        Apply(lambda x, m: m.rnn(x.transpose(0, 1))[0], rnn=nn.GRU(6, 4, batch_first=True)),
        "layer 'rnn' (GRU)", "runs over the batch axis", "batch_first=False",
    ),
    "mean over time": (Apply(lambda x, _: x.mean(1)), "Apply.forward", "a mean over all time", "out[:, -1]"),
    "mean of everything": (Apply(lambda x, _: x - x.mean()), "Apply.forward", "over the batch", "features"),
    "sum over time": (Apply(lambda x, _: x.sum(1)), "Apply.forward", "a sum over all time", "state"),
    "max over time": (Apply(lambda x, _: x.max(1).values), "Apply.forward", "a maximum over", "state"),
    "softmax over time": (
        Apply(lambda x, _: x.softmax(1)), "Apply.forward", "a softmax over all time", "out[:, -1]"
    ),
    "norm over time": (
        Apply(lambda x, _: F.normalize(x, dim=1)), "Apply.forward", "a norm over all time", "state"
    ),
    "mean over the batch": (
        Apply(lambda x, _: x - x.mean(0, keepdim=True)), "Apply.forward", "mixes streams", "features"
    ),
    "batch statistics": (
        channels_first(lambda x, m: m.n(x), n=nn.BatchNorm1d(6, track_running_stats=False)),
        "layer 'n' (BatchNorm1d)", "statistics of the batch", "running statistics",
    ),
    "group norm over time": (
        channels_first(lambda x, m: m.n(x), n=nn.GroupNorm(2, 6)),
        "layer 'n' (GroupNorm)", "normalises over all time", "LayerNorm",
    ),
    "instance norm over time": (
        channels_first(lambda x, m: m.n(x), n=nn.InstanceNorm1d(6)),
        "layer 'n' (InstanceNorm1d)", "normalises over all time", "LayerNorm",
    ),
    "flip": (Apply(lambda x, _: x.flip(1)), "Apply.forward", "reverses time", "forward only"),
    "cumsum": (Apply(lambda x, _: x.cumsum(1)), "Apply.forward", "running sum", "state={...}"),
    "roll": (Apply(lambda x, _: x.roll(1, 1)), "Apply.forward", "mix ticks", "causal"),
    "attention": (
        Apply(lambda x, m: m.a(x), a=Attention()),
        "layer 'a.attend' (MultiheadAttention)", "attention over the whole sequence", "recurrent",
    ),
    "transformer": (
        nn.TransformerEncoderLayer(6, 2, 9, batch_first=True),
        "(MultiheadAttention)", "attention over the whole sequence", "recurrent",
    ),
    "attention by hand": (
        Apply(lambda x, _: (x @ x.transpose(1, 2)).softmax(-1) @ x),
        "Apply.forward", "attention over the whole sequence", "recurrent",
    ),
    "attention by broadcasting": (
        Apply(lambda x, _: (x.unsqueeze(1) - x.unsqueeze(2)).abs().sum(-1)),
        "Apply.forward", "attention over the whole sequence", "recurrent",
    ),
    "scaled dot product": (
        Apply(lambda x, _: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
        "Apply.forward", "attention over the whole sequence", "recurrent",
    ),
    "time mixed by a matrix": (
        Apply(lambda x, _: (x.transpose(1, 2) @ torch.ones(x.shape[1], x.shape[1])).transpose(1, 2)),
        "Apply.forward", "over the time axis mixes all ticks", "recurrent",
    ),
    "absolute position": (
        Apply(lambda x, _: x + torch.arange(x.shape[1]).unsqueeze(-1)),
        "Apply.forward", "absolute time", "position",
    ),
    "position embedding": (
        Apply(lambda x, m: x + m.e(torch.arange(x.shape[1])), e=nn.Embedding(100, 6)),
        "Apply.forward", "absolute time", "position",
    ),
    "position in a loop": (
        loop(lambda t, x, _: x[:, t] * (t + 1)), "Apply.forward", "tick 1 is computed in another way", "alike"
    ),
    "a mask over time": (
        Apply(lambda x, _: x.masked_fill((torch.arange(x.shape[1]) > 3).unsqueeze(-1), 0.0)),
        "Apply.forward", "absolute time", "position",
    ),
    "rows of the batch": (Apply(lambda x, _: x[:1] + x), "Apply.forward", "rows of the batch", "whole batch"),
    "rows that differ": (
        Apply(lambda x, _: x * torch.arange(x.shape[0]).view(-1, 1, 1)),
        "Apply.forward", "differs along the batch", "input",
    ),
    "the sequence flattened": (
        Apply(lambda x, _: x.mT.flatten(1)), "Apply.forward", "merges time with features", "axis of its own"
    ),
    "batch and time swapped by view": (
        Apply(lambda x, _: x.reshape(x.shape[1], x.shape[0], 6)),
        "Apply.forward", "relabels batch as time", "transpose",
    ),
    "batch and time swapped by merging": (
        Apply(lambda x, _: x.transpose(0, 1).reshape(-1, 6).exp().view(*x.shape)),
        "Apply.forward", "relabels batch as time", "transpose",
    ),
    "the first tick": (Apply(lambda x, _: x[:, 0]), "Apply.forward", "at tick 0", "last tick"),
    "the last tick everywhere": (
        Apply(lambda x, _: x - x[:, -1:]), "Apply.forward", "the last tick is used at every tick", "sequence"
    ),
    "the last tick repeated": (
        Apply(lambda x, _: x[:, -1:].expand(-1, x.shape[1], -1)),
        "Apply.forward", "repeats one tick's value over all of time", "sequence",
    ),
    "ticks in reverse": (loop(lambda t, x, _: x[:, t], backwards=True), "Apply.forward", "reverse", ""),
    "a recurrence by hand": (
        loop(lambda t, x, out: torch.tanh(x[:, t] + (out[-1] if out else 0))),
        "Apply.forward", "hand-written recurrence", "state={...}",
    ),
    "a cell that runs backwards": (Backwards(), "layer 'cell' (GRUCell)", "begins at tick", "forward"),
    "ticks laid side by side": (
        Apply(lambda x, _: torch.cat(x.unbind(1), 1).view(x.shape)),
        "Apply.forward", "side by side on axis 1", "torch.stack(outputs, 1)",
    ),
    "a decoder": (Decoder(), "layer 'cell' (GRUCell)", "depends on an earlier output", "state={...}"),
    "a state changed in between": (
        Reset(), "layer 'cell' (GRUCell)", "the state was changed in between", "state={...}"
    ),
    "a state from the data": (
        Translate(), "layer 'decoder' (GRU)", "initial state is computed from the data", "zeros"
    ),
    "state in a buffer": (Buffered(), "Buffered", "changes its buffer 'seen'", "state={...}"),
    "a constant output": (Apply(lambda x, _: torch.ones(3)), "Apply.forward", "does not depend", "leave"),
    "dropout always on": (Apply(lambda x, _: F.dropout(x, 0.5)), "Apply.forward", "dropout", "self.training"),
    "noise": (Apply(lambda x, _: x + torch.randn_like(x)), "Apply.forward", "random", "same"),
    "the length as a number": (
        Apply(lambda x, _: x / x.shape[1]), "Apply", "the sequence's length", "a stream has no length"
    ),
    "the batch size as a number": (
        Apply(lambda x, _: x * x.shape[0]), "Apply", "with the batch size", "a stream has no length"
    ),
    "a packed sequence": (
        Apply(
            lambda x, m: m.rnn(
                nn.utils.rnn.pack_padded_sequence(x, torch.full((x.shape[0],), x.shape[1]), batch_first=True)
            )[1],
            rnn=nn.GRU(6, 4, batch_first=True),
        ),
        "", "", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_the_layer_the_reason_and_the_help(name: str) -> None:
    module, layer, why, help = REFUSED[name]
    with pytest.raises(ExportError) as caught:
        lift(module, torch.randn(2, 5, 6))
    if layer and why:
        assert isinstance(caught.value, NotStreamableError), caught.value
    for part in (layer, why, help):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("module", "example", "options", "why"),
    [
        (Kept(), torch.randn(2, 5, 6), {}, "state on self"),
        (nn.Linear(6, 3).double(), torch.randn(2, 5, 6), {}, "'weight' is torch.float64"),
        (nn.Linear(6, 3), torch.randn(2, 5, 6).half(), {}, "'input' is torch.float16"),
        (nn.Linear(6, 3), torch.randn(6), {}, "has shape (6,), but time is axis 1"),
        (nn.Linear(6, 3), {"inputs": torch.randn(2, 5, 6)}, {}, "did you mean 'input'?"),
        (nn.Linear(6, 3), [1.0], {}, "example must be a tensor"),
        (nn.Linear(6, 3), torch.randn(2, 0, 6), {}, "empty"),
        (nn.Linear(6, 3), torch.randn(2, 5, 6), {"batch_axis": 1}, "both 1"),
        (
            nn.Linear(7, 3),
            torch.randn(2, 5, 6),
            {},
            "Linear: forward fails on the example you gave (input: float32 (2, 5, 6)): RuntimeError: mat1",
        ),
        (Apply(lambda x, _: x.view(2, 30)), torch.randn(2, 5, 6), {}, "with one row more in the batch"),
        (Apply(lambda x, _: x * 2 if x.sum() > 0 else x), torch.randn(2, 5, 6), {}, "branches on the data"),
        (nn.Linear(6, 3), torch.randn(2, 5, 6), {"output_names": ["a", "b"]}, "must be 1 different"),
        (Apply(lambda x, _: torch.special.i0(x)), torch.randn(2, 5, 6), {}, "has no translation"),
        (
            Apply(lambda x, _: x.view(-1, 2, 5, 6)),
            torch.randn(2, 5, 6),
            {},
            "size is written into the module",
        ),
        (Apply(lambda x, _: x.view(7)), torch.randn(2, 5, 6), {}, "forward fails on the example you gave"),
        (Apply(lambda x, _: x.round(decimals=1)), torch.randn(2, 5, 6), {}, "aten.round.decimals has no"),
        (Apply(lambda x, _: None), torch.randn(2, 5, 6), {}, "returns no tensor"),
        (Apply(lambda x, _: x + torch.empty(6)), torch.randn(2, 5, 6), {}, "never written to"),
    ],
)
def test_what_cannot_be_exported_says_so(
    module: nn.Module, example: Any, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ExportError) as caught:
        lift(module, example, **options)
    assert why in str(caught.value)


def test_the_operation_that_the_guide_names_has_no_translation() -> None:
    guide = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()
    named = re.search(r"as torch calls it: `aten\.(\w+)`", guide)
    assert named
    with pytest.raises(ExportError, match=rf"aten\.{named[1]}\.\w+ has no translation"):
        lift(Apply(lambda x, _: getattr(torch, named[1])(x)), torch.rand(2, 5, 6))


def test_forward_is_tried_on_a_copy() -> None:
    class Counts(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            raise ValueError("never\nmore")

    module = Counts()
    with pytest.raises(ExportError, match=r"\(x: int64 \(2, 5\)\): ValueError: never$"):
        lift(module, torch.zeros(2, 5, dtype=torch.int64))
    assert module.calls == 0


def test_a_refused_module_keeps_its_mode() -> None:
    module = nn.LSTM(6, 4, bidirectional=True, batch_first=True).train()
    with pytest.raises(NotStreamableError):
        lift(module, torch.randn(2, 5, 6))
    assert module.training
