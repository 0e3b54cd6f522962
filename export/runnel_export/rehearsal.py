"""Forward, run once on the user's own example: what fails there is not the exporter's affair."""

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
    """Run a copy of `module` in eval mode; nothing of the module changes.

    Raises ExportError that names the arguments where forward lacks one or fails on them.
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
    # No tensor twice, and none of the caller's own: forward may write into what it is given.
    feed = pytree.tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, given)
    try:
        with torch.no_grad():
            other(**feed)
    except Exception as error:  # the user's code raises of every kind
        shown = ", ".join(f"{n}: {str(t.dtype)[6:]} {tuple(t.shape)}" for n, t in _tensors(given))
        raise ExportError(
            f"{name}: forward fails on the example you gave ({shown}): {first_line(error)}"
        ) from error


def copied(module: nn.Module) -> nn.Module:
    """A copy in eval mode. What a hook computes anew at each call (weight_norm) is copied as a value."""
    computed = [
        v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf
    ]
    try:
        return copy.deepcopy(module, {id(v): v.detach().clone() for v in computed}).eval()
    except (RuntimeError, TypeError) as error:
        raise ExportError(
            f"{type(module).__name__}: cannot be copied, and so not be compared with: {error}"
        ) from error


def first_line(error: Exception) -> str:
    """An error of somebody else's code, in one line."""
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
