"""Attention over the last ticks, against torch's own under a mask, and as a stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runnel.errors import ExportError, NotStreamableError
from runnel_export.lift.lift import lift
from runnel_export.nn import WindowAttention
from tests.export.stepping import Apply, assert_streams, op_types
from tests.export.streaming import assert_equal_to_torch


def made(width: int = 6, heads: int = 2, window: int = 4, bias: bool = True) -> WindowAttention:
    torch.manual_seed(3)
    module = WindowAttention(width, heads, window, bias)
    nn.init.normal_(module.distance)
    return module.double()


def banded(module: WindowAttention, x: Tensor) -> Tensor:
    """torch's attention over the whole sequence, with a mask: a band, and the bias of each distance in it."""
    batch, ticks, width = x.shape
    heads, window = module.num_heads, module.window

    def split(v: Tensor) -> Tensor:
        return v.view(batch, ticks, heads, -1).transpose(1, 2)

    distance = torch.arange(ticks)[:, None] - torch.arange(ticks)
    mask = torch.full((heads, ticks, ticks), -torch.inf, dtype=x.dtype)
    for j in range(min(window, ticks)):
        mask[:, distance == j] = module.distance[:, window - 1 - j, None]
    k, v = module.key_value(x).chunk(2, -1)
    y = F.scaled_dot_product_attention(split(module.query(x)), split(k), split(v), attn_mask=mask)
    return module.out(y.transpose(1, 2).reshape(batch, ticks, width))


@pytest.mark.parametrize(
    ("window", "heads", "bias"), [(1, 1, True), (2, 3, False), (5, 2, True), (40, 6, True)]
)
def test_it_is_torchs_attention_within_a_band(window: int, heads: int, bias: bool) -> None:
    module = made(6, heads, window, bias)
    x = torch.randn(2, 17, 6, dtype=torch.float64)
    torch.testing.assert_close(module(x)[0], banded(module, x))


def test_with_a_window_as_long_as_the_sequence_it_is_nn_multihead_attention() -> None:
    module = made(6, 2, 12)
    nn.init.zeros_(module.distance)
    theirs = nn.MultiheadAttention(6, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([module.query.weight, module.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([module.query.bias, module.key_value.bias]))
        theirs.out_proj.load_state_dict(module.out.state_dict())
    x = torch.randn(3, 12, 6, dtype=torch.float64)
    later = torch.ones(12, 12, dtype=torch.bool).triu(1)
    torch.testing.assert_close(module(x)[0], theirs(x, x, x, attn_mask=later, need_weights=False)[0])


@pytest.mark.parametrize("cuts", [[4, 13], [1] * 17, [17], [2, 1, 14]])
def test_a_sequence_may_be_given_in_parts(cuts: list[int]) -> None:
    module = made(window=5)
    x = torch.randn(2, 17, 6, dtype=torch.float64)
    state, parts = None, []
    for part in x.split(cuts, 1):
        y, state = module(part, state)
        assert state.shape == (2, 4, 13)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), module(x)[0])


def test_gradients() -> None:
    module = made(4, 2, 3)
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: module(v)[0], (x,))
    names = [n for n, _ in module.named_parameters()]
    assert "distance" in names

    def of_weights(*weights: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))[0]
        return y

    assert torch.autograd.gradcheck(of_weights, [p.detach().requires_grad_() for p in module.parameters()])


@pytest.mark.parametrize("window", [1, 2, 6, 12, 20])
def test_as_a_stream_its_rows_are_state(window: int) -> None:
    module = made(window=window).float()
    lifted = assert_streams(Apply(lambda x, m: x + m.a(x)[0], a=module), torch.randn(2, 9, 6))
    assert lifted.spec.any_ticks
    shapes = [(s.input, s.shape) for s in lifted.spec.states]
    assert shapes == ([("a.cache", (window - 1, "slot", 13))] if window > 1 else [])
    assert op_types(lifted).count("Gather") == (1 if window > 1 else 0)


def test_windows_of_a_sequence_in_general() -> None:
    """`unfold` along time is what it is made of, and what anybody may use."""
    x = torch.randn(2, 9, 3)
    assert_streams(Apply(lambda x, m: F.pad(x, (0, 0, 4, 0)).unfold(1, 5, 1).amax(-1)), x)
    assert_streams(Apply(lambda x, m: F.pad(x, (0, 0, 6, 0))[:, :-2].unfold(1, 5, 1).mean(-1)), x)  # late
    assert_streams(Apply(lambda x, m: F.pad(x, (3, 0)).unfold(2, 4, 1).flatten(1, 1)), x.mT, time_axis=2)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, m: x.unfold(1, 3, 1).mean(-1),
        lambda x, m: F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).mean(-1),
        lambda x, m: F.pad(x, (0, 0, 3, 0)).unfold(1, 4, 2).mean(-1),
    ],
)
def test_windows_with_a_delay_or_a_hop(function: Callable[..., Tensor], tmp_path: Path) -> None:
    assert_equal_to_torch(Apply(function), torch.randn(1, 9, 3), tmp_path)


def test_windows_of_features_are_refused() -> None:
    with pytest.raises(ExportError, match="another axis than time"):
        lift(Apply(lambda x, m: x.unfold(2, 2, 1).mean(-1)), torch.randn(2, 9, 3))


def test_bad_arguments() -> None:
    for bad in (lambda: WindowAttention(6, 4, 3), lambda: WindowAttention(6, 2, 0)):
        with pytest.raises(ValueError, match="multiple of num_heads"):
            bad()
    with pytest.raises(ValueError, match="takes"):
        WindowAttention(6, 2, 3)(torch.zeros(2, 5, 4))


def test_attention_over_everything_is_refused_and_this_is_named() -> None:
    torchs = Apply(lambda x, m: m.a(x, x, x)[0], a=nn.MultiheadAttention(6, 2, batch_first=True))
    with pytest.raises(NotStreamableError, match=r"runnel_export\.nn\.WindowAttention"):
        lift(torchs, torch.randn(2, 9, 6))
