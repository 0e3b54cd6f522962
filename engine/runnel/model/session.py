"""The model as a stage: the only module that imports onnxruntime.

There are two paths. *One stream, one tick*: the stream's two rows are bound as the model's state input and
output, so a step copies the input in, runs, and copies the output out. *All other chunks*: rows are gathered
into bound buffers, the model runs once for the whole group, and the next rows are scattered back. In both,
the current rows are only read, and the caller commits by storing the new row numbers.
"""

from __future__ import annotations

import logging
import math
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ..batch import Batch, BatchResult
from ..errors import (
    ChunkError,
    ModelError,
    NonFiniteError,
    ProviderError,
    RunnelError,
    SnapshotError,
    StageError,
    nearest,
)
from ..spec import Array, ModelSpec, Signal, TensorSpec
from ..stage import MAX_PASSAGES, Arrays, Chunk, Results, Stage, require_finite
from .arena import Arena, blown_up
from .bounded_call import bounded_call

MAX_TICKS = 256  # time steps in one call: bounds the buffers; a longer chunk is several calls
MAX_CELLS = 4096  # streams times time steps in one call, for the same reason
DIRECT_SLOTS = 8  # slots of streams, and of forks, with their own bindings: enough for a small device
MAX_CALLS = 1024  # cached bindings, about 2 KiB each

_FLUSHES = ("x86_64", "amd64")  # machines on which onnxruntime's set_denormal_as_zero works

_log = logging.getLogger("runnel.model")

# The compiled function under numpy's dispatcher, if there is one: saves 0.2 µs twice per step.
vdot = getattr(np.vdot, "_implementation", np.vdot)

ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}


def load_session(
    data: bytes,
    where: str,
    providers: Sequence[str | tuple[str, dict[str, Any]]] | None,
    threads: int,
    flush_denormals: bool = False,
) -> ort.InferenceSession:
    """Return an onnxruntime session configured for small steps.

    Raises ProviderError for a provider that is not available, ModelError for a file that does not load.
    """
    wanted = list(providers) if providers else ["CPUExecutionProvider"]
    here = ort.get_available_providers()
    if isinstance(providers, str):
        raise ProviderError(f"providers is a list of names: [{providers!r}], not {providers!r}")
    for provider in wanted:
        name = provider[0] if isinstance(provider, tuple) and provider else provider
        if not isinstance(name, str):
            raise ProviderError(f"a provider is a name, or (name, options), not {provider!r}")
        if name not in here:
            raise ProviderError(
                f"provider {name!r} is not in this onnxruntime {ort.__version__}{nearest(name, here)}; "
                f"here are: {', '.join(here)}. For CUDA: pip uninstall onnxruntime; "
                "pip install onnxruntime-gpu"
            )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal only: a failure is raised, not logged as well
    if flush_denormals and platform.machine().lower() not in _FLUSHES:
        _log.warning(
            "flush_denormals does nothing on %s: onnxruntime can set it on x86-64 only. A state that decays "
            "in silence may make a step up to 30 times slower",
            platform.machine(),
        )
    elif flush_denormals:
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if threads > 1:  # spinning workers would use the cores between two ticks
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(data, options, providers=wanted)
    except Exception as error:
        raise ModelError(f"{where}: onnxruntime cannot load it: {error}") from None
    session.disable_fallback()  # an error must not move the model to another provider
    return session


