"""Bidirectional layers with a bounded lookahead: exact where it covers the sequence, else as defined."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import runnel_export
from runnel import Blocks, Engine, Framing
from runnel.errors import ExportError, NotStreamableError
from runnel.loading import container
from runnel.spec import ModelSpec, to_document
from runnel_export.certify.bounded import Bounded
from runnel_export.lift.lift import lift
from runnel_export.nn import LayerNormLSTM, MinGRU, PeepholeLSTM, WindowAttention
from runnel_export.quantize import quantize_int8

from ..stepping import Apply, assert_streams, op_types, session

BLOCKS = Blocks(ticks=4, lookahead=9)
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def layer(kind: str, layers: int = 1, **options: Any) -> nn.RNNBase:
    torch.manual_seed(layers)
    made: nn.RNNBase = KINDS[kind](3, 5, layers, batch_first=True, bidirectional=True, **options)
    return made


def tagger(kind: str, layers: int) -> nn.Module:
    return Apply(lambda x, m: m.f(m.r(x)[0]), r=layer(kind, layers), f=nn.Linear(10, 2))


def loaded(module: nn.Module, path: Path, blocks: Blocks, features: int = 3) -> Engine:
    """The lifted model without a proof: this is the test's affair."""
    lifted = lift(module, torch.randn(2, 9, features), blocks=blocks)
    path.write_bytes(container.seal(lifted.model.SerializeToString(), to_document(lifted.spec)))
    return Engine.load(path, max_streams=32, trust=True)


