"""What every row of the table of cells must show: it learns, is exported and certified, and streams.

`prove` does it all for one module, against the module itself in float64 on each whole sequence: by the
engine, cut at random, several streams in batches, reset, snapshot and restored; and by a daemon, spoken to
by `runnel.Client`, two clients' streams taking turns.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import runnel
import runnel_export
from runnel import Engine
from runnel.daemon.loop import Daemon
from runnel.spec import Array

from ..serve.peers import served

FEATURES, HIDDEN, OUT = 4, 12, 3
TICKS, STREAMS = 33, 4
LONG = 250  # ticks of the certificate's long trial: enough here, and the tests are quick


class Model(nn.Module):
    """A recurrent layer, or several, with a Linear after it: logits, or with `classes` probabilities."""

    def __init__(self, layer: nn.Module, width: int = HIDDEN, classes: bool = False) -> None:
        super().__init__()
        self.layer, self.head, self.classes = layer, nn.Linear(width, OUT), classes

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        y = self.head(out[0] if isinstance(out, tuple) else out)
        return y.softmax(-1) if self.classes else y


def train(module: Model, steps: int = 25) -> tuple[float, float]:
    """The loss before and after a few steps: which of three features was largest two ticks ago."""
    torch.manual_seed(1)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.03)
    losses = []
    for _ in range(steps + 1):
        x = torch.randn(16, 12, FEATURES)
        wanted = x[:, :-2, :OUT].argmax(-1)
        y = module(x)[:, 2:]
        if module.classes:
            loss = nn.functional.nll_loss(y.clamp_min(1e-9).log().flatten(0, 1), wanted.flatten())
        else:
            loss = nn.functional.cross_entropy(y.flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


def prove(
    module: Model, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> runnel_export.Certificate:
    """All of the above; the certificate, for what is particular to a row. The file is `folder`/m.onnx."""
    before, after = train(module)
    assert after < 0.9 * before, f"it does not learn: {before} to {after}"
    monkeypatch.setattr("runnel_export.certify.reference_runs.LONG", LONG)
    path = folder / "m.onnx"
    certificate = runnel_export.export(module, torch.randn(2, 9, FEATURES), path, **options)
    assert certificate.passed
    assert certificate.error < 1e-4
    assert runnel_export.verify(path).passed
    rng = np.random.default_rng(5)
    chunks = [rng.normal(size=(TICKS - 3 * i, FEATURES)).astype(np.float32) for i in range(STREAMS)]
    expected = [whole(module, chunk) for chunk in chunks]
    with Engine.load(path) as engine:
        model = engine.pipeline.model
        assert model is not None
        assert certificate.alive == tuple(s.input for s in model.states)
        assert certificate.alive
        by_engine(engine, chunks, expected, rng)
        by_daemon(engine, f"ipc://{folder}/d.sock", chunks, expected, rng)
    return certificate


def whole(module: nn.Module, chunk: Array) -> Array:
    """The original on the whole sequence, in float64."""
    with torch.no_grad():
        y: Tensor = copy.deepcopy(module).double().eval()(torch.from_numpy(chunk).double()[None])[0]
    return y.numpy()


def pieces(chunk: Array, rng: np.random.Generator) -> list[Array]:
    cuts = sorted(rng.choice(np.arange(1, len(chunk)), 5, replace=False).tolist())
    return [chunk[a:b] for a, b in zip([0, *cuts], [*cuts, len(chunk)], strict=True)]


def same(parts: Sequence[Any], expected: Array) -> None:
    got = np.concatenate([p["y"] if isinstance(p, dict) else p for p in parts])
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * max(1, np.abs(expected).max()))


def by_engine(
    engine: Engine, chunks: Sequence[Array], expected: Sequence[Array], rng: np.random.Generator
) -> None:
    # Alone and cut at random; in the middle a snapshot, which goes on as the stream itself does.
    with engine.open() as stream:
        parts = pieces(chunks[0], rng)
        got = [stream.feed(p) for p in parts[:3]]
        blob = stream.snapshot()
        same([*got, *(stream.feed(p) for p in parts[3:])], expected[0])
        with engine.restore(blob) as again:
            same([*got, *(again.feed(p) for p in parts[3:])], expected[0])
        stream.reset()  # and then it is a new one
        same([stream.feed(p) for p in pieces(chunks[1], rng)], expected[1])
    # Together, in batches of whoever still has some, each stream with pieces of its own.
    streams = [engine.open() for _ in chunks]
    todo = [pieces(c, rng) for c in chunks]
    done: list[list[Any]] = [[] for _ in chunks]
    while any(todo):
        live = [i for i, rest in enumerate(todo) if rest and (len(done[i]) < 2 or rng.random() < 0.7)]
        for i, out in zip(live, engine.feed_many([(streams[i], todo[i].pop(0)) for i in live]), strict=True):
            done[i].append(out)
    for got, wanted in zip(done, expected, strict=True):
        same(got, wanted)


def by_daemon(
    engine: Engine,
    address: str,
    chunks: Sequence[Array],
    expected: Sequence[Array],
    rng: np.random.Generator,
) -> None:
    with (
        served(Daemon(engine, address)) as daemon,
        runnel.Client(daemon.address, timeout=10.0) as one,
        runnel.Client(daemon.address, timeout=10.0) as two,
    ):
        streams = [one.open("a"), two.open("b")]
        parts = [pieces(c, rng) for c in chunks[:2]]
        got: list[list[Any]] = [[], []]
        for turn in range(6):
            for i in (0, 1):
                got[i].append(streams[i].feed(parts[i][turn]))
        for i in (0, 1):
            same(got[i], expected[i])
        streams[0].reset()
        same([streams[0].feed(chunks[2])], expected[2])
        for stream in streams:
            stream.close()
