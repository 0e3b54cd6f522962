"""Operations without state: each alone on (batch, time, features), against torch in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runnel_export.lift.lift import lift

from ..stepping import Apply, assert_streams, op_types


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))


def written(x: Tensor, _: Any) -> Tensor:
    y = x.clone()
    y[:, :, 1:4] = x[:, :, 2:5].tanh()
    y[..., 5] = 0.5
    return y


def batch_norm(features: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(features)
    norm.running_mean = torch.randn(features)
    norm.running_var = torch.rand(features) + 0.5
    nn.init.normal_(norm.weight)
    return norm


ELEMENTWISE: dict[str, Callable[[Tensor, Any], Any]] = {
    "relu": lambda x, _: F.relu(x),
    "relu6": lambda x, _: F.relu6(4 * x),
    "tanh": lambda x, _: torch.tanh(x),
    "sigmoid": lambda x, _: torch.sigmoid(x),
    "gelu": lambda x, _: F.gelu(x),
    "gelu tanh": lambda x, _: F.gelu(x, approximate="tanh"),
    "silu": lambda x, _: F.silu(x),
    "elu": lambda x, _: F.elu(x, 0.7),
    "selu": lambda x, _: F.selu(x),
    "celu": lambda x, _: F.celu(x, 1.3),
    "leaky_relu": lambda x, _: F.leaky_relu(x, 0.2),
    "softplus": lambda x, _: F.softplus(x) + F.softplus(x, beta=2.0),
    "softsign": lambda x, _: F.softsign(x),
    "hardtanh": lambda x, _: F.hardtanh(x),
    "hardswish": lambda x, _: F.hardswish(3 * x),
    "hardsigmoid": lambda x, _: F.hardsigmoid(3 * x),
    "hardshrink": lambda x, _: F.hardshrink(x),
    "softshrink": lambda x, _: F.softshrink(x),
    "threshold": lambda x, _: F.threshold(x, 0.1, 20.0),
    "mish": lambda x, _: F.mish(x),
    "logsigmoid": lambda x, _: F.logsigmoid(x),
    "tanhshrink": lambda x, _: F.tanhshrink(x),
    "glu": lambda x, _: F.glu(x),
    "clamp": lambda x, _: x.clamp(-0.5, 0.5) + x.clamp(min=0.2) + x.clamp(max=0.1),
    "clamp tensors": lambda x, _: torch.clamp(x, min=-x.abs(), max=x.exp()),
    "arithmetic": lambda x, _: (2 - x) * 3 / (x.abs() + 1) + x / 2 - (1 / (x.abs() + 2)),
    "alpha": lambda x, _: torch.add(x, x.exp(), alpha=0.5) - torch.sub(x, 1, alpha=2),
    "powers": lambda x, _: x**2 + x.abs() ** 0.5 + x.abs() ** 1.7 + 2.0**x + x.square(),
    "roots": lambda x, _: x.abs().sqrt() + (x.abs() + 1).rsqrt() + (x.abs() + 1).reciprocal(),
    "exp log": lambda x, _: (x.abs() + 1).log() + x.exp() + x.abs().log1p() + x.expm1(),
    "log2 log10": lambda x, _: (x.abs() + 1).log2() + (x.abs() + 1).log10(),
    "trig": lambda x, _: x.sin() + x.cos() + x.atan() + x.erf() + x.sinh(),
    "rounding": lambda x, _: (3 * x).floor() + (3 * x).ceil() + (3 * x).round() + x.sign() - (-x),
    "remainder": lambda x, _: torch.remainder(x, 0.7) + torch.div(x, 0.3, rounding_mode="floor"),
    "minimum": lambda x, _: torch.minimum(x, x * 2) + torch.maximum(x, torch.tensor(0.1)),
    "lerp": lambda x, _: torch.lerp(x, x.exp(), 0.3) + torch.addcmul(x, x, x.sin(), value=0.5),
    "addcdiv": lambda x, _: torch.addcdiv(x, x, x.abs() + 1),
    "where": lambda x, _: torch.where(x > 0, x, -x) + torch.where(x > 0, x, 0.5) + torch.where(x < 0, 1.0, x),
    "masked_fill": lambda x, _: x.masked_fill(x > 1, 0.0),
    "comparisons": lambda x, _: torch.stack([x >= 0, x <= 0.5, x == x, x != 1, x.abs() < 1], -1),
    "logic": lambda x, _: ~(x > 0) & (x > -1) | (x < -1) ^ torch.logical_not(x > 2),
    "casts": lambda x, _: (x > 0).float() + (3 * x).int() + (3 * x).to(torch.int64) / 2,
    "bool sum": lambda x, _: (x > 0).sum(-1),
    "int arithmetic": lambda x, _: (3 * x).long() * 2 + 1,
}


def test_an_operation_without_a_translation_is_made_of_simpler_ones() -> None:
    module = Apply(lambda x, m: F.cosine_similarity(x, m.w, dim=-1), w=weights(6))
    assert "ReduceL2" in op_types(assert_streams(module, torch.randn(2, 5, 6)))


def in_tens(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Ten at a time: tracing is what takes the time, and a failure names the output."""
    every = list(names)
    return [tuple(every[i : i + 10]) for i in range(0, len(every), 10)]