def streamed(engine: Engine, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """A stream of its own, cut at random, to its end."""
    rng = np.random.default_rng(seed)
    cuts = sorted({0, len(x), *rng.integers(0, len(x) + 1, 7).tolist()})
    with engine.open() as stream:
        parts = [stream.feed(x[a:b]) for a, b in itertools.pairwise(cuts)]
        return np.concatenate([*parts, stream.flush()])


def whole(module: nn.Module, x: np.ndarray) -> np.ndarray:
    """torch's own, in float64."""
    doubled = module.double()
    with torch.no_grad():
        y: np.ndarray = doubled(torch.from_numpy(x).double()[None])[0].numpy()
    module.float()
    return y


def by_definition(r: nn.RNNBase, x: Tensor, blocks: Blocks) -> Tensor:
    """Zhang et al. 2016 as a plain loop: x is (time, features); each block's forward state is carried."""
    layers, hidden = r.num_layers, r.hidden_size
    width = 2 if r.mode == "LSTM" else 1
    carried = [[torch.zeros(hidden, dtype=x.dtype)] * width for _ in range(layers)]
    made = []
    for start in range(0, len(x), blocks.ticks):
        v = x[start : start + blocks.window]
        for i in range(layers):
            after, ahead = carried[i], []
            for t, row in enumerate(v):
                after = one_tick(r, r.all_weights[2 * i], row, after)
                ahead.append(after[0])
                if t == blocks.ticks - 1:
                    kept = after
            carried[i] = kept if len(v) >= blocks.ticks else after
            after, behind = [torch.zeros(hidden, dtype=x.dtype)] * width, []
            for row in v.flip(0):
                after = one_tick(r, r.all_weights[2 * i + 1], row, after)
                behind.insert(0, after[0])
            v = torch.cat([torch.stack(ahead), torch.stack(behind)], 1)
        made.append(v[: blocks.ticks])
    return torch.cat(made)


def one_tick(r: nn.RNNBase, ws: list[Tensor], x: Tensor, state: list[Tensor]) -> list[Tensor]:
    w, u, b, c = ws
    a, p = w @ x + b, u @ state[0] + c
    if r.mode == "LSTM":
        i, f, g, o = (a + p).chunk(4)
        cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return [o.sigmoid() * cell.tanh(), cell]
    if r.mode == "GRU":
        (ar, az, an), (pr, pz, pn) = a.chunk(3), p.chunk(3)
        z = (az + pz).sigmoid()
        return [(1 - z) * (an + (ar + pr).sigmoid() * pn).tanh() + z * state[0]]
    return [(a + p).tanh()]


@pytest.mark.parametrize(("kind", "layers"), [("lstm", 1), ("gru", 3), ("rnn", 2)])
def test_a_stream_gives_what_the_definition_gives(kind: str, layers: int, tmp_path: Path) -> None:
    module = tagger(kind, layers)
    with loaded(module, tmp_path / "m.onnx", BLOCKS) as engine:
        assert engine.pipeline.latency == 12
        for ticks in (1, 3, 4, 5, 13, 14, 30, 47):
            x = np.random.default_rng(ticks).normal(size=(ticks, 3)).astype(np.float32)
            with torch.no_grad():
                y = by_definition(module.r.double(), torch.from_numpy(x).double(), BLOCKS)
                expected = module.f.double()(y).numpy()
            module.float()
            np.testing.assert_allclose(streamed(engine, x), expected, atol=2e-6)
            np.testing.assert_allclose(np.concatenate(bounded(module, x)), expected, atol=1e-12)


def bounded(module: nn.Module, x: np.ndarray, blocks: Blocks = BLOCKS) -> list[np.ndarray]:
    """What the certificate compares with."""
    copy = Bounded(module.double(), blocks)
    given = torch.from_numpy(x).double()[None]
    with torch.no_grad():
        found = [
            copy.module(given[:, :end])[0, start:stop].numpy() for start, stop, end in copy.windows(len(x))
        ]
    module.float()
    return found


@pytest.mark.parametrize(("kind", "layers"), [("lstm", 2), ("gru", 1), ("rnn", 2)])
def test_a_lookahead_that_covers_the_sequence_gives_what_torch_gives(
    kind: str, layers: int, tmp_path: Path
) -> None:
    module = tagger(kind, layers)
    with loaded(module, tmp_path / "m.onnx", Blocks(ticks=3, lookahead=40)) as engine:
        for ticks in (1, 2, 3, 4, 17, 42, 43):  # as long as a window at most; in fifteen blocks at most
            x = np.random.default_rng(ticks).normal(size=(ticks, 3)).astype(np.float32)
            np.testing.assert_allclose(streamed(engine, x, ticks), whole(module, x), atol=1e-6)


class Mixed(nn.Module):
    """All that may stand around bidirectional layers: their like, causal layers, learned beginnings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(3, 4, 3, dilation=2)
        self.one = nn.LSTM(4, 3, batch_first=True, bidirectional=True)
        self.start = nn.Parameter(torch.randn(2, 2, 1, 3) * 0.5)
        self.way = nn.GRU(6, 6, batch_first=True)
        self.two = nn.GRU(6, 3, 2, bidirectional=True)  # time first
        self.out = nn.Conv1d(6, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        v = self.conv(F.pad(x.transpose(1, 2), (4, 0))).relu().transpose(1, 2)
        h, c = self.start.expand(2, 2, len(x), 3).contiguous()
        v, _ = self.one(v, (h, c))
        v = v + self.way(v)[0]
        v = self.two(v.transpose(0, 1))[0].transpose(0, 1) + v
        v = self.one(torch.cat([v[..., :3], v[..., :1]], -1))[0]  # a second call of the first layer
        y: Tensor = self.out(F.pad(v.transpose(1, 2), (1, 0))).transpose(1, 2)
        return y


def test_layers_around_it_see_of_the_past_what_a_stream_has(tmp_path: Path) -> None:
    module = Mixed().eval()
    with loaded(module, tmp_path / "m.onnx", BLOCKS) as engine:
        names = {s.input for s in engine.pipeline.model.states}  # type: ignore[union-attr]
        assert names == {
            "conv.cache", "one.h.0", "one.c.0", "way.h.0", "two.h.0", "two.h.1", "one.h.0_2", "one.c.0_2",
            "out.cache",
        }  # fmt: skip
        for ticks in (3, 13, 40):
            x = np.random.default_rng(ticks).normal(size=(ticks, 3)).astype(np.float32)
            np.testing.assert_allclose(streamed(engine, x), np.concatenate(bounded(module, x)), atol=2e-6)
    with loaded(module, tmp_path / "m.onnx", Blocks(5, 30)) as engine:
        x = np.random.default_rng(1).normal(size=(35, 3)).astype(np.float32)
        np.testing.assert_allclose(streamed(engine, x), whole(module, x), atol=2e-6)


class Beyond(nn.Module):
    """Layers that torch lacks, behind a bidirectional one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.both = layer("gru", 2)
        self.gru = MinGRU(10, 6)
        self.attention = WindowAttention(6, 2, 5)
        self.lstm = PeepholeLSTM(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        v = self.gru(self.both(x)[0])[0]
        y: Tensor = self.lstm(v + self.attention(v)[0])[0]
        return y


def test_what_torch_lacks_goes_together_with_blocks(tmp_path: Path) -> None:
    module = Beyond().eval()
    with loaded(module, tmp_path / "m.onnx", BLOCKS) as engine:
        for ticks in (3, 13, 40):
            x = np.random.default_rng(ticks).normal(size=(ticks, 3)).astype(np.float32)
            np.testing.assert_allclose(streamed(engine, x), np.concatenate(bounded(module, x)), atol=2e-6)
    written_out = Apply(lambda x, m: m.l(m.r(x)[0])[0], r=layer("gru"), l=LayerNormLSTM(10, 4))
    refused(written_out, "written out, one tick a call, together with blocks=")


def test_one_node_a_direction_and_another_for_the_lookahead() -> None:
    lifted = lift(tagger("gru", 1), torch.randn(2, 9, 3), blocks=BLOCKS)
    assert op_types(lifted).count("GRU") == 3
    assert [s.input for s in lifted.spec.states] == ["r.h.0"]  # backward nothing is carried
    assert lifted.spec.latency == 12
    assert op_types(lift(tagger("gru", 1), torch.randn(2, 9, 3), blocks=Blocks(4, 0))).count("GRU") == 2


def test_weights_that_two_nodes_share_are_made_int8_once_for_each() -> None:
    lifted = lift(tagger("lstm", 1), torch.randn(2, 9, 3), blocks=BLOCKS)
    small, account = quantize_int8(lifted.model)
    assert {entry["op"] for entry in account["int8"]} == {"LSTM", "MatMul"}
    feed = {"x": np.random.default_rng(0).normal(size=(13, 2, 3)).astype(np.float32)}
    feed |= {s.input: np.stack([s.initial] * 2, s.slot_axis) for s in lifted.spec.states}
    feed["present"] = np.array([13, 6], np.int32)
    exact, near = (session(replace(lifted, model=m)).run(["y"], feed)[0] for m in (lifted.model, small))
    np.testing.assert_allclose(near, exact, atol=0.02)


def test_names_of_the_modules_own_are_left_to_it() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r = layer("gru")

        def forward(self, present: Tensor) -> dict[str, Tensor]:
            return {"kept": self.r(present)[0]}

    spec: ModelSpec = lift(Named(), torch.randn(2, 9, 3), blocks=BLOCKS).spec
    assert spec.blocks is not None
    assert [t.name for t in spec.fed] == ["present"]
    assert [t.name for t in spec.given] == ["kept"]
    assert len({*spec.blocks.own, "present", "kept"}) == 4


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_within_a_step_a_bidirectional_layer_needs_no_lookahead(kind: str) -> None:
    """Over the letters of each tick's word, say: they are all there."""
    module = Apply(lambda x, m: m.r(x.flatten(0, 1))[0].mean(1).unflatten(0, x.shape[:2]), r=layer(kind, 2))
    assert_streams(module, torch.randn(2, 9, 7, 3))


# ------------------------------------------------------------------ what is proved, and what is refused


def test_the_certificate_says_what_was_compared(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    certificate = runnel_export.export(tagger("gru", 2), torch.randn(2, 9, 3), path, blocks=Blocks(3, 5))
    checks = {c.name: c for c in certificate.checks}
    assert certificate.passed
    assert {"covered", "lookahead", "stepped", "long"} <= checks.keys()
    assert "causal" not in checks
    assert 1e-3 < checks["lookahead"].errors["y"].relative < 1  # for information, and worth knowing
    assert certificate.error < 1e-5
    assert certificate.alive == ("r.h.0", "r.h.1")
    verified = runnel_export.verify(path)
    assert verified.passed
    with Engine.load(path) as engine:
        assert engine.pipeline.latency == 7


@pytest.mark.parametrize("fault", ["early", "late", "carried", "uncut"])
def test_a_step_model_with_one_fault_is_refused(fault: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Each is a mistake that this exporter might have made."""
    from runnel_export.lift.ops import blocked, recurrent

    def wrong(low: Any, run: Any, xs: Any, starts: Any) -> Any:
        zero, block, end = (low.graph.ints(n) for n in (0, BLOCKS.ticks, BLOCKS.window))
        first, ends = run([low.node("Slice", x, zero, block, zero) for x in xs], starts)
        rest, last = run(
            [low.node("Slice", x, block, end, zero) for x in xs], ends if fault != "late" else starts
        )
        if fault == "carried":
            ends = last  # the state after the lookahead, not after the block
        return low.node("Concat", *((rest, first) if fault == "early" else (first, rest)), axis=0), ends

    def uncut(low: Any, *given: Any, lengths: str = "", **more: Any) -> Any:
        return node(low, *given, **more)  # backwards from the window's end, though the stream ended before

    node = blocked.write_node
    if fault == "uncut":
        monkeypatch.setattr(blocked, "write_node", uncut)
    else:
        monkeypatch.setattr(blocked, "in_blocks", wrong)
    assert recurrent.over_time is blocked.over_time
    with pytest.raises(ExportError, match="FAIL"):
        runnel_export.export(tagger("gru", 2), torch.randn(2, 9, 3), tmp_path / "m.onnx", blocks=BLOCKS)
    assert list(tmp_path.iterdir()) == []


def refused(module: nn.Module, message: str, blocks: Blocks | None = BLOCKS, features: int = 3) -> None:
    with pytest.raises(ExportError, match=message):
        lift(module, torch.randn(2, 9, features), blocks=blocks)


def test_what_a_bounded_lookahead_cannot_do_is_refused() -> None:
    with pytest.raises(
        NotStreamableError, match=r"layer 'r' \(GRU\).*blocks=Blocks\(ticks=8, lookahead=24\)"
    ):
        lift(tagger("gru", 1), torch.randn(2, 9, 3))
    refused(Apply(lambda x, m: m.r(x)[0][:, -1], r=layer("gru")), "one result for the whole sequence")
    refused(Apply(lambda x, m: m.r(x)[1][1], r=layer("gru")), "one result for the whole sequence")
    refused(
        Apply(lambda x, m: m.r(x)[0] + m.r(x)[1][1].unsqueeze(1).repeat(1, 1, 2), r=layer("gru")), "tick 0"
    )
    refused(
        Apply(lambda x, m: m.r(x)[0] + m.r(x)[1][1][1].unsqueeze(1).repeat(1, 1, 2), r=layer("lstm")),
        "cell state",
    )
    refused(Apply(lambda x, m: m.r(x)[0], r=layer("lstm", proj_size=2)), "proj_size")
    ahead = Apply(lambda x, m: m.c(x.transpose(1, 2)).transpose(1, 2), c=nn.Conv1d(3, 3, 3, padding=1))
    refused(ahead, "another rate, delay or length together with blocks=")


@pytest.mark.parametrize(
    "options",
    [
        {"framing": Framing(3, 2)},
        {"state": {"h": torch.zeros(2, 2, 5)}},
        {"time_axis": None},
    ],
)  # fmt: skip
def test_blocks_are_for_whole_sequences_of_ticks(options: dict[str, Any], tmp_path: Path) -> None:
    module = Apply(lambda x, m: m.r(x)[0], r=layer("gru"))
    with pytest.raises(ExportError, match=r"blocks= does not go together|has no parameter"):
        runnel_export.export(module, torch.randn(2, 9, 3), tmp_path / "m.onnx", blocks=BLOCKS, **options)
