"""Run forward once on the user's example, so that a fault of the module or the example shows first."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from runnel.errors import ExportError

SHOWN = 300  # characters of a foreign error message


def rehearse(module: nn.Module, inputs: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Run a copy of `module` in eval mode. The module itself does not change.

    Raises ExportError, which names the arguments, if forward lacks one or fails on them.
    """
    name = type(module).__name__
    given = {**inputs, **state}
    missing = [p for p in _required(module) if p not in given]
    if missing:
        raise ExportError(
            f"{name}.forward needs {missing[0]!r}, which is not given. An input: example={{..., "
            f"{missing[0]!r}: tensor}} (--input {missing[0]}=float32[1,30,5]); state: "
            f"state={{{missing[0]!r}: tensor}} (--state {missing[0]}=1,1,5)"
        )
    other = copied(module)
    # Pass a copy of each tensor: forward may write into its arguments.
    feed = pytree.tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, given)
    try:
        with torch.no_grad():
            other(**feed)
    except Exception as error:  # the user's code raises of every kind
        told = without_batch(module, inputs) if not state else ""
        raise ExportError(
            told or f"{name}: forward fails on the example you gave ({described(given)}): {first_line(error)}"
        ) from error


def described(given: Mapping[str, Any]) -> str:
    """Return dtypes and shapes as text: ``x: float32 (1, 50, 3), h: float32 (1, 1, 8)``."""
    return ", ".join(f"{n}: {str(t.dtype)[6:]} {tuple(t.shape)}" for n, t in _tensors(given))


def without_batch(module: nn.Module, inputs: Mapping[str, Tensor]) -> str:
    """Return advice for an example without a batch axis; "" if it has one, or if that is uncertain.

    The axis is added in front, or second for layers with batch_first=False. Forward must then run on the
    example, on a batch of two, and on one more tick.
    """
    first = next((m for m in module.modules() if isinstance(m, nn.RNNBase)), None)
    time_first = first is not None and not first.batch_first
    batch, time = (1, 0) if time_first else (0, 1)
    # If the example has three axes, one of them is the batch, or forward takes it for the batch.
    added = {name: value.unsqueeze(batch) for name, value in inputs.items() if value.dim() in (1, 2)}
    if len(added) < len(inputs):
        return ""
    one_more = (
        {name: resample(v, axis, v.shape[axis] + 1) for name, v in added.items()} for axis in (batch, time)
    )
    if any(failure(module, given) for given in (added, *one_more)):
        return ""
    index, axes = ("[:, None]", " and time_axis=0 (--time-axis 0)") if time_first else ("[None]", "")
    return (
        f"{type(module).__name__}: the example has no batch axis: it is {described(inputs)}. "
        f"Give example{index}, that is {described(added)}{axes}"
    )


def failure(module: nn.Module, given: Mapping[str, Any]) -> str:
    """Return the error of a copy of the module on these arguments; "" if it runs."""
    feed = pytree.tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, dict(given))
    try:
        with torch.no_grad():
            copied(module)(**feed)
    except Exception as error:  # the user's code raises of every kind
        return first_line(error)
    return ""


def copied(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode. Tensors that a hook computes at each call (weight_norm) become values."""
    computed = [
        v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf
    ]
    try:
        return copy.deepcopy(module, {id(v): v.detach().clone() for v in computed}).eval()
    except (RuntimeError, TypeError) as error:
        raise ExportError(
            f"{type(module).__name__}: cannot be copied, and so not be compared with: {error}"
        ) from error


def resample(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Return the tensor with another size on one axis. Its own entries are repeated or cut off."""
    return tensor.index_select(axis, torch.arange(size, device=tensor.device) % tensor.shape[axis])


def first_line(error: Exception) -> str:
    """Return one line of text for an error that foreign code raised."""
    text = str(error).strip().split("\n")[0][:SHOWN]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _required(module: nn.Module) -> list[str]:
    return [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    else:
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
