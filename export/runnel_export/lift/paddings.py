"""How much forward pads at other lengths: the trace has the numbers of one length only.

Many models pad a sequence up to a multiple of their strides. So forward is run at several lengths, and the
paddings that it calls are counted off against those of the trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode

from ..dry_run import copied
from .trace import Prepared, Trace, feed_at

Widths = tuple[int, ...]  # before and behind, of the last axis first
_CALLED = ("constant_pad_nd", "reflection_pad", "replication_pad")  # what torch runs
_FOLLOWING = 6  # lengths that follow each other
_APART = 8  # lengths that are a part of the stride apart
_BATCH = 2


class _Listener(TorchDispatchMode):  # type: ignore[no-untyped-call]  # (torch's)
    """Notes the widths of each padding that torch runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.heard: list[Widths] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _is_padding(func):
            self.heard.append(tuple(args[1]))
        return func(*args, **(kwargs or {}))


def _is_padding(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.name.split("::")[1].startswith(
        _CALLED
    )


@dataclass(frozen=True)
class Padded:
    """`widths`: the widths of each padding of a trace, by the number of ticks; empty if they are not known.

    `least`: shorter sequences are padded in another way than the trace's, if they are at all.
    """

    widths: Mapping[str, Mapping[int, Widths]]
    least: int = 1


def paddings(module: nn.Module, prepared: Prepared, traces: Sequence[Trace], stride: int) -> list[Padded]:
    """What forward pads in each trace, and at other lengths. `stride`: of the whole module, about."""
    calls = [_calls(trace.nodes) for trace in traces]
    number = len(calls[0])
    if not number or any(len(c) != number for c in calls):
        return [Padded({}) for _ in traces]
    heard = {ticks: _heard(module, prepared, ticks) for ticks in _lengths(prepared, stride)}
    others = [ticks for ticks, widths in heard.items() if len(widths) != number]
    alike = {ticks: widths for ticks, widths in heard.items() if ticks > max(others, default=0)}
    if not alike:
        return [Padded({}) for _ in traces]
    least = min(alike) if others else 1
    return [
        Padded({c: {t: widths[i] for t, widths in alike.items()} for i, c in enumerate(named)}, least)
        for named in calls
    ]


def _calls(nodes: Sequence[Node]) -> list[str]:
    """The names of the paddings in a trace."""
    named = [(n.name, str(n.target)) for n in nodes]
    return [
        name for name, op in named if op == "aten.pad.default" or op.removeprefix("aten.").startswith(_CALLED)
    ]


def _lengths(prepared: Prepared, stride: int) -> list[int]:
    lengths = prepared.takes
    traced = [ticks for _, ticks in prepared.sizes]
    first = max(traced)
    wanted = [lengths.least * 2**i for i in range((min(traced) // lengths.least).bit_length())]
    wanted += [first + i * lengths.unit for i in range(_FOLLOWING)]
    wanted += [first + (i * i + 5 * i) * stride // 16 for i in range(1, _APART)]  # (of no common step)
    return sorted({*traced, *map(lengths.up, wanted)})


def _heard(module: nn.Module, prepared: Prepared, ticks: int) -> list[Widths]:
    """What forward pads for a sequence of so many ticks; nothing if it fails."""
    other, listener = copied(module), _Listener()
    with torch.no_grad(), listener:
        try:
            other(**feed_at(module, prepared, ticks, _BATCH))
        except Exception:  # the user's code raises of every kind
            return []
    return listener.heard
