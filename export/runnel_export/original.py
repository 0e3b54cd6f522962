"""The oracle of a certificate: the user's module, run whole, as it was written.

Nothing here knows how state was lifted. A stream's reference is the module on that stream's sequence
alone (a batch of one), in float64 where the module can be doubled; an output without a time axis is
run on every prefix, since what it gives at tick t is what the module gives on x[: t + 1].
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runnel.errors import ExportError
from runnel.spec import Array, ModelSpec, ModelState

_PROBES = (7, 11)  # two lengths: the axis of an output that differs between them is time


@dataclass(frozen=True)
class Call:
    """How the module is called: the arguments of `export` that say so."""

    time_axis: int | None
    batch_axis: int
    state: Mapping[str, Tensor] = field(default_factory=dict)
    output_names: Sequence[str] | None = None


@dataclass(frozen=True)
class Run:
    """What the module gave for one stream: outputs (T, ...) and, where state is explicit, its last
    values under the names and in the row shapes of the spec's states."""

    outputs: dict[str, Array]
    states: dict[str, Array]


class Original:
    """A module, and how to run it on one stream's sequence. The user's own module is not changed."""

    def __init__(self, module: nn.Module, spec: ModelSpec, call: Call, double: bool = True) -> None:
        """Raises ExportError where the module cannot be copied, or not be run on a batch of one."""
        self._spec, self._call = spec, call
        probe = {t.name: np.zeros((max(_PROBES), *t.step_shape), t.dtype) for t in spec.inputs}
        failures: list[str] = []
        # Not every module can be doubled: one that makes float32 tensors in forward cannot.
        for self.dtype in (torch.float64, torch.float32) if double else (torch.float32,):
            self.module = _copied(module).to(self.dtype)
            try:
                self._axes = self._time_axes(probe)
                return
            except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
                failures.append(f"in {self.reference}: {error}")
        raise ExportError(
            f"{type(module).__name__}: cannot be run on a batch of one and {_PROBES[0]} or {_PROBES[1]} "
            f"ticks, so there is nothing to compare with: {'; '.join(failures)}"
        )

    @property
    def reference(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def sequence_outputs(self) -> tuple[str, ...]:
        """The outputs that have a time axis of their own; the others are many-to-one."""
        return tuple(name for name, axis in self._axes.items() if axis is not None)

    @property
    def streams_all(self) -> bool:
        """Whether one call gives every tick: no output needs a run for each prefix."""
        return self._call.time_axis is None or None not in self._axes.values()

    @property
    def doubled(self) -> bool:
        return self.dtype == torch.float64

    def run(
        self,
        chunk: Mapping[str, Array],
        start: Mapping[str, Array] | None = None,
        sequences_only: bool = False,
    ) -> Run:
        """The module on one stream's whole sequence, from its own initial state or from `start`.

        `sequences_only` leaves the many-to-one outputs out.
        """
        frames = self._framed(chunk)
        ticks = len(next(iter(frames.values())))
        if self._call.time_axis is None:
            return self._loop(frames, ticks, start)
        whole, states = self._forward([frames], start)
        outputs: dict[str, Array] = {}
        for name, axis in self._axes.items():
            if axis is not None:
                outputs[name] = _numpy(whole[name].movedim(axis, 0))
        if len(outputs) < len(self._axes) and not sequences_only:
            prefixes = [self._forward([_cut(frames, t + 1)], start)[0] for t in range(ticks)]
            for name, axis in self._axes.items():
                if axis is None:
                    outputs[name] = np.stack([_numpy(p[name]) for p in prefixes])
        return Run(self._shaped(outputs, ticks), self._rows(states))

    def batch(self, chunks: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """The module on several streams of equal length in one call, as it was trained.

        Gives each stream's outputs at the last tick, (1, ...): enough to see whether rows of a batch
        mix. An output whose batch axis cannot be told is left out.
        """
        framed = [self._framed(c) for c in chunks]
        if self._call.time_axis is None:
            framed = [{n: a[0] for n, a in frames.items()} for frames in framed]
        alone, _ = self._forward(framed[:1], None)
        together, _ = self._forward(framed, None)
        found: list[dict[str, Array]] = [{} for _ in chunks]
        for name, value in together.items():
            sizes = list(zip(alone[name].shape, value.shape, strict=False))
            axes = [i for i, pair in enumerate(sizes) if pair == (1, len(chunks))]
            if value.dim() != alone[name].dim() or len(axes) != 1:
                continue
            for row in range(len(chunks)):
                part, axis = value.narrow(axes[0], row, 1), self._axes[name]
                last = part if axis is None else part.select(axis, -1)
                found[row] |= self._shaped({name: _numpy(last)}, 1)
        return found

    # Calling the module.

    def _forward(
        self, streams: Sequence[Mapping[str, Array]], start: Mapping[str, Array] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One call: outputs by name, and the explicit states that it returned by parameter name."""
        call = self._call
        given: dict[str, Tensor] = {}
        for name in streams[0]:
            value = self._tensor(np.stack([s[name] for s in streams]))
            to = (call.batch_axis,) if call.time_axis is None else (call.batch_axis, call.time_axis)
            given[name] = value.movedim(tuple(range(len(to))), to)
        given |= {n: s.clone() for n, s in self._start(start, len(streams)).items()}
        with torch.no_grad(), _default_dtype(self.dtype):
            flat = list(flatten(self.module(**given)))
        states: dict[str, Tensor] = {}
        if call.state:
            names = dict(flat)
            if all(n in names for n in call.state):
                states = {n: names[n] for n in call.state}
                flat = [(n, v) for n, v in flat if n not in call.state]
            else:
                tail = flat[len(flat) - len(call.state) :]
                flat = flat[: len(flat) - len(call.state)]
                states = {n: v for n, (_, v) in zip(call.state, tail, strict=True)}
                if len(flat) == 1 and flat[0][0] == "y0":
                    flat = [("y", flat[0][1])]
        if call.output_names is not None:
            flat = [(n, v) for n, (_, v) in zip(call.output_names, flat, strict=True)]
        outputs = dict(flat)
        missing = [t.name for t in self._spec.outputs if t.name not in outputs]
        if missing:
            raise ExportError(
                f"the step model has an output {missing[0]!r}, the module gives {list(outputs)}"
            )
        return {t.name: outputs[t.name] for t in self._spec.outputs}, states

    def _loop(self, frames: Mapping[str, Array], ticks: int, start: Mapping[str, Array] | None) -> Run:
        """A module that is one step already, called tick after tick."""
        gathered: dict[str, list[Array]] = {t.name: [] for t in self._spec.outputs}
        rows = dict(start) if start is not None else None
        for tick in range(ticks):
            outputs, states = self._forward([{n: a[tick] for n, a in frames.items()}], rows)
            rows = self._rows(states)
            for name, value in outputs.items():
                gathered[name].append(_numpy(value))
        stacked = {n: np.stack(values) for n, values in gathered.items()}
        return Run(self._shaped(stacked, ticks), rows or {})

    def _time_axes(self, probe: Mapping[str, Array]) -> dict[str, int | None]:
        """Where each output has its time axis, seen from two lengths; None for many-to-one."""
        if self._call.time_axis is None:
            outputs, _ = self._forward([{n: a[0] for n, a in probe.items()}], None)
            return dict.fromkeys(outputs)
        short, _ = self._forward([_cut(probe, _PROBES[0])], None)
        long, _ = self._forward([_cut(probe, _PROBES[1])], None)
        axes: dict[str, int | None] = {}
        for name, value in short.items():
            sizes = list(zip(value.shape, long[name].shape, strict=True))
            differing = [i for i, (a, b) in enumerate(sizes) if a != b]
            if not differing:
                axes[name] = None
            elif len(differing) == 1 and sizes[differing[0]] == _PROBES:
                axes[name] = differing[0]
            else:
                raise ExportError(
                    f"output {name!r} has shape {tuple(value.shape)} for {_PROBES[0]} ticks and "
                    f"{tuple(long[name].shape)} for {_PROBES[1]}: one axis must be as long as the input"
                )
        return axes

    # Shapes: a stream's arrays are (T, ...) with no batch axis; the module's are as it likes them.

    def _framed(self, chunk: Mapping[str, Array]) -> dict[str, Array]:
        """Samples as the frames that the module takes: zeros before the first, as `Framing` says."""
        framing = self._spec.framing
        if framing is None:
            return dict(chunk)
        framed = {}
        for name, samples in chunk.items():
            padded = np.concatenate(
                [np.zeros_like(samples, shape=(framing.context, *samples.shape[1:])), samples]
            )
            windows = torch.from_numpy(padded).unfold(0, framing.window, framing.hop)  # (T, ..., window)
            framed[name] = windows.movedim(-1, 1).numpy()
        return framed

    def _tensor(self, array: Array) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _shaped(self, outputs: Mapping[str, Array], ticks: int) -> dict[str, Array]:
        """Without the batch axis: it has size one, so only the shape changes."""
        shaped = {}
        for t in self._spec.outputs:
            if t.name in outputs:
                shape = (ticks, *t.step_shape)
                if outputs[t.name].size != int(np.prod(shape)):
                    raise ExportError(
                        f"output {t.name!r}: the step model gives {shape} for {ticks} ticks, "
                        f"the module {outputs[t.name].shape}"
                    )
                shaped[t.name] = outputs[t.name].reshape(shape)
        return shaped

    def _start(self, rows: Mapping[str, Array] | None, streams: int) -> dict[str, Tensor]:
        """The explicit states as the module takes them, from the spec's rows or as the user gave them."""
        found = {}
        for name, given in self._call.state.items():
            parts = self._parts(name)
            axis = parts[0].slot_axis
            if rows is None:
                one = given.detach().narrow(axis, 0, 1)
                value = one.to(self.dtype) if one.is_floating_point() else one
            else:
                layers = [np.expand_dims(rows[s.input].reshape(s.row_shape), axis) for s in parts]
                value = self._tensor(np.concatenate(layers) if len(parts) > 1 else layers[0])
            sizes = [1] * value.dim()
            sizes[axis] = streams
            found[name] = value.repeat(sizes)
        return found

    def _rows(self, states: Mapping[str, Tensor]) -> dict[str, Array]:
        """The spec's rows from explicit states of a batch of one."""
        rows: dict[str, Array] = {}
        for name, value in states.items():
            parts = self._parts(name)
            values = _numpy(value)
            split = np.split(values, len(parts)) if len(parts) > 1 else [values]
            rows |= {s.input: v.reshape(s.row_shape) for s, v in zip(parts, split, strict=True)}
        return rows

    def _parts(self, name: str) -> list[ModelState]:
        """The spec's states for one explicit state: itself, or one a layer (h.0, h.1, ...)."""
        states = {s.input: s for s in self._spec.states}
        if name in states:
            return [states[name]]
        parts: list[ModelState] = []
        while f"{name}.{len(parts)}" in states:
            parts.append(states[f"{name}.{len(parts)}"])
        if not parts:
            raise ExportError(f"state {name!r} is in none of the step model's states: {', '.join(states)}")
        return parts


def flatten(value: Any, name: str = "y") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of what a forward gives: ``y``; ``y0``, ``y1.0`` for tuples; keys for dicts."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nested(item, str(key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _nested(item, f"{name}{i}")
    elif value is not None:
        raise ExportError(f"output {name!r} is a {type(value).__name__}: tensors, tuples and dicts are known")


def _nested(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _nested(item, f"{name}.{i}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nested(item, f"{name}.{key}")
    else:
        yield from flatten(value, name)


def first_parameter(module: nn.Module) -> str:
    """The name of the module's first input: what a lone example tensor is given to."""
    parameters = inspect.signature(module.forward).parameters.values()
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            return parameter.name
    raise ExportError(f"{type(module).__name__}.forward has no named parameter; give one to call it by")


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module).eval()
    except RuntimeError as error:
        raise ExportError(
            f"{type(module).__name__}: cannot be copied ({error}). With torch.nn.utils.weight_norm, use "
            "torch.nn.utils.parametrizations.weight_norm instead, or remove_weight_norm before the export"
        ) from error


def _cut(frames: Mapping[str, Array], ticks: int) -> dict[str, Array]:
    return {name: array[:ticks] for name, array in frames.items()}


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """`torch.zeros(...)` inside forward makes this dtype; put back afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