@pytest.mark.parametrize("names", in_tens(ELEMENTWISE), ids=" ".join)
def test_elementwise_operations_equal_torch(names: tuple[str, ...]) -> None:
    module = Apply(lambda x, m: {name: ELEMENTWISE[name](x, m) for name in names})
    assert_streams(module, torch.randn(2, 5, 6))


SHAPES: dict[str, Callable[[Tensor, Any], Any]] = {
    "softmax": lambda x, _: x.softmax(-1) + x.log_softmax(-1),
    "transposed softmax": lambda x, _: x.transpose(1, 2).softmax(1).transpose(1, 2),
    "mean sum": lambda x, _: x.mean(-1) + x.sum(-1) + x.amax(-1) + x.amin(-1) + x.prod(-1),
    "keepdim": lambda x, _: x - x.mean(-1, keepdim=True),
    "std var": lambda x, _: x.std(-1) + x.var(-1, unbiased=False) + x.logsumexp(-1),
    "norms": lambda x, _: (F.normalize(x, dim=-1), x.norm(dim=-1), x.norm(p=1, dim=-1)),
    "max": lambda x, _: (*x.max(-1), x.argmin(-1), x.min(-1).values, x.argmax(-1, keepdim=True)),
    "topk": lambda x, _: tuple(x.topk(2)),
    "cumsum": lambda x, _: x.cumsum(-1),
    "one_hot": lambda x, _: F.one_hot(x.argmax(-1), 6),
    "cat": lambda x, _: torch.cat([x, x.exp(), x[..., :2]], -1),
    "cat constant": lambda x, _: torch.cat([x, torch.ones(*x.shape[:2], 2), x], -1),
    "stack": lambda x, _: torch.stack([x, -x], 2).sum(2) + torch.stack([x, -x], -1)[..., 1],
    "split": lambda x, _: torch.cat(x.split([1, 3, 2], -1)[::-1], -1),
    "chunk": lambda x, _: x.chunk(3, -1)[1] * x.chunk(2, -1)[0][..., :2],
    "unbind": lambda x, _: sum(x.unbind(-1)),
    "select": lambda x, _: x[..., 2] - x[..., -1],
    "strided slice": lambda x, _: x[..., 1::2],
    "index": lambda x, _: x[..., [4, 0, -1]],
    "index_select": lambda x, _: x.index_select(-1, torch.tensor([5, 1])),
    "flip": lambda x, _: x.flip(-1),
    "unsqueeze": lambda x, _: (x.unsqueeze(-1) * x.unsqueeze(-2)).sum(-1),
    "squeeze": lambda x, _: x.mean(-1, keepdim=True).squeeze(-1),
    "swap": lambda x, _: x.permute(2, 0, 1).exp().permute(1, 2, 0),
    "swapped operand": lambda x, _: x + x.transpose(1, 2).exp().transpose(1, 2),
    "reshape": lambda x, _: x.reshape(*x.shape[:2], 2, 3).transpose(2, 3).flatten(2),
    "unflatten": lambda x, _: x.unflatten(-1, (3, 2)).mean(-1),
    "channels first": lambda x, _: x.transpose(1, 2).unflatten(1, (2, 3)).sum(1).transpose(1, 2),
    "merge": lambda x, _: x.reshape(-1, 6).exp().view(x.shape[0], x.shape[1], 6),
    "merge time first": lambda x, _: (
        x.transpose(0, 1).reshape(-1, 2, 3).sum(1).view(x.shape[1], x.shape[0], 3).transpose(0, 1)
    ),
    "expand": lambda x, _: x[..., :1].expand(-1, -1, 6) * x,
    "expand alone": lambda x, _: x[..., :1].expand(-1, -1, 4),
    "expand more": lambda x, _: x.unsqueeze(2).expand(-1, -1, 3, -1).sum(2),
    "repeat": lambda x, _: x.repeat(1, 1, 2),
    "pad": lambda x, _: F.pad(x, (1, 2)) + F.pad(x, (3, 0), value=1.5),
    "reflect": lambda x, _: F.pad(x, (2, 3), mode="reflect"),
    "replicate": lambda x, _: F.pad(x, (2, 3), mode="replicate"),
    "like": lambda x, _: x + torch.zeros_like(x) + x.new_ones(6) + torch.full_like(x, 2.0),
    "constants": lambda x, _: x * torch.arange(6) + torch.linspace(0, 1, 6).exp(),
    "matmul data": lambda x, _: (x.unsqueeze(-1) @ x.unsqueeze(-2)) @ x.unsqueeze(-1),
}


