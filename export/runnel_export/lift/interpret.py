"""Walk the traced graph once: constants are computed, data is translated.

What a value depends on decides what happens to it: a node whose arguments are all constants is run by
torch itself; any other goes to its translation in `ops`. After each, the result's axes are checked
against the sizes that torch saw.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from runnel.errors import ExportError, RunnelError

from ..nn import marks
from . import ops
from .lowering import Lowering
from .ops import spectra
from .ops.along_time import aligned, from_the_first
from .ops.linear import ATTENTION, INSTEAD
from .ops.registry import Handler
from .timing import Timing
from .values import Carry, Complex, Data, Given, Scatter, Stack, Value, axes_of

_LAZY = (Value, Stack, Carry, Complex, Scatter, Given)


def run(low: Lowering, nodes: tuple[Node, ...], env: dict[str, Any]) -> None:
    """Add every node's result to `env`: a tensor, a kind of data, or a tuple of them."""
    for node in nodes:
        _locate(low, node)
        args = map_arg(tuple(node.args), lambda n: env[n.name])
        kwargs = map_arg(dict(node.kwargs), lambda n: env[n.name])
        env[node.name] = _evaluate(low, node, args, kwargs)
        _check(low, node, env[node.name])


def _locate(low: Lowering, node: Node) -> None:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    types = [t if isinstance(t, str) else t.__qualname__ for _, t in stack]
    # the root's own operations are named by its type alone
    low.at = node.name
    low.path, low.layer = (stack[-1][0], types[-1].rsplit(".", 1)[-1]) if stack else ("", low.layer)
    if node.target is not operator.getitem:
        low.op = str(node.target).rsplit(".", 1)[0]
    if any(t.endswith("MultiheadAttention") for t in types):
        raise low.refusal(ATTENTION, INSTEAD)


def _evaluate(low: Lowering, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target = node.target
    if target is operator.getitem:
        return _stamped(args[0][args[1]], None, node.name)
    if not isinstance(target, torch._ops.OpOverload):
        raise ExportError(f"{low.where}: it has no translation")
    name = target._schema.name
    if name in ops.IGNORED:
        return None
    short = name.split("::")[1]
    if name in ops.SHAPE_ONLY:  # only the shape of the argument matters
        like = torch.zeros(tuple(node.args[0].meta["val"].shape), dtype=node.args[0].meta["val"].dtype)  # type: ignore[union-attr]
        args = (like, *args[1:])
    if not _holds_data((args, kwargs)) and not name.startswith(marks.NAMESPACE):
        return _constant(low, target, args, kwargs, short)
    handler = ops.find(name, target._overloadname)
    if _has_complex((args, kwargs)):
        handler = Handler(partial(_on_complex, name, target._overloadname), True, spectra.rows(short))
    if handler is None:
        raise ExportError(
            f"{low.where}: the operation {name.replace('::', '.')}.{target._overloadname} has no "
            "translation; CONTRIBUTING.md says how to add one"
        )
    bound = _bound(target, args, kwargs)
    if not handler.lazy:
        bound = [_mapped(x, low.value) for x in bound]
    try:
        bound, timing = _in_time(low, handler, bound)
        return _stamped(handler.function(low, *bound), timing, node.name)
    except RunnelError:
        raise
    except Exception as error:  # a translation that met arguments it was not written for
        raise ExportError(
            f"{low.where}: a fault of the exporter ({type(error).__name__}: {error}); please report it"
        ) from error


def _constant(
    low: Lowering, target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], short: str
) -> Any:
    if torch.Tag.nondeterministic_seeded in target.tags and short not in ("dropout",):
        raise low.refusal(
            "the result is random", "a step model computes the same for the same input and state"
        )
    with torch.no_grad():
        out = target(*args, **kwargs)
    if short.startswith(("empty", "new_empty")) and isinstance(out, Tensor) and out.is_floating_point():
        out = torch.full_like(out, torch.nan)  # using it unwritten is refused: Writer.constant
    return out


