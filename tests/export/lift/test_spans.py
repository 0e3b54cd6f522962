"""Layers that see a span of ticks, each trained a little, exported, and streamed: engine and daemon.

Bidirectional with a bounded lookahead, a linear recurrence, attention over the last ticks, a dilated causal
convolution. What comes out is compared with torch in float64 on the whole sequence.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import runnel
import runnel_export
from runnel import Blocks, Engine
from runnel.daemon.loop import Daemon
from runnel.loading import container
from runnel.spec import to_document
from runnel_export.certify.bounded import Bounded, _one_way
from runnel_export.lift.lift import lift
from runnel_export.nn import MinGRU, WindowAttention
from tests import laws
from tests.serve.peers import served

HIDDEN, TICKS, LAG = 12, 48, 4


class Net(nn.Module):
    """A layer that gives (output, state), and a Linear."""

    def __init__(self, layer: nn.Module, width: int = HIDDEN) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.layer(x)[0])
        return y


class Attending(nn.Module):
    """Attention over the last ticks beside a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, HIDDEN, batch_first=True)
        self.attention = WindowAttention(HIDDEN, 2, LAG + 2)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.lstm(x)
        y: Tensor = self.out(h + self.attention(h)[0])
        return y


class Convolving(nn.Module):
    """A dilated causal stack, residual: sees 14 ticks back."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Conv1d(2, HIDDEN, 1)
        self.stack = nn.ModuleList(nn.Conv1d(HIDDEN, HIDDEN, 3, dilation=d) for d in (1, 2, 4))
        self.out = nn.Conv1d(HIDDEN, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        v = self.widen(x.transpose(1, 2))
        for conv in self.stack:
            reach = 2 * conv.dilation[0]
            v = v + torch.relu(conv(F.pad(v, (reach, 0))))
        y: Tensor = self.out(v).transpose(1, 2)
        return y


def around(x: Tensor) -> Tensor:
    """Of each tick the ticks around it, those nearby most: what needs the future. x is (batch, time, 2)."""
    kernel = 0.6 ** torch.arange(-12, 13).abs().float()
    return F.conv1d(x[..., :1].transpose(1, 2), kernel[None, None], padding=12).transpose(1, 2)


def gated(x: Tensor) -> Tensor:
    """The first number, as it was when the second was last above a half."""
    held, rows = torch.zeros(len(x), 1), []
    for t in range(x.shape[1]):
        held = torch.where(x[:, t, 1:] > 0.5, x[:, t, :1], held)
        rows.append(held)
    return torch.stack(rows, 1)


def earlier(x: Tensor) -> Tensor:
    """The first number of some ticks ago."""
    return F.pad(x[..., :1], (0, 0, LAG, 0))[:, : x.shape[1]]


@dataclass(frozen=True)
class Row:
    make: Callable[[], nn.Module]
    target: Callable[[Tensor], Tensor]
    steps: int = 60
    options: dict[str, Any] = field(default_factory=dict)


ROWS = {
    "bidirectional": Row(
        lambda: Net(nn.LSTM(2, HIDDEN, batch_first=True, bidirectional=True), 2 * HIDDEN),
        around,
        options={"blocks": Blocks(ticks=6, lookahead=12)},
    ),
    "linear recurrence": Row(lambda: Net(MinGRU(2, HIDDEN, 2)), gated),
    "bounded attention": Row(Attending, earlier, 90),
    "temporal convolution": Row(Convolving, earlier),
}


def train(module: nn.Module, target: Callable[[Tensor], Tensor], steps: int) -> tuple[float, float]:
    """(first, last) loss of a few steps."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    losses = []
    for _ in range(steps):
        x = torch.randn(16, TICKS, 2, generator=generator)
        loss = F.mse_loss(module(x), target(x))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def by_torch(module: nn.Module, x: np.ndarray, blocks: Blocks | None = None) -> np.ndarray:
    """The module in float64 on one whole sequence, with the lookahead that `blocks` allows."""
    doubled, given = module.double(), torch.from_numpy(x).double()[None]
    with torch.no_grad():
        if blocks is None:
            y: np.ndarray = doubled(given)[0].numpy()
        else:
            copy = Bounded(doubled, blocks)
            windows = copy.windows(len(x))
            y = np.concatenate([copy.module(given[:, :end])[0, a:b].numpy() for a, b, end in windows])
    module.float()
    return y


def data(ticks: int, seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((ticks, 2)).astype(np.float32)}