@pytest.mark.parametrize("names", in_tens(SHAPES), ids=" ".join)
def test_operations_on_features_equal_torch(names: tuple[str, ...]) -> None:
    module = Apply(lambda x, m: {name: SHAPES[name](x, m) for name in names})
    assert_streams(module, torch.randn(2, 5, 6))


def test_a_reduction_keeps_rank_where_it_is_asked_to() -> None:
    lifted = assert_streams(Apply(lambda x, _: x.amax((2, 3), keepdim=True)), torch.randn(2, 5, 4, 3))
    assert lifted.spec.outputs[0].shape == ("time", "slot", 1, 1)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 3),
    "linear without bias": lambda: nn.Linear(6, 1, bias=False),
    "layer_norm": lambda: nn.LayerNorm(6),
    "layer_norm plain": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "layer_norm weight": lambda: nn.LayerNorm(6, bias=False),
    "rms_norm": lambda: nn.RMSNorm(6),
    "prelu": lambda: nn.PReLU(),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.AlphaDropout(0.5)),
    "residual": lambda: Apply(lambda x, m: x + m.a(x).relu() * m.b(x), a=nn.Linear(6, 6), b=nn.Linear(6, 1)),
    "batch_norm": lambda: Apply(lambda x, m: m.n(x.transpose(1, 2)).transpose(1, 2), n=batch_norm(6)),
    "batch_norm merged": lambda: Apply(lambda x, m: m.n(x.reshape(-1, 6)).view(x.shape), n=batch_norm(6)),
    "group_norm": lambda: Apply(
        lambda x, m: m.n(x.reshape(-1, 6)).view(x.shape), n=nn.GroupNorm(2, 6)
    ),
    "group_norm wide": lambda: Apply(
        lambda x, m: m.n(x.reshape(-1, 2, 3)).view(x.shape), n=nn.GroupNorm(1, 2)
    ),
    "instance_norm": lambda: Apply(
        lambda x, m: m.n(x.reshape(-1, 2, 3)).view(x.shape), n=nn.InstanceNorm1d(2, affine=True)
    ),
    "matmul": lambda: Apply(lambda x, m: x @ m.w + x @ m.v, w=weights(6, 3), v=weights(6, 1)),
    "matvec": lambda: Apply(lambda x, m: x @ m.w, w=weights(6)),
    "constant matmul": lambda: Apply(lambda x, m: (m.w @ x.transpose(1, 2)).transpose(1, 2), w=weights(3, 6)),
    "einsum": lambda: Apply(lambda x, m: torch.einsum("btf,gf->btg", x, m.w), w=weights(3, 6)),
    "einsum two": lambda: Apply(lambda x, m: torch.einsum("btf,fgh->bthg", x, m.w), w=weights(6, 3, 2)),
    "einsum of groups": lambda: Apply(
        lambda x, m: torch.einsum("btgi,gih->btgh", x.unflatten(2, (2, 3)), m.w).flatten(2),
        w=weights(2, 3, 4),
    ),
    "einsum of heads": lambda: Apply(
        lambda x, m: torch.einsum("...hd,hod->...ho", x.unflatten(-1, (2, 3)), m.w).flatten(-2),
        w=weights(2, 4, 3),
    ),
    "einsum of data": lambda: Apply(lambda x, _: torch.einsum("bti,btj->btij", x, x.tanh()).flatten(2)),
    "einsum of three": lambda: Apply(
        lambda x, m: torch.einsum("bti,btj,ijk->btk", x, x.sigmoid(), m.w), w=weights(6, 6, 2)
    ),
    "einsum that sums": lambda: Apply(lambda x, _: torch.einsum("btgi->btg", x.unflatten(2, (2, 3)))),
    "einsum that broadcasts": lambda: Apply(
        lambda x, m: torch.einsum("...i,...ij->...j", x, m.w), w=weights(1, 1, 6, 3)
    ),
    "matrices for groups": lambda: Apply(
        lambda x, m: (x.unflatten(2, (2, 1, 3)) @ m.w).flatten(2), w=weights(2, 3, 4)
    ),
    "matrices for groups, from the left": lambda: Apply(
        lambda x, m: (m.w @ x.unflatten(2, (2, 3, 1))).flatten(2), w=weights(2, 4, 3)
    ),
    "pooled features": lambda: Apply(lambda x, _: F.max_pool2d(x.unflatten(2, (2, 3)), (1, 2)).flatten(2)),
    "written features": lambda: Apply(written),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)),
    "addmm": lambda: Apply(
        lambda x, m: torch.addmm(m.b, x.reshape(-1, 6), m.w).view(x.shape[0], -1, 3),
        w=weights(6, 3), b=weights(3),
    ),
    "per-frame conv": lambda: Apply(
        lambda x, m: m.c(x.reshape(-1, 2, 3)).flatten(1).view(x.shape[0], x.shape[1], -1),
        c=nn.Conv1d(2, 4, 2, stride=1, padding=1),
    ),
    "per-frame conv2d": lambda: Apply(
        lambda x, m: m.c(x.reshape(-1, 1, 2, 3)).mean((2, 3)).view(x.shape[0], x.shape[1], -1),
        c=nn.Conv2d(1, 4, 2),
    ),
    "per-frame pools": lambda: Apply(
        lambda x, m: (
            F.max_pool1d(x.reshape(-1, 2, 3), 2, 1) + F.avg_pool1d(x.reshape(-1, 2, 3), 2, 1)
            + F.adaptive_avg_pool1d(x.reshape(-1, 2, 3), 1)
        ).view(x.shape[0], x.shape[1], 2, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("names", in_tens(LAYERS), ids=" ".join)
def test_layers_equal_torch(names: tuple[str, ...]) -> None:
    torch.manual_seed(2)
    layers = nn.ModuleList(LAYERS[name]() for name in names)
    module = Apply(
        lambda x, m: {name: layer(x) for name, layer in zip(names, m.layers, strict=True)}, layers=layers
    )
    assert_streams(module, torch.randn(2, 5, 6))


def test_an_operation_in_a_loop_over_time_is_written_once() -> None:
    def forward(x: Tensor, m: Any) -> Tensor:
        return torch.stack([m.f(x[:, t]).tanh() * 2 for t in range(x.shape[1])], 1)

    lifted = assert_streams(Apply(forward, f=nn.Linear(6, 3)), torch.randn(2, 5, 6))
    assert op_types(lifted) == ["MatMul", "Add", "Tanh", "Mul"]


def test_per_frame_layers_inside_a_loop_over_time() -> None:
    def forward(x: Tensor, m: Any) -> Tensor:
        frames = [m.c(frame.unsqueeze(1)).amax(1) for frame in x.unbind(1)]
        return torch.stack([F.group_norm(f, 1) for f in frames], dim=1)

    assert_streams(Apply(forward, c=nn.Conv1d(1, 3, 3)), torch.randn(2, 5, 6))


def test_several_inputs_and_outputs_are_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 4)
            self.head = nn.Linear(10, 3)

        def forward(self, audio: Tensor, tokens: Tensor) -> dict[str, Any]:
            both = torch.cat([audio, self.words(tokens)], -1)
            return {"scores": self.head(both), "more": (audio * 2, tokens + 1)}

    example = {"tokens": torch.randint(0, 20, (2, 5)), "audio": torch.randn(2, 5, 6)}
    lifted = assert_streams(Two(), example)
    assert {t.name: (t.dtype, t.shape) for t in lifted.spec.inputs} == {
        "tokens": ("int64", ("time", "slot")),
        "audio": ("float32", ("time", "slot", 6)),
    }
    assert [t.name for t in lifted.spec.outputs] == ["scores", "more.0", "more.1"]
    assert [t.dtype for t in lifted.spec.outputs] == ["float32", "float32", "int64"]


def test_outputs_of_a_tuple_are_counted_and_may_be_named() -> None:
    module = Apply(lambda x, _: (x + 1, [x * 2, x * 3]))
    assert [t.name for t in lift(module, torch.randn(2, 5, 6)).spec.outputs] == ["y0", "y1.0", "y1.1"]
    named = lift(module, torch.randn(2, 5, 6), output_names=["a", "b", "c"])
    assert [t.name for t in named.spec.outputs] == ["a", "b", "c"]


def test_an_output_that_is_an_input_or_comes_twice_is_still_given() -> None:
    lifted = assert_streams(Apply(lambda x, _: (x, x * 2, x * 2)), torch.randn(2, 5, 6))
    assert sorted(op_types(lifted)) == ["Identity", "Identity", "Mul"]


def test_integer_tokens_of_a_smaller_type() -> None:
    lifted = assert_streams(nn.Embedding(9, 4), torch.randint(0, 9, (2, 5), dtype=torch.int32))
    assert lifted.spec.inputs[0].dtype == "int32"


def test_channels_and_time_last() -> None:
    module = Apply(lambda x, m: m.n(x) * 2, n=batch_norm(6))
    lifted = assert_streams(module, torch.randn(2, 6, 5), time_axis=2)
    assert lifted.spec.inputs[0].shape == ("time", "slot", 6)
    assert op_types(lifted) == ["Mul", "Add", "Mul"]  # no Transpose: constants take the order of the data