def placement(session: ort.InferenceSession) -> dict[str, Counter[str]]:
    """Count the operators by provider, after onnxruntime's own optimisations."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except AttributeError:
        raise ModelError(f"onnxruntime {ort.__version__} cannot tell which provider runs what") from None
    placed: dict[str, Counter[str]] = {}
    for part in parts:
        ops = placed.setdefault(part.ep_name, Counter())
        ops.update(node.op_type for node in part.get_nodes())
    return placed


class _Call:
    """A binding for a number of streams and ticks, with numpy views."""

    __slots__ = (
        "binding", "first_in", "first_out", "flats", "inputs", "keep", "next_state", "outputs",
        "states_in", "states_out",
    )  # fmt: skip

    def __init__(self, stage: ModelStage, slots: int, ticks: int, row: int | None) -> None:
        spec, arena = stage.spec, stage.arena
        binding = stage.session.io_binding()
        self.binding = binding._iobinding
        self.keep: list[Any] = [binding]  # onnxruntime holds these by address: they must not be freed
        self.inputs: list[tuple[str, Array]] = []  # (name in a chunk, view with axes slot, time, ...)
        self.outputs: list[tuple[str, Array]] = []
        self.flats: list[tuple[str, Array, Array]] = []  # (name, float input, zeros), flat, for the check
        self.states_in: list[tuple[str, Array]] = []  # (name, view with the slot axis first)
        self.states_out: list[tuple[str, Array]] = []
        self.next_state: Array | None = None  # the next row, flat, if a step writes it directly
        for name, value in spec.constants.items():
            self._bind(name, value, binding.bind_ortvalue_input)
        for tensor in spec.inputs:
            buffer = stage.buffer(tensor.name, tensor.dtype, tensor.sized(slots, ticks))
            self._bind(tensor.name, buffer, binding.bind_ortvalue_input)
            view = _slot_time(buffer, tensor.slot_axis, tensor.time_axis)
            self.inputs.append((stage.chunk_name(tensor.name), view))
            if buffer.dtype.kind == "f":
                flat = buffer.reshape(-1)
                self.flats.append((stage.chunk_name(tensor.name), flat, stage.zeros(flat)))
        for tensor in spec.outputs:
            buffer = stage.buffer(tensor.name, tensor.dtype, tensor.sized(slots, ticks))
            self._bind(tensor.name, buffer, binding.bind_ortvalue_output)
            view = _slot_time(buffer, tensor.slot_axis, tensor.time_axis)
            self.outputs.append((stage.chunk_name(tensor.name), view))
        for state in spec.states:
            shape = state.sized(slots)
            if row is None:
                now = stage.buffer(state.input, state.dtype, shape)
                then = stage.buffer(state.output, state.dtype, shape)
            else:
                now = arena.columns[state.input][row, ...].reshape(shape)
                then = arena.columns[state.input][row ^ 1, ...].reshape(shape)
            self._bind(state.input, now, binding.bind_ortvalue_input)
            self._bind(state.output, then, binding.bind_ortvalue_output)
            self.states_in.append((state.input, np.moveaxis(now, state.slot_axis, 0)))
            self.states_out.append((state.input, np.moveaxis(then, state.slot_axis, 0)))
        self.first_in = [(name, view[0]) for name, view in self.inputs]
        self.first_out = [(name, view[0]) for name, view in self.outputs]
        if row is not None and arena.floats is not None:
            self.next_state = arena.floats[row ^ 1]

    def bound(self, name: str) -> Array:
        """Return the bound input of this name: (slot, time, ...)."""
        return next(view for key, view in self.inputs if key == name)

    def _bind(self, name: str, array: Array, bind: Any) -> None:
        value = ort.OrtValue.ortvalue_from_numpy(array)  # on the CPU this is the array's own memory
        bind(name, value)
        self.keep += (array, value)


def _slot_time(buffer: Array, slot_axis: int, time_axis: int | None) -> Array:
    """Return a view with axes (slot, time, ...), adding a missing time axis."""
    if time_axis is None:
        return np.moveaxis(buffer, slot_axis, 0)[:, None]
    return np.moveaxis(buffer, (slot_axis, time_axis), (0, 1))


class ModelStage(Stage):
    """A step model. Its state for a stream is a row number of `arena`; see arena.py."""

    def __init__(
        self,
        session: ort.InferenceSession,
        spec: ModelSpec,
        slots: int,
        renamed: Mapping[str, str],
        name: str,
        rate: float | None = None,
        spares: int = MAX_PASSAGES,
    ) -> None:
        """`rate`: of the time axis, in Hz, before any framing; default: the rate of `spec`. `spares`: the
        number of forks that may be alive at once.
        """
        self.name = name
        self.label = name  # in errors of its states: unique among the pipeline's stages
        self.session, self.spec = session, spec
        self.file: Path | None = None  # the model's file, for tools
        self.arena = Arena(spec.states, slots, spares)
        self._direct = 2 * DIRECT_SLOTS  # rows below this, and in the next range, have their own bindings
        self._direct_forks = range(self.arena.first_spare, self.arena.first_spare + 2 * DIRECT_SLOTS)
        self.storage_bytes = spec.state_bytes
        rate = rate or spec.rate
        rate = rate / spec.hop if rate else None
        self._renamed = renamed
        self.inputs, self.outputs = (
            Signal(tuple(TensorSpec(self.chunk_name(t.name), t.dtype, t.step_shape) for t in part), rate)
            for part in (spec.inputs, spec.outputs)
        )
        self.latency = 0 if spec.framing or spec.blocks or spec.steps else spec.latency
        self._lead = self.inputs.names[0]
        # The compiled method under the public one, whose Python wrapper costs 0.7 µs of a 10 µs step.
        self._run: Callable[[Any, None], None] = session._sess.run_with_iobinding
        self._buffers: dict[str, Array] = {}
        self._zeros: dict[np.dtype[Any], Array] = {}
        self._zero_row = self.zeros(self.arena.floats[0]) if self.arena.floats is not None else None
        self.records_input = False  # whether `last_input` is recorded
        self.last_input: tuple[Sequence[int], Sequence[Chunk]] | None = (
            None  # rows and chunks of the last call
        )
        self.landed: dict[
            int, int
        ] = {}  # while `records_input`: row where a fork landed -> the fork's last row
        self._calls: dict[tuple[int, int], _Call] = {}
        self._bound: dict[int, _Call] = {}

    def chunk_name(self, name: str) -> str:
        """Return the name in a chunk of the model's input or output `name`."""
        return self._renamed.get(name, name)

    # Storage of states

    def initial(self) -> Arrays:
        return {s.input: s.initial for s in self.spec.states}

    def open(self) -> int:
        return self.arena.allocate()

    def load(self, state: int, arrays: Arrays) -> int:
        for held in self.spec.states:
            array = arrays[held.input]
            if array.shape != held.row_shape:
                raise SnapshotError(
                    f"{self.name}: state {held.input!r} has shape {array.shape}, expected {held.row_shape}"
                )
            require_finite(held.input, array, self.name)
        self.arena.write(state ^ 1, arrays)
        return state ^ 1

    def dump(self, state: int) -> Arrays:
        return self.arena.read(state)

    def close(self, state: int) -> None:
        self.arena.release(state)

    def reclaim(self, states: Sequence[int]) -> None:
        self.arena.reclaim(states)

    def fork(self, state: int) -> int:
        return self.arena.fork(state)

    def land(self, state: int, forked: int) -> int:
        after = state ^ 1
        self.arena.copy(forked, after)
        if self.records_input:
            self.landed[after] = forked
        self.arena.release(forked)
        return after

    def drop(self, forked: int) -> None:
        self.arena.release(forked)

    # One stream

    def step(self, state: int, chunk: Chunk) -> tuple[int, Chunk]:
        if len(chunk[self._lead]) != 1:
            result = self.step_many([state], [chunk])[0]
            if isinstance(result, RunnelError):
                raise result
            return result
        if self.records_input:
            self.last_input = (state,), (chunk,)
        # One tick: use the row if it has its own binding, else a copy of it in the scratch row.
        row = state
        if state >= self._direct and state not in self._direct_forks:
            row = self.arena.scratch
            self.arena.copy(state, row)
        call = self._bound.get(row)
        if call is None:
            call = self._bound[row] = _Call(self, 1, 1, row)
        for name, view in call.first_in:
            view[...] = chunk[name]
        for name, flat, zeros in call.flats:
            # 0 * x is 0 for every finite x, and NaN otherwise: numpy's fastest exact check.
            if vdot(flat, zeros) != 0:
                require_finite(name, call.bound(name)[0], self.name)
        try:
            self._run(call.binding, None)
        except Exception as error:
            raise self._failed(error) from None
        made = call.next_state
        if made is None or vdot(made, self._zero_row) != 0:
            self.arena.check(row ^ 1, self.label)
        if row != state:
            self.arena.copy(row ^ 1, state ^ 1)
        out = {}
        for name, view in call.first_out:
            out[name] = view.copy()
        return state ^ 1, out

    # Many streams

    def step_many(self, states: Sequence[int], chunks: Sequence[Chunk]) -> Results:
        lead = self._lead
        if self.records_input:
            self.last_input = states, chunks
        if isinstance(chunks, Batch):
            lengths = [chunks.steps] * len(chunks)
        else:
            lengths = [len(chunk[lead]) for chunk in chunks]
        if lengths and max(lengths) == min(lengths) == 1 and len(chunks) <= MAX_CELLS:
            try:
                return self._step_group(states, chunks)
            except RunnelError as error:
                return self._apart(error, states, chunks)
        results: list[tuple[int, Chunk] | RunnelError] = [(row, self.outputs.empty()) for row in states]
        live = sorted((i for i in range(len(chunks)) if lengths[i]), key=lambda i: -lengths[i])
        for start in range(0, len(live), MAX_CELLS):
            part = live[start : start + MAX_CELLS]
            rows, given = [states[i] for i in part], [chunks[i] for i in part]
            try:
                done: Results = self._step_ragged(rows, given, [lengths[i] for i in part])
            except RunnelError as error:
                done = self._apart(error, rows, given)
            for i, result in zip(part, done, strict=True):
                results[i] = result
        return results

    def _apart(self, error: RunnelError, states: Sequence[int], chunks: Sequence[Chunk]) -> Results:
        """Step each stream alone after a group failed, so that only the bad chunk fails."""
        if len(states) == 1:
            return [self._located(error, chunks[0])]
        return [self.step_many([row], [chunk])[0] for row, chunk in zip(states, chunks, strict=True)]

    def _located(self, error: RunnelError, chunk: Chunk) -> RunnelError:
        """Return the error, or a more exact one if the input caused it."""
        try:
            for name in self.inputs.names:
                require_finite(name, chunk[name], self.name)
        except NonFiniteError as exact:
            return exact
        return error

    def _step_group(self, rows: Sequence[int], chunks: Sequence[Chunk]) -> BatchResult:
        """Step one tick of each stream."""
        call = self._call(len(rows), 1)
        for name, view in call.inputs:
            if isinstance(chunks, Batch):
                view[...] = chunks.arrays[name]
            else:
                np.concatenate([chunk[name] for chunk in chunks], out=view[:, 0])
        now = np.array(rows)
        self._run_rows(call, now, now ^ 1)
        return BatchResult((now ^ 1).tolist(), Batch({name: view.copy() for name, view in call.outputs}))

    def _step_ragged(
        self, rows: Sequence[int], chunks: Sequence[Chunk], lengths: Sequence[int]
    ) -> list[tuple[int, Chunk] | RunnelError]:
        """Step chunks of unequal lengths, longest first.

        Each call takes ticks that all remaining chunks have.
        """
        pieces: list[dict[str, list[Array]]] = [
            {name: [] for name in self.outputs.names} for _ in range(len(rows))
        ]
        first, at, active = np.array(rows), 0, len(rows)
        rest = first ^ 1
        while True:
            while active and lengths[active - 1] <= at:
                active -= 1
            if not active:
                break
            ticks = self._block(active, lengths[active - 1] - at)
            call = self._call(active, ticks)
            for name, view in call.inputs:
                for i in range(active):
                    view[i] = chunks[i][name][at : at + ticks]
            # The first call reads the current rows; later calls read and write the next rows.
            self._run_rows(call, (first if at == 0 else rest)[:active], rest[:active])
            for name, view in call.outputs:
                values = view.copy()
                for i in range(active):
                    pieces[i][name].append(values[i])
            at += ticks
        return [
            (row, {k: v[0] if len(v) == 1 else np.concatenate(v) for k, v in parts.items()})
            for row, parts in zip(rest.tolist(), pieces, strict=True)
        ]

    def _run_rows(self, call: _Call, now: Array, then: Array) -> None:
        """Run the model from the rows `now` to the rows `then`, with all checks."""
        for name, flat, zeros in call.flats:
            if vdot(flat, zeros) != 0:
                require_finite(name, flat, self.name)
        columns = self.arena.columns
        for name, view in call.states_in:
            view[...] = columns[name][now]
        try:
            self._run(call.binding, None)
        except Exception as error:
            raise self._failed(error) from None
        for name, view in call.states_out:  # check all before any is stored: `then` may be `now`
            if view.dtype.kind == "f" and vdot(view, self.zeros(view)) != 0:
                raise blown_up(name, self.label)
        for name, view in call.states_out:
            columns[name][then] = view

    def zeros(self, like: Array) -> Array:
        """Return a flat, shared array of zeros of the same size and dtype.

        The array is grown by doubling.
        """
        held = self._zeros.get(like.dtype)
        if held is None or held.size < like.size:
            held = self._zeros[like.dtype] = np.zeros(1 << max(0, like.size - 1).bit_length(), like.dtype)
        return held[: like.size]

    def _block(self, slots: int, ticks: int) -> int:
        """Return the ticks of the next call: a power of two, to limit bindings."""
        if not self.spec.any_ticks:
            return 1
        most = min(ticks, MAX_TICKS, max(1, MAX_CELLS // slots))
        return 1 << (most.bit_length() - 1)

    def _call(self, slots: int, ticks: int) -> _Call:
        key = (slots, ticks)
        call = self._calls.pop(key, None)
        if call is None:
            if len(self._calls) >= MAX_CALLS:
                del self._calls[next(iter(self._calls))]  # least recently used: the dict is in that order
            call = _Call(self, slots, ticks, None)
        self._calls[key] = call
        return call

    def buffer(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        """Return memory for a bound tensor, shared by all bindings of that name.

        It is grown by doubling.
        """
        size = math.prod(shape)
        flat = self._buffers.get(name)
        if flat is None or flat.size < size:
            flat = self._buffers[name] = np.zeros(1 << (size - 1).bit_length() if size else 0, dtype)
        return flat[:size].reshape(shape)

    def _failed(self, error: Exception) -> RunnelError:
        text = str(error).split("Status Message:")[-1].strip()
        if "out of" in text or "indices element" in text:
            return ChunkError(f"{self.name}: an index in the input is out of range: {text}")
        return StageError(f"{self.name}: onnxruntime failed: {text}")


def output_shapes(
    session: ort.InferenceSession, spec: ModelSpec, names: Sequence[str], where: str
) -> dict[str, tuple[int | str, ...]]:
    """Find the output shapes of a foreign model by running it on zeros.

    Runs the model for 2 and 3 streams and, if it accepts them, for two numbers of ticks. The axis that grows
    with the streams is the slot axis. Raises ModelError if the model does not run, or if an output does not
    have one row per stream.
    """

    def shapes(slots: int, ticks: int) -> list[tuple[int, ...]]:
        feeds = {t.name: np.zeros(t.sized(slots, ticks), t.dtype) for t in spec.inputs}
        feeds |= {s.input: np.zeros(s.sized(slots), s.dtype) for s in spec.states}
        outputs = [*names, *(s.output for s in spec.states)]
        options = ort.RunOptions()  # onnxruntime checks it between two operations, in a loop's body too
        found = bounded_call(
            lambda: session.run(outputs, {**feeds, **spec.constants}, options),
            lambda: setattr(options, "terminate", True),
        )
        for state, value in zip(spec.states, found[len(names) :], strict=True):
            if value.shape != state.sized(slots) or value.dtype != state.dtype:
                raise ModelError(
                    f"{where}: state {state.input!r} is declared as {state.dtype} {list(state.shape)}, but "
                    f"output {state.output!r} is {value.dtype} of shape {value.shape} for {slots} streams"
                )
        return [value.shape for value in found[: len(names)]]

    base = (2, 5) if spec.any_ticks else (2, 1)
    try:
        small, more_slots = shapes(*base), shapes(base[0] + 1, base[1])
        more_ticks = shapes(base[0], base[1] + 2) if spec.any_ticks else small
    except RunnelError:
        raise
    except Exception as error:
        raise ModelError(f"{where}: a trial run with {base[0]} streams failed: {error}") from None
    result: dict[str, tuple[int | str, ...]] = {}
    for name, a, b, c in zip(names, small, more_slots, more_ticks, strict=True):
        dims: list[int | str] = list(a)
        for i, size in enumerate(a):
            if b[i] != size:
                dims[i] = "slot"
            elif c[i] != size:
                dims[i] = "time"
        if dims.count("slot") != 1:
            raise ModelError(
                f"{where}: output {name!r} has shape {a} for 2 streams, {b} for 3: no row a stream"
            )
        result[name] = tuple(dims)
    return result
