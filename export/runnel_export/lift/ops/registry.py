"""The table from ATen operations to their translations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

# Operations that need no translation: they do nothing, or make a constant of an argument's shape.
IGNORED = frozenset({"aten::_assert_tensor_metadata", "aten::_assert_async", "aten::sym_constrain_range"})
SHAPE_ONLY = frozenset(
    f"aten::{name}"
    for name in (
        "zeros_like", "ones_like", "full_like", "empty_like",
        "new_zeros", "new_ones", "new_full", "new_empty",
    )
)  # fmt: skip

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Handler:
    """A translation: called with the Lowering and the operation's arguments in its schema's order.

    Data arguments come as ONNX values, or, if `lazy`, as whatever kind they are. `rows` says how the
    operation uses the rows of a sequence: "each" for itself, with the values that are used together of one
    timing; "all" in their order, from the first; or, "own", as the translation sees to itself.
    """

    function: Callable[..., Any]
    lazy: bool
    rows: str = "each"


_TABLE: dict[str, Handler] = {}


def handles(*names: str, lazy: bool = False, rows: str = "each") -> Callable[[Function], Function]:
    """Register for operations, as "name" (all overloads) or "name.overload"."""

    def register(function: Function) -> Function:
        for name in names:
            assert name not in _TABLE, name
            _TABLE[name] = Handler(function, lazy, rows)
        return function

    return register


def find(name: str, overload: str) -> Handler | None:
    return _TABLE.get(f"{name}.{overload}") or _TABLE.get(name)