def _bound(target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """All arguments in the order of the operation's schema, defaults filled in."""
    bound = []
    for i, parameter in enumerate(target._schema.arguments):
        if i < len(args):
            bound.append(args[i])
        else:
            bound.append(kwargs.get(parameter.name, parameter.default_value))
    return bound


def _on_complex(name: str, overload: str, low: Lowering, *arguments: Any) -> Any:
    return spectra.operation(low, name, overload, list(arguments))


def _has_complex(x: Any) -> bool:
    if isinstance(x, list | tuple):
        return any(map(_has_complex, x))
    return any(map(_has_complex, x.values())) if isinstance(x, dict) else isinstance(x, Complex)


def _in_time(low: Lowering, handler: Handler, bound: list[Any]) -> tuple[list[Any], Timing | None]:
    """The arguments with one timing, as the translation wants them; and that of its results."""
    values = list(_values(bound))
    if not low.whole or not values:
        return bound, None
    if handler.rows == "own":
        low.attend(values[0].timing)
        return bound, None
    if handler.rows == "all":
        values = [from_the_first(low, v) for v in values]
    values = aligned(low, values)
    low.attend(values[0].timing)
    changed = iter(values)
    bound = [_replaced(x, changed) for x in bound]
    return bound, values[0].timing


def _values(x: Any) -> Iterator[Value]:
    """The values over time among arguments."""
    if isinstance(x, list | tuple):
        for y in x:
            yield from _values(y)
    elif isinstance(x, Complex):
        yield x.parts
    elif isinstance(x, Value):
        yield x


def _replaced(x: Any, values: Iterator[Value]) -> Any:
    """The same arguments with these values."""
    if isinstance(x, list | tuple):
        return type(x)(_replaced(y, values) for y in x)
    if isinstance(x, Complex):
        return Complex(next(values))
    return next(values) if isinstance(x, Value) else x


def _stamped(x: Any, timing: Timing | None, node: str) -> Any:
    """A result with its timing; None: it has one."""
    if isinstance(x, list | tuple):
        return type(x)(_stamped(y, timing, node) for y in x)
    if isinstance(x, Stack):
        return replace(x, parts=_stamped(x.parts, timing, ""))
    if isinstance(x, Complex):
        return Complex(_stamped(x.parts, timing, node))
    if not isinstance(x, Value):
        return x
    if timing is None:
        return replace(x, node=node, shift=0)
    if timing.edge is not None:
        timing = replace(timing, edge=replace(timing.edge, fill=None))
    return replace(x, timing=timing, node=node, shift=0)


def _mapped(x: Any, change: Callable[[Data], Value]) -> Any:
    if isinstance(x, _LAZY):
        return change(x)
    if isinstance(x, list | tuple):
        return type(x)(_mapped(y, change) for y in x)
    return x


def _holds_data(x: Any) -> bool:
    if isinstance(x, list | tuple):
        return any(map(_holds_data, x))
    if isinstance(x, dict):
        return any(map(_holds_data, x.values()))
    return isinstance(x, _LAZY)


def _check(low: Lowering, node: Node, found: Any) -> None:
    """A translation that got a shape or a dtype wrong is the exporter's fault; better said here."""
    seen = node.meta.get("val")
    if not isinstance(found, _LAZY) or not isinstance(seen, Tensor):
        return
    inner = next(_values(found.parts if isinstance(found, Stack) else [found]), None)
    if inner is not None:
        low.attend(inner.timing)
    shape = low.shape(axes_of(found))
    if shape != tuple(seen.shape):
        raise ExportError(
            f"{low.where}: a fault of the exporter: shape {shape} for torch's {tuple(seen.shape)}"
        )
    if isinstance(found, Value) and found.dtype != seen.dtype:
        raise ExportError(f"{low.where}: a fault of the exporter: {found.dtype} for torch's {seen.dtype}")
