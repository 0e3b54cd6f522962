"""Normalisations: over features as they are, by running statistics as a product and a sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..lowering import Lowering
from ..values import TIME, Value
from .pointwise import add, mul
from .reduce import feature_axes, reduced
from .registry import handles


@handles("aten::layer_norm", "aten::native_layer_norm")
def layer_norm(
    low: Lowering,
    v: Value,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> Value:
    rank = len(v.axes)
    axes = feature_axes(low, v, range(rank - len(shape), rank), "a normalisation")
    v = low.arrange(v, [*[o for o in v.order if o not in axes], *axes])
    return _normalised(low, v, axes, weight if weight is not None else torch.ones(list(shape)), bias, eps)


def _normalised(
    low: Lowering, v: Value, axes: Sequence[int], weight: Tensor, bias: Tensor | None, eps: float
) -> Value:
    """LayerNormalization over the last physical axes, which `axes` are."""
    inputs = [v.name, low.constant(weight)] + ([low.constant(bias)] if bias is not None else [])
    return replace(v, name=low.node("LayerNormalization", *inputs, axis=-len(axes), epsilon=float(eps)))


@handles("aten::_native_batch_norm_legit_no_training")
def batch_norm(
    low: Lowering,
    v: Value,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Value, ...]:
    scale = (var.double() + eps).rsqrt() * (1.0 if weight is None else weight.double())
    shift = (0.0 if bias is None else bias.double()) - mean.double() * scale
    tail = [1] * (len(v.axes) - 2)
    out = mul(low, v, scale.float().reshape(-1, *tail))
    return (add(low, out, shift.float().reshape(-1, *tail)),)


@handles("aten::batch_norm")
def plain_batch_norm(
    low: Lowering,
    v: Value,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Value:
    if training or mean is None or var is None:
        batch_statistics(low)
    assert mean is not None
    assert var is not None
    return batch_norm(low, v, weight, bias, mean, var, momentum, eps)[0]


@handles(
    "aten::_native_batch_norm_legit", "aten::_native_batch_norm_legit_functional", "aten::native_batch_norm"
)
def batch_statistics(low: Lowering, *_: object) -> tuple[Value, ...]:
    raise low.refusal(
        "it normalises by the statistics of the batch, which mixes streams and all time",
        "keep running statistics (track_running_stats=True)",
    )


@handles("aten::group_norm")
def group_norm(
    low: Lowering,
    v: Value,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> Value:
    if TIME in v.axes[2:]:
        raise low.refusal("it normalises over all time", "LayerNorm over the features of each tick")
    feature_axes(low, v, range(1, len(v.axes)), "a normalisation")
    features = [low.size(a) for a in v.axes[1:]]
    v = low.canonical(v, full=True)
    lead = len(v.order) - len(features)
    total = 1
    for f in features:
        total *= f
    grouped = replace(
        v, name=low.node("Reshape", v.name, low.graph.ints(*[0] * lead, groups, total // groups))
    )
    flat = _normalised(low, grouped, [0], torch.ones(total // groups), None, eps)
    out = replace(v, name=low.node("Reshape", flat.name, low.graph.ints(*[0] * lead, *features)))
    tail = [1] * (len(v.axes) - 2)
    if weight is not None:
        out = mul(low, out, weight.reshape(-1, *tail))
    return out if bias is None else add(low, out, bias.reshape(-1, *tail))


@handles("aten::instance_norm")
def instance_norm(
    low: Lowering,
    v: Value,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    from_input: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Value:
    if not from_input and mean is not None and var is not None:
        return batch_norm(low, v, weight, bias, mean, var, momentum, eps)[0]
    if TIME in v.axes:
        raise low.refusal("it normalises over all time", "LayerNorm over the features of each tick")
    channels = v.axes[1]
    assert isinstance(channels, int)
    return group_norm(low, v, channels, weight, bias, eps)


@handles("aten::rms_norm", "aten::_fused_rms_norm")
def rms_norm(
    low: Lowering, v: Value, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Value:
    """x / sqrt(mean(x²) + eps) (https://arxiv.org/abs/1910.07467)."""
    rank = len(v.axes)
    axes = feature_axes(low, v, range(rank - len(shape), rank), "a normalisation")
    mean = reduced(low, "ReduceMean", low.pointwise("Mul", [v, v]), axes, keepdim=True)
    floor = torch.finfo(torch.float32).eps if eps is None else eps
    out = low.pointwise("Div", [v, low.pointwise("Sqrt", [low.pointwise("Add", [mean, floor])])])
    return out if weight is None else mul(low, out, weight)
