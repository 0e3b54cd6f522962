"""How the user's module is called, and what its results are called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from runnel.errors import ExportError

from .pairing import pair

_Leaf = TypeVar("_Leaf")


@dataclass(frozen=True)
class Call:
    """The arguments of `export` that say how forward is called.

    `state` maps forward's parameters to initial values: tensors, or tuples of them, whose leaves are
    named ``hx.0``, ``hx.1``; in the order of forward's parameters. `batch` is the example's batch size.
    """

    time_axis: int | None
    batch_axis: int
    batch: int
    state: Mapping[str, Any] = field(default_factory=dict)
    output_names: Sequence[str] | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        """The input's axes that a stream's array lacks or has in front: batch, and time where it has one."""
        return (self.batch_axis,) if self.time_axis is None else (self.batch_axis, self.time_axis)

    def initial(self) -> dict[str, Tensor]:
        """Each leaf of the state, for a batch of one."""
        return {
            name: leaf.detach().narrow(self.state_axis(leaf), 0, 1)
            for name, leaf in _leaves(self.state, "", Tensor)
        }

    def state_axis(self, leaf: Tensor) -> int:
        """A state's batch axis: (layers, batch, hidden) or (batch, hidden), else the one that fits."""
        usual = 1 if leaf.dim() == 3 else 0
        fitting = [axis for axis, size in enumerate(leaf.shape) if size == self.batch]
        if not fitting:
            raise ExportError(f"a state has shape {tuple(leaf.shape)}: no axis is the batch of {self.batch}")
        return usual if usual in fitting else fitting[0]

    def state_axes(self) -> dict[str, int]:
        return {name: self.state_axis(leaf) for name, leaf in _leaves(self.state, "", Tensor)}

    def arguments(self, leaves: Mapping[str, Tensor]) -> dict[str, Any]:
        """The state as keyword arguments of forward. No tensor is given twice."""
        return {name: _rebuilt(value, name, leaves) for name, value in self.state.items()}


def results(returned: Any, call: Call) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What forward returned: outputs by name, next states by leaf name.

    Outputs: ``y``; ``y0``, ``y1.0`` for tuples; keys for dicts. States: by name where forward gives a
    dict, else by position after the outputs: see `pairing.pair`.
    """
    flat = list(named_leaves(returned, Tensor))
    states = [name for name, _ in _leaves(call.state, "", Tensor)]  # (in the order of forward's parameters)
    found: dict[str, Tensor] = {}
    if states and isinstance(returned, Mapping):
        named = dict(flat)
        found = {name: named[name] for name in states if name in named}
        flat = [(name, value) for name, value in flat if name not in states]
    elif states:
        flat, tail = flat[: -len(states)], flat[-len(states) :]
        if len(tail) == len(states):
            order, _ = pair(states, [path.removeprefix("y") for path, _ in tail])
            found = {name: tail[i][1] for name, i in order.items()}
    if len(found) < len(states):
        raise ExportError(
            f"forward returned {len(found)} of the states {states}: it must return its outputs, then each "
            "next state, or a dict with both"
        )
    own = output_names(returned, [name for name, _ in flat])
    names = own if call.output_names is None else list(call.output_names)
    if len(names) != len(flat):
        raise ExportError(f"output_names has {len(names)} names, the module gives {len(flat)} outputs")
    return dict(zip(names, (value for _, value in flat), strict=True)), found


def first_parameter(module: nn.Module) -> str:
    """The name of forward's first parameter: what a lone example tensor is given to."""
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            return parameter.name
    raise ExportError(f"{type(module).__name__}.forward has no parameter with a name to call it by")


def named_leaves(returned: Any, kind: type[_Leaf]) -> Iterator[tuple[str, _Leaf]]:
    """(name, result) of all that forward returned, states too; results are of this `kind`."""
    if isinstance(returned, list | tuple):
        for i, item in enumerate(returned):
            yield from _leaves(item, f"y{i}", kind)
    else:
        yield from _leaves(returned, "" if isinstance(returned, Mapping) else "y", kind)


def output_names(returned: Any, names: Sequence[str]) -> list[str]:
    """The outputs' names, from those of `named_leaves` without the states': a lone one is no ``y0``."""
    if len(names) == 1 and not isinstance(returned, Mapping) and "." not in names[0]:
        return ["y"]
    return list(names)


def _leaves(value: Any, name: str, kind: type[_Leaf]) -> Iterator[tuple[str, _Leaf]]:
    """(path, leaf) of nested dicts and tuples; anything else in them is no result."""
    if isinstance(value, kind):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{name}.{key}" if name else str(key), kind)


def _rebuilt(value: Any, name: str, leaves: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return leaves[name].clone()
    if isinstance(value, Mapping):
        return {key: _rebuilt(item, f"{name}.{key}", leaves) for key, item in value.items()}
    return tuple(_rebuilt(item, f"{name}.{i}", leaves) for i, item in enumerate(value))
