"""Along the time axis: single ticks, padding, cutting, and what both make of a sequence or a convolution."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..lowering import Lowering, State
from ..values import BATCH, HIDDEN, TIME, Data, Filter, Span, Value


def take_tick(v: Value, axis: int, tick: int, keep: bool) -> Value:
    """One time slice; `keep` leaves an axis of size 1. No node: see `Value.tick`."""
    order = tuple(HIDDEN if o == axis else o for o in v.order)
    axes = tuple(1 if i == axis else a for i, a in enumerate(v.axes))
    taken = replace(v, axes=axes, order=order, tick=tick)
    return taken if keep else Lowering.forget(taken, axis)


def cut(low: Lowering, x: Span, start: int, length: int, step: int) -> Span:
    if step != 1:
        raise low.refusal(
            f"takes every {step}th tick, which changes the rate", "keep every tick; drop some afterwards"
        )
    return replace(x, offset=x.offset + start, length=length)


def widen_span(low: Lowering, x: Data, dim: int, left: int, right: int, fill: float) -> Data:
    """Padding along time."""
    span = x if isinstance(x, Span) else Span(low.value(x), dim, 0, low.size(TIME))
    ticks = low.size(TIME)
    if span.filter:
        raise low.span_refusal(span)
    if left < 0:
        span, left = replace(span, offset=span.offset - left, length=span.length + left), 0
    if right < 0:
        span, right = replace(span, length=span.length + right), 0
    cut_left, cut_right = span.offset > 0, span.offset + span.length < ticks
    if (left and cut_left) or (right and cut_right):
        raise low.refusal(
            "shifts the sequence against time: ticks are cut off where padding is put on",
            "a stream can be delayed (pad on the left, cut on the right), never advanced",
        )
    if span.fill not in (None, fill):
        raise low.untranslated(f"padding with {span.fill} and then with {fill}")
    return settle(low, replace(span, offset=span.offset - left, length=span.length + left + right, fill=fill))


def settle(low: Lowering, span: Span) -> Data:
    """The Span as a Value where it has become one: the sequence's length, and nothing of the future."""
    ticks = low.size(TIME)
    if span.length == ticks and span.offset <= 0:
        return _written(low, span)
    if span.length == ticks and span.filter:
        raise low.span_refusal(span)
    if span.length == 1 and 0 <= span.offset < ticks:  # one tick of it
        whole = _written(low, replace(span, offset=0, length=ticks))
        return take_tick(whole, span.axis, span.offset, keep=True)
    return span


def _written(low: Lowering, span: Span) -> Value:
    """A sequence delayed by -offset ticks, or a causal convolution of it."""
    delay = -span.offset
    if span.filter is None:
        return span.base if delay == 0 else _delayed(low, span.base, span.axis, delay, span.fill or 0.0)
    return _causal(low, span.base, span.axis, span.filter, delay, span.fill or 0.0)


def with_past(low: Lowering, v: Value, axis: int, past: int, fill: float, path: str) -> str:
    """`v` with `past` ticks before it, which are state. Returns the longer sequence's name."""
    at = v.at(axis)
    name = low.graph.fresh(f"{path}.cache" if path else "cache")
    dims = tuple(past if i == axis else "slot" if a == BATCH else low.size(a) for i, a in enumerate(v.axes))
    dims = tuple(dims[o] for o in v.order)
    row = torch.full([d for d in dims if isinstance(d, int)], fill, dtype=v.dtype)
    longer = low.node("Concat", name, v.name, axis=at)
    # Where a call is a window, the past goes on from the block's end: tick n is row n + past.
    ends = (low.blocks.ticks, low.blocks.ticks + past) if low.blocks else (-past, 2**62)
    last = low.node("Slice", longer, *map(low.graph.ints, (*ends, at)))
    low.states[name] = State(name, v.dtype, dims, row.numpy(), last, past=past)
    return longer


def _delayed(low: Lowering, v: Value, axis: int, delay: int, fill: float) -> Value:
    if BATCH not in v.axes:
        raise low.untranslated("a delay of merged batch and time")
    longer = with_past(low, v, axis, delay, fill, low.path or "delay")
    ends = (low.graph.ints(0), low.graph.ints(-delay), low.graph.ints(v.at(axis)))
    return replace(v, name=low.node("Slice", longer, *ends))


def _causal(low: Lowering, v: Value, axis: int, filter: Filter, delay: int, fill: float) -> Value:
    low.path, path = filter.path, low.path
    v = low.arrange(v, range(len(v.axes)))  # an ONNX convolution wants (batch, channels, *spatial)
    past = filter.reach + delay
    name = v.name
    if past:
        name = with_past(low, v, axis, past, fill, filter.path)
    if delay:
        name = low.node("Slice", name, low.graph.ints(0), low.graph.ints(-delay), low.graph.ints(axis))
    out = conv_node(low, filter, name)
    low.path = path
    return Value(out, filter.axes, tuple(range(len(filter.axes))), v.dtype)


def conv_node(low: Lowering, f: Filter, name: str) -> str:
    inputs = [name, low.constant(f.weight)] + ([low.constant(f.bias)] if f.bias is not None else [])
    return low.node(
        "Conv",
        *inputs,
        dilations=f.dilation,
        group=f.groups,
        kernel_shape=tuple(f.weight.shape[2:]),
        pads=f.pads,
        strides=f.strides,
    )
