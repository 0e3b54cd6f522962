"""Call the user's module, and name its results."""

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
    """The arguments of `export` that determine how forward is called.

    `state` maps forward's parameters, in their order, to initial values: tensors, or tuples of tensors.
    The leaves of a tuple are named ``hx.0``, ``hx.1``. `batch` is the example's batch size.
    """

    time_axis: int | None
    batch_axis: int
    batch: int
    state: Mapping[str, Any] = field(default_factory=dict)
    output_names: Sequence[str] | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        """The input's batch axis and, if it has one, its time axis. A stream's array has no batch axis."""
        return (self.batch_axis,) if self.time_axis is None else (self.batch_axis, self.time_axis)

    def initial(self) -> dict[str, Tensor]:
        """Return each leaf of the state, for a batch of one."""
        return {
            name: leaf.detach().narrow(self.state_axis(leaf), 0, 1)
            for name, leaf in _leaves(self.state, "", Tensor)
        }

    def state_axis(self, leaf: Tensor) -> int:
        """Return a state's batch axis: (layers, batch, hidden), (batch, hidden), or the axis that fits."""
        usual = 1 if leaf.dim() == 3 else 0
        fitting = [axis for axis, size in enumerate(leaf.shape) if size == self.batch]
        if not fitting:
            raise ExportError(f"a state has shape {tuple(leaf.shape)}: no axis is the batch of {self.batch}")
        return usual if usual in fitting else fitting[0]

    def state_axes(self) -> dict[str, int]:
        return {name: self.state_axis(leaf) for name, leaf in _leaves(self.state, "", Tensor)}

    def arguments(self, leaves: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the state as keyword arguments of forward. No tensor occurs twice."""
        return {name: _rebuilt(value, name, leaves) for name, value in self.state.items()}


def results(returned: Any, call: Call) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split what forward returned into outputs by name and next states by leaf name.

    An output is named ``y``. In a tuple it is named ``y0`` or ``y1.0``, in a dict by its key. States are
    found by name if forward returns a dict, otherwise by position after the outputs: see `pairing.pair`.
    """
    flat = list(named_leaves(returned, Tensor))
    states = [name for name, _ in _leaves(call.state, "", Tensor)]  # in the order of forward's parameters
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
    """Return the name of forward's first parameter, which takes an example that is a single tensor."""
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            return parameter.name
    raise ExportError(f"{type(module).__name__}.forward has no parameter with a name to call it by")


def named_leaves(returned: Any, kind: type[_Leaf]) -> Iterator[tuple[str, _Leaf]]:
    """Yield (name, result) for every result of this `kind` that forward returned, states included."""
    if isinstance(returned, list | tuple):
        for i, item in enumerate(returned):
            yield from _leaves(item, f"y{i}", kind)
    else:
        yield from _leaves(returned, "" if isinstance(returned, Mapping) else "y", kind)


def output_names(returned: Any, names: Sequence[str]) -> list[str]:
    """Return the outputs' names. `names`: from `named_leaves`, without states. A single ``y0`` is ``y``."""
    if len(names) == 1 and not isinstance(returned, Mapping) and "." not in names[0]:
        return ["y"]
    return list(names)


def _leaves(value: Any, name: str, kind: type[_Leaf]) -> Iterator[tuple[str, _Leaf]]:
    """Yield (path, leaf) of nested dicts and tuples. Values of other kinds are skipped."""
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
