"""The oracle of a certificate: the user's module, run whole, as it was written.

Nothing here knows how state was lifted. A stream's reference is the module on that stream's sequence
alone (a batch of one), in float64 if the module can be doubled; an output without a time axis is
run on every prefix, since what it gives at tick t is what the module gives on x[: t + 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runnel.errors import ExportError
from runnel.spec import Array, ModelSpec, ModelState

from ..call import Call, results
from ..dry_run import copied
from ..lengths import ANY, Lengths
from .bounded import Bounded

_PROBES = (7, 11)  # two lengths, in steps: the axis of an output that differs between them is time


@dataclass(frozen=True)
class Run:
    """What the module gave for one stream: outputs (T, ...) and, where state is explicit, its last
    values as the module has them, for a batch of one. `at`: the ticks of the outputs that were asked
    for at some ticks only."""

    outputs: dict[str, Array]
    states: dict[str, Tensor]
    at: dict[str, Array]


class _ForwardError(ExportError):
    """The user's forward raised something."""


class Original:
    """A module, and how to run it on one stream's sequence. The user's own module is not changed."""

    def __init__(
        self,
        module: nn.Module,
        spec: ModelSpec,
        call: Call,
        double: bool = True,
        lengths: Lengths = ANY,
    ) -> None:
        """`lengths`: the sequences that forward takes.

        Raises ExportError if the module cannot be copied, or not be run on a batch of one.
        """
        self.lengths = lengths
        step = max(lengths.unit, spec.steps.ticks if spec.steps else 1)
        self._probes = tuple(lengths.up(lengths.least - 1 + p * step) for p in _PROBES)
        self._spec, self._call, self._name = spec, call, type(module).__name__
        # One tick as forward has it: with framing a window, with blocks one of a window's ticks.
        grouped = spec.blocks or spec.steps
        shapes = {t.name: t.shape for t in spec.fed} if grouped else {}
        probe = {
            t.name: np.zeros((max(self._probes), *shapes.get(t.name, t.step_shape)), t.dtype)
            for t in spec.inputs
            if not grouped or t.name in shapes
        }
        failures: list[str] = []
        # Not every module can be doubled: one that makes float32 tensors in forward cannot.
        for self.dtype in (torch.float64, torch.float32) if double else (torch.float32,):
            self.module = copied(module).to(self.dtype)
            try:
                self._axes = self._time_axes(probe)
                self._bounded = Bounded(self.module, spec.blocks) if spec.blocks else None
                return
            except _ForwardError as error:
                failures.append(f"in {self.reference}: {error.message}")
        raise ExportError(
            f"{type(module).__name__}: cannot be run on a batch of one and {self._probes[0]} or "
            f"{self._probes[1]} ticks, so there is nothing to compare with: {'; '.join(failures)}"
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
    def at_once(self) -> bool:
        """Whether a sequence is one call, and no lookahead is bounded by a call for each block."""
        return self._bounded is None

    @property
    def over_time(self) -> bool:
        """Whether it takes a whole sequence in one call."""
        return self._call.time_axis is not None

    @property
    def doubled(self) -> bool:
        return self.dtype == torch.float64

    def run(
        self,
        chunk: Mapping[str, Array],
        start: Mapping[str, Tensor] | None = None,
        at: Sequence[int] | None = None,
    ) -> Run:
        """The module on one stream's whole sequence, from its own initial state or from `start`.

        `at`: the ticks at which many-to-one outputs are wanted, where not at all of them; each is a run
        of the module. Without any they are left out. Where the model takes blocks, the module's lookahead
        is bounded: see `bounded`; `whole` gives what it is without.
        """
        if self._bounded is not None:
            return self._blocks(self._bounded, chunk)
        return self.whole(chunk, start, at)

    def whole(
        self,
        chunk: Mapping[str, Array],
        start: Mapping[str, Tensor] | None = None,
        at: Sequence[int] | None = None,
    ) -> Run:
        """The module as it was written, on one stream's whole sequence; else as `run`."""
        frames = self._framed(chunk)
        ticks = len(next(iter(frames.values())))
        if self._call.time_axis is None:
            return self._loop(frames, ticks, start)
        whole, states = self._forward([frames], start)
        outputs: dict[str, Array] = {}
        for name, axis in self._axes.items():
            if axis is not None:
                outputs[name] = _numpy(whole[name].movedim(axis, 0))
        # (of fewer ticks than a model of steps begins with, forward gives something of another shape)
        first = self.lengths.least - 1 if self._spec.steps else 0
        wanted = range(first, ticks) if at is None else [t for t in at if t >= first]
        known: dict[str, Array] = {}
        if len(outputs) < len(self._axes) and len(wanted):
            prefixes = [self._forward([_cut(frames, t + 1)], start)[0] for t in wanted]
            for name, axis in self._axes.items():
                if axis is None:
                    outputs[name] = np.stack([_numpy(p[name]) for p in prefixes])
                    if at is not None:
                        known[name] = np.asarray(wanted) - first
        return Run(self._shaped(outputs, ticks, known), states, known)

    def _blocks(self, bounded: Bounded, chunk: Mapping[str, Array]) -> Run:
        ticks = len(next(iter(chunk.values())))
        parts: dict[str, list[Array]] = {name: [] for name in self._axes}
        for start, stop, end in bounded.windows(ticks):
            found, _ = self._forward([_cut(chunk, end)], None, bounded.module)
            for name, axis in self._axes.items():
                if axis is not None:
                    parts[name].append(_numpy(found[name].movedim(axis, 0)[start:stop]))
        return Run(self._shaped({n: np.concatenate(p) for n, p in parts.items() if p}, ticks, {}), {}, {})

    def rows(self, chunks: Sequence[Mapping[str, Array]]) -> Iterator[tuple[str, Array, Array]]:
        """Streams of equal length in one batch, as the module was trained, and each alone.

        Yields an output's name, its last tick as a row of the batch, and its last tick alone. An
        output whose batch axis cannot be told is left out.
        """
        framed = [self._framed(c) for c in chunks]
        if self._call.time_axis is None:
            framed = [{n: a[0] for n, a in frames.items()} for frames in framed]
        together, _ = self._forward(framed, None)
        for row, frames in enumerate(framed):
            alone, _ = self._forward([frames], None)
            for name, value in together.items():
                sizes = list(zip(alone[name].shape, value.shape, strict=False))
                axes = [i for i, pair in enumerate(sizes) if pair == (1, len(chunks))]
                if value.dim() != alone[name].dim() or len(axes) != 1:
                    continue
                pair = (value.narrow(axes[0], row, 1), alone[name])
                axis = self._axes[name]
                if axis is not None:
                    pair = (pair[0].select(axis, -1), pair[1].select(axis, -1))
                yield name, _numpy(pair[0]), _numpy(pair[1])

    def rows_of(self, states: Mapping[str, Tensor]) -> dict[str, Array]:
        """Explicit states of a batch of one as rows of the spec's states."""
        found: dict[str, Array] = {}
        for name, value in states.items():
            parts = self._parts(name)
            split = np.split(_numpy(value), len(parts)) if len(parts) > 1 else [_numpy(value)][: len(parts)]
            found |= {s.input: v.reshape(s.row_shape) for s, v in zip(parts, split, strict=True)}
        return found

    # Calling the module.

    def _forward(
        self,
        streams: Sequence[Mapping[str, Array]],
        start: Mapping[str, Tensor] | None,
        module: nn.Module | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One call: outputs by the spec's names, next states by leaf name."""
        call = self._call
        given: dict[str, Any] = {}
        for name in streams[0]:
            value = self._tensor(np.stack([s[name] for s in streams]))
            given[name] = value.movedim(tuple(range(len(call.axes))), call.axes)
        state, axes = call.initial() if start is None else start, call.state_axes()
        repeated = {n: self._cast(s).repeat_interleave(len(streams), axes[n]) for n, s in state.items()}
        arguments = {**given, **call.arguments(repeated)}
        try:
            with torch.no_grad(), _default_dtype(self.dtype):
                returned = (module or self.module)(**arguments)
        except Exception as error:  # the user's code may raise anything
            raise _ForwardError(
                f"{self._name}.forward fails on {_described(arguments)}: {type(error).__name__}: {error}. "
                "It must run on any batch size and number of ticks, on the data given and on data drawn like "
                "the example"
            ) from error
        outputs, states = results(returned, call)
        found = {}
        for tensor in self._spec.given:
            # An output that is named like an input has another name in the file.
            name = tensor.name if tensor.name in outputs else tensor.name.removesuffix("_out")
            if name not in outputs:
                raise ExportError(f"the step model has an output {name!r}, the module gives {list(outputs)}")
            found[tensor.name] = outputs[name]
        return found, states

    def _loop(self, frames: Mapping[str, Array], ticks: int, start: Mapping[str, Tensor] | None) -> Run:
        """A module that is one step already, called tick after tick."""
        gathered: dict[str, list[Array]] = {t.name: [] for t in self._spec.given}
        states = start
        for tick in range(ticks):
            outputs, states = self._forward([{n: a[tick] for n, a in frames.items()}], states)
            for name, value in outputs.items():
                gathered[name].append(_numpy(value))
        stacked = {n: np.stack(values) for n, values in gathered.items()}
        return Run(self._shaped(stacked, ticks, {}), dict(states or {}), {})

    def _time_axes(self, probe: Mapping[str, Array]) -> dict[str, int | None]:
        """Where each output has its time axis, seen from two lengths; None for many-to-one."""
        if self._call.time_axis is None:
            outputs, _ = self._forward([{n: a[0] for n, a in probe.items()}], None)
            return dict.fromkeys(outputs)
        few, many = self._probes
        short, _ = self._forward([_cut(probe, few)], None)
        long, _ = self._forward([_cut(probe, many)], None)
        axes: dict[str, int | None] = {}
        for name, value in short.items():
            sizes = list(zip(value.shape, long[name].shape, strict=True))
            differing = [i for i, (a, b) in enumerate(sizes) if a != b]
            if not differing:
                axes[name] = None
            elif len(differing) == 1 and (self._spec.steps or sizes[differing[0]] == (few, many)):
                axes[name] = differing[0]
            else:
                raise ExportError(
                    f"output {name!r} has shape {tuple(value.shape)} for {few} ticks and "
                    f"{tuple(long[name].shape)} for {many}: one axis must be as long as the input"
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
        return self._cast(torch.from_numpy(np.ascontiguousarray(array)))

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _shaped(self, outputs: Mapping[str, Array], ticks: int, at: Mapping[str, Array]) -> dict[str, Array]:
        """Without the batch axis: it has size one, so only the shape changes."""
        shaped = {}
        for t in self._spec.given:
            if t.name in outputs:
                rows = outputs[t.name].shape[0] if self._spec.steps else ticks
                shape = (len(at[t.name]) if t.name in at else rows, *t.shape)
                if outputs[t.name].size != int(np.prod(shape)):
                    raise ExportError(
                        f"output {t.name!r}: the step model gives {shape} for {shape[0]} ticks, "
                        f"the module {outputs[t.name].shape}"
                    )
                shaped[t.name] = outputs[t.name].reshape(shape)
        return shaped

    def _parts(self, name: str) -> list[ModelState]:
        """The spec's states for one explicit state: itself, or one a layer (h.0, h.1, ...).

        None for a state that the outputs do not depend on: the step model leaves it out, and says so.
        """
        states = {s.input: s for s in self._spec.states}
        if name in states:
            return [states[name]]
        parts: list[ModelState] = []
        while f"{name}.{len(parts)}" in states:
            parts.append(states[f"{name}.{len(parts)}"])
        return parts


def _described(arguments: Mapping[str, Any]) -> str:
    """Names, dtypes and shapes; a state may be a tuple of tensors."""
    return ", ".join(
        f"{name}: {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"{name}: {type(value).__name__}"
        for name, value in arguments.items()
    )


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
