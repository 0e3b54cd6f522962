"""Operations that no stream can do, each with its reason."""

from __future__ import annotations

from typing import Any, NoReturn

from ..lowering import Lowering
from ..writer import EXPLICIT
from .linear import ATTENTION, INSTEAD
from .registry import handles


@handles(
    "aten::scaled_dot_product_attention",
    "aten::_native_multi_head_attention",
    "aten::_transformer_encoder_layer_fwd",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    lazy=True,
)
def attention(low: Lowering, *_: Any) -> NoReturn:
    raise low.refusal(ATTENTION, INSTEAD)


@handles(
    "aten::roll",
    "aten::sort",
    "aten::cummax",
    "aten::cumprod",
    "aten::fft_fft",
    "aten::_fft_r2c",
    lazy=True,
)
def over_an_axis(low: Lowering, *_: Any) -> NoReturn:
    raise low.refusal("it may mix ticks and has no translation", "a causal convolution, or " + EXPLICIT)


@handles(
    "aten::bernoulli",
    "aten::rand_like",
    "aten::randn_like",
    "aten::multinomial",
    "aten::rrelu",
    lazy=True,
)
def random(low: Lowering, *_: Any) -> NoReturn:
    raise low.refusal("the result is random", "a step model computes the same for the same input and state")


@handles("aten::native_dropout")
def dropout(low: Lowering, *_: Any) -> NoReturn:
    raise low.refusal("dropout that is on in eval mode", "nn.Dropout, or F.dropout(x, p, self.training)")