@pytest.mark.parametrize("name", ROWS)
def test_trained_exported_certified_and_streamed(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    torch.manual_seed(4)
    module = row.make()
    first, last = train(module, row.target, row.steps)
    assert last < 0.5 * first
    module.eval()
    path = tmp_path / "m.onnx"
    certificate = runnel_export.export(module, torch.randn(2, 9, 2), path, **row.options)
    assert certificate.passed
    assert certificate.error < 2e-5
    assert runnel_export.verify(path).passed

    chunk = data(53, 1)
    expected = by_torch(module, chunk["x"], row.options.get("blocks"))
    with Engine.load(path, max_streams=64) as engine:
        np.testing.assert_allclose(laws.whole(engine, chunk)["y"], expected, atol=1e-5)
        for seed in range(3):
            cuts = np.random.default_rng(seed).integers(0, 53, 9).tolist()
            laws.chunking(engine, chunk, cuts, 1e-5)
        others = [data(20 + 7 * i, i) for i in range(5)]
        laws.isolation(engine, others, [[3, 9 + i, 17] for i in range(5)], 1e-5)
        laws.returning(engine, chunk, 26)
        bad = {"x": np.where(np.arange(9)[:, None] == 7, np.nan, chunk["x"][:9]).astype(np.float32)}
        laws.commit(engine, chunk, bad, runnel.RunnelError, data(11, 5))

    daemon = Daemon(Engine.load(path, max_streams=8), f"ipc://{tmp_path}/d.sock")
    with served(daemon), runnel.Client(daemon.address) as client:
        assert client.describe().latency == (row.options["blocks"].latency if row.options else 0)
        streams = [client.open(f"s{i}") for i in range(3)]
        parts: list[list[np.ndarray]] = [[] for _ in streams]
        for at in range(0, 53, 10):
            for stream, got in zip(streams, parts, strict=True):
                got.append(stream.feed(chunk["x"][at : at + 10]))
        for stream, got in zip(streams, parts, strict=True):
            np.testing.assert_allclose(np.concatenate([*got, stream.flush()]), expected, atol=1e-5)
            stream.close()


# ------------------------------------------------------------------ how the error falls

TABLE = Path(__file__).parents[3] / "export" / "lookahead.md"
LOOKAHEADS = (0, 1, 2, 4, 8, 16, 32, 96)
SEQUENCE = 100


def layer_by_layer(module: Net, x: np.ndarray, blocks: Blocks) -> np.ndarray:
    """The other way to bound what stacked layers see: each has a lookahead of its own on the layer below.

    The latencies then add, so that each of L layers has an L-th of the lookahead.
    """
    r, v = module.layer.double(), torch.from_numpy(x).double()[None]
    assert isinstance(r, nn.LSTM)
    ahead = blocks.lookahead // r.num_layers
    with torch.no_grad():
        for i in range(r.num_layers):
            forward, behind = _one_way(r, v, None, 2 * i)[0], []
            for start in range(0, len(x), blocks.ticks):
                window = v[:, start : start + blocks.ticks + ahead].flip(1)
                behind.append(_one_way(r, window, None, 2 * i + 1)[0].flip(1)[:, : blocks.ticks])
            v = torch.cat([forward, torch.cat(behind, 1)], 2)
        y: np.ndarray = module.out.double()(v)[0].numpy()
    module.float()
    return y


def measured(tmp_path: Path) -> dict[int, list[float]]:
    """By lookahead: how far a stream is from torch, in parts of the output (root mean squares of both).

    For one layer, for two, and for two of which each has half the lookahead.
    """
    found: dict[int, list[float]] = {n: [] for n in LOOKAHEADS}
    for layers in (1, 2):
        torch.manual_seed(4)
        lstm = nn.LSTM(2, HIDDEN, layers, batch_first=True, bidirectional=True)
        module = Net(lstm, 2 * HIDDEN)
        first, last = train(module, around, 150)
        assert last < 0.05 * first
        module.eval()
        sequences = [data(SEQUENCE, seed)["x"] for seed in range(6)]
        whole = np.concatenate([by_torch(module, x) for x in sequences])

        def far(parts: list[np.ndarray], whole: np.ndarray = whole) -> float:
            return float(np.sqrt(np.square(np.concatenate(parts) - whole).mean() / np.square(whole).mean()))

        for lookahead in LOOKAHEADS:
            blocks = Blocks(4, lookahead)
            lifted = lift(module, torch.randn(2, 9, 2), blocks=blocks)
            path = tmp_path / f"{layers}-{lookahead}.onnx"
            path.write_bytes(container.seal(lifted.model.SerializeToString(), to_document(lifted.spec)))
            with Engine.load(path, trust=True) as engine:
                found[lookahead].append(far([laws.whole(engine, {"x": x})["y"] for x in sequences]))
            if layers == 2:
                found[lookahead].append(far([layer_by_layer(module, x, blocks) for x in sequences]))
    return found


def test_the_error_falls_as_the_lookahead_grows(tmp_path: Path, capsys: Any) -> None:
    """To rounding, once the first window covers the sequence. The page's table is the one measured."""
    found = measured(tmp_path)
    lines = [f"| {n} | {n + 3} | " + " | ".join(f"{e:.1e}" for e in es) + " |" for n, es in found.items()]
    with capsys.disabled():
        print("", *lines, sep="\n")
    for layers in (0, 1):
        errors = [values[layers] for values in found.values()]
        assert errors[0] > 0.05
        assert errors[-1] < 1e-6
        assert all(after < before for before, after in itertools.pairwise(errors))
    for lookahead in LOOKAHEADS[1:-1]:  # one window for all layers is why they have no lookahead of their own
        assert found[lookahead][1] < found[lookahead][2]
    kept = TABLE.read_text("utf-8").splitlines()
    for lookahead, line in zip(LOOKAHEADS[:-2], lines, strict=False):  # (at the end it is rounding, in part)
        (page,) = [k for k in kept if k.startswith(f"| {lookahead} | {lookahead + 3} |")]
        told, now = ([float(cell) for cell in text.split("|")[3:6]] for text in (page, line))
        np.testing.assert_allclose(told, now, rtol=0.5)
