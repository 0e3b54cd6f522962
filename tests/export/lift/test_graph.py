"""The graph itself: what is written, what is not, and how it is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from runnel.errors import ExportError
from runnel_export.lift import interpret
from runnel_export.lift.graph import Graph, Port
from runnel_export.lift.lift import lift
from runnel_export.lift.ops.registry import Handler

from ..stepping import Apply, assert_streams, op_types


def named(**parts: nn.Module) -> nn.Module:
    return Apply(lambda x, m: m.head(m.rnn(x)[0]), **parts)


def test_the_file_is_of_a_version_that_runtimes_read() -> None:
    model = lift(nn.Linear(6, 3), torch.randn(2, 5, 6)).model
    assert model.ir_version == 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert not model.metadata_props
    onnx.checker.check_model(model, full_check=True)


def test_nodes_and_states_are_named_after_their_layers() -> None:
    module = nn.ModuleDict({"body": named(rnn=nn.GRU(6, 4, batch_first=True), head=nn.Linear(4, 2))})
    model = lift(Apply(lambda x, m: m.net["body"](x), net=module), torch.randn(2, 5, 6))
    assert [n.name for n in model.model.graph.node] == [
        "net.body.rnn/GRU",
        "net.body.rnn/Squeeze",
        "net.body.head/MatMul",
        "net.body.head/Add",
    ]
    assert [s.input for s in model.spec.states] == ["net.body.rnn.h.0"]


def test_free_axes_are_named_and_all_others_are_sizes() -> None:
    lifted = lift(named(rnn=nn.LSTM(6, 4, batch_first=True), head=nn.Linear(4, 2)), torch.randn(2, 5, 6))
    dims = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*lifted.model.graph.input, *lifted.model.graph.output)
    }
    assert dims == {
        "x": ["time", "slot", 6],
        "rnn.h.0": [1, "slot", 4],
        "rnn.c.0": [1, "slot", 4],
        "y": ["time", "slot", 2],
        "rnn.h.0.next": [1, "slot", 4],
        "rnn.c.0.next": [1, "slot", 4],
    }


def test_equal_constants_are_kept_once_and_dead_nodes_not_at_all() -> None:
    def forward(x: Tensor, m: Any) -> Tensor:
        (x * 7).sin()  # dead
        out: Tensor = m.a(m.a(x)) + m.a.weight.sum() * 0
        return out

    lifted = lift(Apply(forward, a=nn.Linear(6, 6)), torch.randn(2, 5, 6))
    assert op_types(lifted) == ["MatMul", "Add", "MatMul", "Add", "Add"]
    assert len(lifted.model.graph.initializer) == 3


def test_nothing_of_the_trace_stays_in_the_file() -> None:
    """No path of a machine, no stack trace: the bytes are the graph's own."""
    module = nn.Linear(6, 3)
    for weight in module.parameters():
        nn.init.zeros_(weight)  # (the bytes of random ones may be any)
    text = lift(module, torch.randn(2, 5, 6)).model.SerializeToString()
    assert b"/" not in text.replace(b"/MatMul", b"").replace(b"/Add", b"").replace(b"/const", b"")


def test_lifting_is_the_same_every_time() -> None:
    module = named(rnn=nn.GRU(6, 4, batch_first=True), head=nn.Linear(4, 2))
    one, two = (lift(module, torch.randn(n, 5, 6)).model for n in (1, 4))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_a_fault_in_a_translation_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("slope")

    monkeypatch.setattr(interpret.ops, "find", lambda *_: Handler(broken, lazy=False))
    with pytest.raises(ExportError, match=r"layer 'head' \(PReLU\).*fault of the exporter \(KeyError"):
        lift(Apply(lambda x, m: m.head(x), head=nn.PReLU()), torch.randn(2, 5, 6))


def test_a_translation_that_gets_the_shape_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(low: Any, v: Any, *_: object) -> Any:
        return low.insert(v, 0)

    monkeypatch.setattr(interpret.ops, "find", lambda *_: Handler(wrong, lazy=False))
    with pytest.raises(ExportError, match="fault of the exporter: shape"):
        lift(nn.Tanh(), torch.randn(2, 5, 6))


# ------------------------------------------------------------------ the builder alone


def port(name: str) -> Port:
    return Port(name, torch.float32, ("time", 2))


def test_an_equal_node_is_the_same_node() -> None:
    graph = Graph()
    graph.fresh("x")
    a = graph.emit("Elu", ["x"], {"alpha": 0.5}, hint="first")
    assert graph.emit("Elu", ["x"], {"alpha": 0.5}, hint="second") == a
    assert graph.emit("Elu", ["x"], {"alpha": 0.25}, hint="first") == ("first_2",)


def test_constants_differ_by_dtype_and_shape_and_bits() -> None:
    graph = Graph()
    kinds = [
        np.float32(0),
        np.zeros(1, np.float32),
        np.int32(0),
        np.float32(-0.0),
        np.zeros((1, 1), np.float32),
    ]
    assert len({graph.constant(np.asarray(k)) for k in kinds}) == len(kinds)


def test_a_value_that_is_given_twice_gets_an_identity() -> None:
    graph = Graph()
    graph.fresh("x")
    (y,) = graph.emit("Tanh", ["x"], hint="t")
    model = graph.finish("g", [port("x")], [(y, port(p)) for p in "abc"] + [("x", port("d"))])
    assert sorted(n.op_type for n in model.graph.node) == ["Identity", "Identity", "Identity", "Tanh"]
    assert [o.name for o in model.graph.output] == ["a", "b", "c", "d"]


# ------------------------------------------------------------------ any model of these parts


class Causal(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x.transpose(1, 2), (2, 0)))
        return y.transpose(1, 2)


class Loop(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), x.shape[-1])
        out = []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out.append(h)
        return torch.stack(out, 1)


class Flipped(nn.Module):
    """Time first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x.transpose(0, 1))[0]
        return y.transpose(0, 1)


PARTS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda n: nn.Linear(n, n),
    "tanh": lambda n: nn.Tanh(),
    "norm": nn.LayerNorm,
    "gru": lambda n: Apply(lambda x, m: m.r(x)[0], r=nn.GRU(n, n, batch_first=True)),
    "lstm": Flipped,
    "conv": Causal,
    "loop": Loop,
    "merged": lambda n: Apply(lambda x, m: m.f(x.reshape(-1, n)).view(x.shape), f=nn.Linear(n, n)),
    "late": lambda n: Apply(lambda x, _: x + F.pad(x, (0, 0, 1, 0))[:, :-1]),
    "halves": lambda n: Apply(lambda x, _: torch.cat(x.chunk(2, -1)[::-1], -1) * x),
}


@settings(max_examples=12, deadline=None)
@given(
    chain=st.lists(st.tuples(st.sampled_from(sorted(PARTS)), st.booleans()), min_size=1, max_size=5),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_chain_of_parts_streams_as_torch_computes_it(
    chain: list[tuple[str, bool]], last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    parts = nn.ModuleList(PARTS[name](4) for name, _ in chain)

    def forward(x: Tensor, m: Any) -> Tensor:
        for part, (_, residual) in zip(m.parts, chain, strict=True):
            x = x + part(x) if residual else part(x)
        return x[:, -1] if last else x

    assert_streams(
        Apply(forward, parts=parts), torch.randn(2, 5, 4), last=[0] if last else [], tolerance=5e-5
    )
