"""Mark the recurrence of a `runnel_export.nn` layer in a trace, so that the exporter finds one tick of it.

torch.export unrolls a Python loop over time, and its graph does not show that each tick repeats the one
before. So while a module is being lifted, such a layer does not loop. Either it names the ONNX operator that
computes it (`layer`), or it runs its tick once, between marks:

- `tick` takes one tick out of the sequence;
- `before` is a state before that tick;
- `over` turns the tick's output and next states into a sequence and the last states;
- `shown` names a value for a probe.

The marks are torch operators without a kernel, so they exist in a trace only; `lift/ops/marked.py` translates
them. Outside the lifting, torch and other exporters see the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, library

NAMESPACE = "runnel::"
# Lengths of the sequences whose loop is replaced by one marked tick. Empty while nothing is being lifted.
_LENGTHS: ContextVar[tuple[int, ...]] = ContextVar("_LENGTHS", default=())


# The shape of each operator's result, which is all that a trace needs.


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
    """Make layers emit marks in this context. `ticks`: length of the sequences; None if a call is one step.

    A sequence as long as the `batch` has its axes exchanged. It gets marks too, so that it is refused later.
    """
    token = _LENGTHS.set((1, batch) if ticks is None else (1, batch, ticks))
    try:
        yield
    finally:
        _LENGTHS.reset(token)


def lifted() -> bool:
    """Whether a module is being lifted, so that a layer may name its ONNX operator."""
    return bool(_lengths())


def written_once(x: Tensor) -> bool:
    """Whether one marked tick replaces the loop over (batch, time, ...)."""
    return x.shape[1] in _lengths()


def _lengths() -> tuple[int, ...]:
    # torch.compile cannot read a context variable, and a compiled module is never the one being lifted.
    return () if torch.compiler.is_dynamo_compiling() else _LENGTHS.get()


def tick(x: Tensor) -> Tensor:
    """Return one tick, (batch, ...), of a sequence, (batch, time, ...)."""
    out: Tensor = torch.ops.runnel.tick(x)
    return out


def before(start: Tensor, x: Tensor, name: str) -> Tensor:
    """Return a state (batch, width) before a tick of x (batch, time, ...). Before the first it is `start`."""
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
    """Return (the outputs of all ticks, the last states): y (batch, ...) becomes (batch, time, ...).

    `before`, `after`: the states before and after the tick. `names`: the names of the states.
    `number`: the layer's number in its module.
    """
    out, *ends = torch.ops.runnel.over(y, list(before), list(after), ticks, list(names), number)
    return out, tuple(ends)


def shown(letter: str, value: Tensor) -> Tensor:
    """Return the value unchanged. A probe shows it under this letter: see `Recurrent.show`."""
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
    """Return (output, final states) of a layer that is one ONNX operator; for the kinds see `ops.marked`.

    `weights`: W, R and their biases, if any, with the gates in torch's order. `peephole`: (3, hidden), with
    the rows i, f, o. `number`: the layer's number in its module.
    """
    y, *ends = torch.ops.runnel.layer(kind, x, list(start), list(weights), peephole, number)
    return y, tuple(ends)
