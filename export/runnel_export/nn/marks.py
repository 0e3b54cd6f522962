"""What a layer of `runnel_export.nn` tells the exporter: this is a recurrence, and here is one tick of it.

A Python loop over time is unrolled by torch.export, and in what comes out nothing says any more which
tick repeats the last one. So while a module is being lifted, such a layer does not loop. It either names
the ONNX operator that computes it (`layer`), or runs its tick once, between marks: `tick` takes a tick of
the sequence, `before` is a state as that tick finds it, and `over` makes of the tick's output and of its
next states a sequence and the last states. What a value is called, for a probe, says `shown`. They are
operators of torch without a kernel: they exist in a trace only, and `ops.marked` says what they become. Every
other exporter, and torch itself, sees the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, library

NAMESPACE = "runnel::"
# The lengths of sequences that are run over by one tick written once; empty where nothing is being lifted.
_LENGTHS: ContextVar[tuple[int, ...]] = ContextVar("_LENGTHS", default=())


# What each one's result looks like; that is all there is to know of it in a trace.


def _ticked(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], *x.shape[2:]))


def _found(start: Tensor, x: Tensor, name: str) -> Tensor:
    return torch.empty_like(start)


def _over(
    y: Tensor,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    ticks: int,
    names: Sequence[str],
    number: int,
) -> list[Tensor]:
    return [y.new_empty((y.shape[0], ticks, *y.shape[1:])), *(torch.empty_like(s) for s in after)]


def _named(value: Tensor, letter: str) -> Tensor:
    return torch.empty_like(value)


def _layered(
    kind: str,
    x: Tensor,
    start: Sequence[Tensor],
    weights: Sequence[Tensor],
    peephole: Tensor | None,
    number: int,
) -> list[Tensor]:
    return [x.new_empty((*x.shape[:2], start[0].shape[-1])), *(torch.empty_like(s) for s in start)]


for _name, _schema, _shape in (
    ("tick", "(Tensor x) -> Tensor", _ticked),
    ("before", "(Tensor start, Tensor x, str name) -> Tensor", _found),
    (
        "over",
        "(Tensor y, Tensor[] before, Tensor[] after, int ticks, str[] names, int number) -> Tensor[]",
        _over,
    ),
    ("shown", "(Tensor value, str letter) -> Tensor", _named),
    (
        "layer",
        "(str kind, Tensor x, Tensor[] start, Tensor[] weights, Tensor? peephole, int number) -> Tensor[]",
        _layered,
    ),
):
    library.define(NAMESPACE + _name, _schema)
    library.register_fake(NAMESPACE + _name, _shape)


@contextmanager
def lifting(batch: int, ticks: int | None) -> Iterator[None]:
    """Within: layers make marks. The stream's sequences have `ticks`; None where each call is one step.

    A sequence as long as the `batch` is one whose axes were exchanged: marked too, so that it is refused.
    """
    token = _LENGTHS.set((1, batch) if ticks is None else (1, batch, ticks))
    try:
        yield
    finally:
        _LENGTHS.reset(token)


def lifted() -> bool:
    """Whether a module is being lifted, so that a layer may say which operator it is."""
    return bool(_lengths())


def written_once(x: Tensor) -> bool:
    """Whether one tick, between marks, is to stand for all of (batch, time, ...)."""
    return x.shape[1] in _lengths()


def _lengths() -> tuple[int, ...]:
    # torch.compile cannot read a context variable, and what it makes is never what is being lifted.
    return () if torch.compiler.is_dynamo_compiling() else _LENGTHS.get()


def tick(x: Tensor) -> Tensor:
    """(batch, ...): one tick of (batch, time, ...)."""
    out: Tensor = torch.ops.runnel.tick(x)
    return out


def before(start: Tensor, x: Tensor, name: str) -> Tensor:
    """A state (batch, width) as a tick of x (batch, time, ...) finds it, which is `start` at the first."""
    out: Tensor = torch.ops.runnel.before(start, x, name)
    return out


def over(
    y: Tensor,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    ticks: int,
    names: Sequence[str],
    number: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(what every tick gave, the last states): y (batch, ...) becomes (batch, time, ...).

    `before`: the states that the tick found; `after`: as it left them; `names`: what they are called.
    `number`: which layer of its module it is.
    """
    out, *ends = torch.ops.runnel.over(y, list(before), list(after), ticks, list(names), number)
    return out, tuple(ends)


def shown(letter: str, value: Tensor) -> Tensor:
    """The value itself; a probe shows it under this letter: see `Recurrent.show`."""
    if not lifted():
        return value
    out: Tensor = torch.ops.runnel.shown(value, letter)
    return out


def layer(
    kind: str,
    x: Tensor,
    start: Sequence[Tensor],
    weights: Sequence[Tensor],
    number: int,
    peephole: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(output, final states) of a layer that is one ONNX operator; see `ops.marked` for the kinds.

    `weights` are W, R and their biases, if any, with the gates in torch's order; `peephole` (3, hidden)
    has the rows i, f, o. `number`: which layer of its module it is.
    """
    y, *ends = torch.ops.runnel.layer(kind, x, list(start), list(weights), peephole, number)
    return y, tuple(ends)
