"""The specification of a model: the document inside a model file, as checked types.

There are two kinds of shape. A *model tensor* has the shape of the ONNX value, with the words ``"time"`` and
``"slot"`` for its free axes: ``("time", "slot", 80)``. A *chunk tensor* (`TensorSpec`) has the shape of one
time step: ``(80,)``, and a chunk holds ``(T, 80)``.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from . import probe as probes
from .errors import ModelError, nearest
from .grouping import Blocks, Framing, Steps
from .probe import Probe, ProbeLayer

FORMAT = 1
TIME, SLOT = "time", "slot"
MAX_RANK = 8
MAX_STATES = 1024
MAX_RATE = sys.float_info.max  # Hz: a JSON integer may be larger than any float
MAX_STATE_BYTES = 2**28  # bytes of one stream's states in one model: far more than any recurrent layer needs
DTYPES = (
    "float32", "float16", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip

Dim = int | str
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named array of a chunk; ``shape`` is that of one time step.

    `labels`: the meanings of the numbers 0, 1, 2 …, if they have any. They are for readers and are ignored
    when two stages are matched. A number without a label (such as -1) has no meaning.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    labels: tuple[str, ...] = field(default=(), compare=False)

    def empty(self) -> Array:
        """Return zero time steps: shape (0, *shape)."""
        return np.zeros((0, *self.shape), self.dtype)

    def __str__(self) -> str:
        inner = ", ".join(map(str, ("T", *self.shape)))
        return f"{self.name}: {self.dtype} ({inner})"


@dataclass(frozen=True, slots=True)
class Signal:
    """The arrays of a chunk between two stages and, if known, their rate in Hz."""

    tensors: tuple[TensorSpec, ...]
    rate: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(t.name for t in self.tensors)

    def empty(self) -> dict[str, Array]:
        """Return a chunk of zero time steps."""
        return {t.name: t.empty() for t in self.tensors}

    def __str__(self) -> str:
        text = "; ".join(map(str, self.tensors)) or "nothing"
        return text + (f" at {self.rate:g} Hz" if self.rate else "")


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """An ONNX input or output that is part of the signal."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def slot_axis(self) -> int:
        return self.shape.index(SLOT)

    @property
    def time_axis(self) -> int | None:
        return self.shape.index(TIME) if TIME in self.shape else None

    @property
    def step_shape(self) -> tuple[int, ...]:
        """The shape of one time step of one stream, without time and slot."""
        return tuple(d for d in self.shape if isinstance(d, int))

    def sized(self, slots: int, ticks: int) -> tuple[int, ...]:
        """Return the concrete shape for `slots` streams and `ticks` time steps."""
        return tuple({SLOT: slots, TIME: ticks}[d] if isinstance(d, str) else d for d in self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class ModelState:
    """An ONNX input, and the output that becomes it at the next step."""

    input: str
    output: str
    dtype: str
    shape: tuple[Dim, ...]  # ints and one "slot"
    initial: Array  # one stream's row, without the slot axis; read-only

    @property
    def slot_axis(self) -> int:
        return self.shape.index(SLOT)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return tuple(d for d in self.shape if isinstance(d, int))

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    def sized(self, slots: int) -> tuple[int, ...]:
        return tuple(slots if isinstance(d, str) else d for d in self.shape)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A step model: its signal, its states, and its properties."""

    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]
    states: tuple[ModelState, ...]
    framing: Framing | None = None
    rate: float | None = None  # Hz of the input's time axis: samples or ticks per second
    latency: int = 0  # input time steps
    any_ticks: bool = True  # whether a call may hold any number of time steps; else exactly one
    constants: Mapping[str, Array] = field(default_factory=dict)  # inputs that never change
    certificate: Mapping[str, Any] | None = None
    graph: Mapping[str, Any] | None = None  # ops, parameters and flops, counted at export
    blocks: Blocks | None = None
    steps: Steps | None = None
    probe: Probe | None = None  # set if some outputs show the inside of layers

    def __repr__(self) -> str:
        takes, gives = (brief(", ".join(map(str, tensors))) for tensors in (self.fed, self.given))
        return f"<ModelSpec {takes} -> {gives}; {len(self.states)} states, {self.state_bytes} bytes a stream>"

    @property
    def state_bytes(self) -> int:
        return sum(s.row_bytes for s in self.states)

    @property
    def hop(self) -> int:
        """Time steps of the stream per step of the model."""
        grouped = self.blocks or self.steps
        return self.framing.hop if self.framing else grouped.ticks if grouped else 1

    @property
    def fed(self) -> tuple[TensorSpec, ...]:
        """One time step of a stream's input: a sample if framed, else a tick."""
        inner = 1 if self.framing or self.blocks or self.steps else 0
        return self._of_the_stream(self.inputs, inner)

    @property
    def given(self) -> tuple[TensorSpec, ...]:
        """One time step of a stream's output."""
        return self._of_the_stream(self.outputs, 1 if self.blocks or self.steps else 0)

    @property
    def ratio(self) -> tuple[int, int]:
        """Output rows for input ticks, as (rows, ticks)."""
        return (self.steps.rows, self.steps.ticks) if self.steps else (1, 1)

    def _of_the_stream(self, tensors: tuple[ModelTensor, ...], inner: int) -> tuple[TensorSpec, ...]:
        grouped = self.blocks or self.steps
        own = grouped.own if grouped else ()
        return tuple(TensorSpec(t.name, t.dtype, t.step_shape[inner:]) for t in tensors if t.name not in own)


def brief(text: object, most: int = 60) -> str:
    """Return the beginning of a text, for display in an interactive session."""
    whole = str(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def initial_row(value: Any, row_shape: tuple[int, ...], dtype: str, where: str) -> Array:
    """Return a state's initial row, made from a number or a nested list; read-only."""
    size = math.prod(row_shape) * np.dtype(dtype).itemsize
    if size > MAX_STATE_BYTES:
        raise ModelError(f"{where}: {size} bytes of state a stream; at most {MAX_STATE_BYTES}")
    try:
        row = np.array(np.broadcast_to(np.asarray(value, dtype=dtype), row_shape))
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(
            f"{where}: initial value does not fit shape {row_shape} of {dtype}: {error}"
        ) from None
    if row.dtype.kind == "f" and not np.isfinite(row).all():
        raise ModelError(f"{where}: initial value is not finite")
    row.setflags(write=False)
    return row


def bounded(states: Iterable[ModelState], where: str) -> tuple[ModelState, ...]:
    """Collect the states. Raises ModelError as soon as their total size is above the bound."""
    made: list[ModelState] = []
    size = 0
    for state in states:
        size += state.row_bytes
        if size > MAX_STATE_BYTES:
            raise ModelError(
                f"{where}: the first {len(made) + 1} states take {size} bytes a stream; at most "
                f"{MAX_STATE_BYTES} in one model"
            )
        made.append(state)
    return tuple(made)


def to_document(spec: ModelSpec) -> dict[str, Any]:
    """Return the JSON document (format 1) of a spec. Inverse of `from_document`."""

    def tensor(t: ModelTensor) -> dict[str, Any]:
        return {"name": t.name, "dtype": t.dtype, "shape": list(t.shape)}

    def state(s: ModelState) -> dict[str, Any]:
        flat = s.initial.ravel()
        same = flat.size == 0 or bool((flat == flat[0]).all())
        return {
            "input": s.input,
            "output": s.output,
            "dtype": s.dtype,
            "shape": list(s.shape),
            "slot_axis": s.slot_axis,
            "initial": (flat[0].item() if flat.size else 0) if same else s.initial.tolist(),
        }

    document: dict[str, Any] = {
        "format": FORMAT,
        "inputs": [tensor(t) for t in spec.inputs],
        "outputs": [tensor(t) for t in spec.outputs],
        "states": [state(s) for s in spec.states],
        "latency": spec.latency,
        "ticks": "any" if spec.any_ticks else 1,
    }
    if spec.framing:
        document["framing"] = {"window": spec.framing.window, "hop": spec.framing.hop}
    if spec.blocks:
        document["blocks"] = asdict(spec.blocks)
    if spec.steps:
        document["steps"] = asdict(spec.steps)
    if spec.rate:
        document["rate"] = spec.rate
    if spec.probe:
        document["probe"] = probes.to_document(spec.probe)
    if spec.graph:
        document["graph"] = dict(spec.graph)
    if spec.certificate is not None:
        document["certificate"] = dict(spec.certificate)
    return document


_KEYS = (
    "format",
    "inputs",
    "outputs",
    "states",
    "framing",
    "blocks",
    "steps",
    "rate",
    "latency",
    "ticks",
    "probe",
    "graph",
    "certificate",
)


def from_document(document: Any, where: str) -> ModelSpec:
    """Read a model's document strictly.

    Raises ModelError, which names `where` and the part of the document, for unknown or invalid content.
    """
    doc = _mapping(document, where)
    for key in doc:
        if key not in _KEYS:
            raise ModelError(f"{where}: unknown key {key!r}{nearest(str(key), _KEYS)}")
    if doc.get("format") != FORMAT:
        raise ModelError(
            f"{where}: format {doc.get('format')!r}; this version of runnel reads format {FORMAT}: "
            "export the model again, or upgrade runnel"
        )
    inputs = tuple(_tensor(t, f"{where}: inputs[{i}]") for i, t in enumerate(_items(doc, "inputs", where)))
    outputs = tuple(_tensor(t, f"{where}: outputs[{i}]") for i, t in enumerate(_items(doc, "outputs", where)))
    found = (_state(s, f"{where}: states[{i}]") for i, s in enumerate(_items(doc, "states", where)))
    states = bounded(found, where)
    framing = None
    if doc.get("framing") is not None:
        part = _mapping(doc["framing"], f"{where}: framing")
        framing = Framing(_count(part, "window", where), _count(part, "hop", where))
    blocks = None
    if doc.get("blocks") is not None:
        part, location = _mapping(doc["blocks"], f"{where}: blocks"), f"{where}: blocks"
        blocks = Blocks(
            _count(part, "ticks", location), _count(part, "lookahead", location, 0),
            _name(part, "present", location), _name(part, "kept", location),
        )  # fmt: skip
    steps = None
    if doc.get("steps") is not None:
        part, location = _mapping(doc["steps"], f"{where}: steps"), f"{where}: steps"
        steps = Steps(
            _count(part, "ticks", location), _count(part, "rows", location),
            _count(part, "delay", location, 0), _count(part, "after", location, 0),
            _name(part, "present", location), _name(part, "begun", location),
            _name(part, "kept", location), _name(part, "position", location),
        )  # fmt: skip
    latency, rate, ticks = latency_of(doc, where), rate_of(doc, where), doc.get("ticks", "any")
    if ticks not in ("any", 1):
        raise ModelError(f"{where}: ticks must be 'any' or 1, not {ticks!r}")
    for key in ("certificate", "graph"):
        if doc.get(key) is not None:
            _mapping(doc[key], f"{where}: {key}")
    spec = ModelSpec(
        inputs, outputs, states, framing, rate, latency, ticks == "any",
        certificate=doc.get("certificate"), graph=doc.get("graph"), blocks=blocks, steps=steps,
        probe=_probe(doc, where),
    )  # fmt: skip
    check(spec, where)
    return spec


def check(spec: ModelSpec, where: str) -> None:
    """Check that the parts of a spec fit each other; raise ModelError."""
    if not spec.inputs or not spec.outputs:
        raise ModelError(f"{where}: a step model has at least one input and one output")
    ins = [t.name for t in spec.inputs] + [s.input for s in spec.states] + list(spec.constants)
    outs = [t.name for t in spec.outputs] + [s.output for s in spec.states]
    for names, what in ((ins, "input"), (outs, "output")):
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            raise ModelError(f"{where}: {what} {sorted(twice)[0]!r} is named twice")
    for t in (*spec.inputs, *spec.outputs):
        if t.shape.count(SLOT) != 1 or t.shape.count(TIME) > 1:
            raise ModelError(
                f"{where}: {t.name!r} has shape {list(t.shape)}: one 'slot' and at most one 'time'"
            )
    if spec.any_ticks and any(t.time_axis is None for t in (*spec.inputs, *spec.outputs)):
        raise ModelError(f"{where}: ticks is 'any', but not every input and output has a 'time' axis")
    if spec.framing and len(spec.inputs) != 1:
        raise ModelError(f"{where}: framing needs a model with one input, this one has {len(spec.inputs)}")
    if spec.framing and (spec.inputs[0].step_shape[:1] != (spec.framing.window,)):
        raise ModelError(
            f"{where}: window is {spec.framing.window}, but {spec.inputs[0].name!r} takes "
            f"{list(spec.inputs[0].step_shape)} a step"
        )

    if spec.blocks:
        _check_blocks(spec, spec.blocks, where)
    if spec.steps:
        _check_steps(spec, spec.steps, where)
    if spec.probe:
        _check_probe(spec, spec.probe, where)


def _check_blocks(spec: ModelSpec, blocks: Blocks, where: str) -> None:
    if spec.framing or spec.any_ticks:
        raise ModelError(f"{where}: a model that takes blocks has no framing, and takes one block a call")
    if spec.latency != blocks.latency:
        raise ModelError(
            f"{where}: latency is {spec.latency}, but a block of {blocks.ticks} ticks with a lookahead of "
            f"{blocks.lookahead} has {blocks.latency}"
        )
    for tensors, own, rows in (
        (spec.inputs, blocks.present, blocks.window),
        (spec.outputs, blocks.kept, blocks.ticks),
    ):
        counts = [t for t in tensors if t.name == own]
        if [(t.dtype, t.shape) for t in counts] != [("int32", (SLOT,))] or len(tensors) < 2:
            raise ModelError(f"{where}: blocks need {own!r}, int32 of shape ['slot'], besides another tensor")
        for t in tensors:
            if t.name != own and (t.time_axis is not None or t.step_shape[:1] != (rows,)):
                raise ModelError(
                    f"{where}: {t.name!r} has shape {list(t.shape)}: {rows} ticks first, no 'time'"
                )


def _check_steps(spec: ModelSpec, steps: Steps, where: str) -> None:
    if spec.framing or spec.blocks or not spec.any_ticks:
        raise ModelError(
            f"{where}: a model that takes steps has no framing and no blocks, and any steps a call"
        )
    if spec.latency != steps.latency:
        raise ModelError(
            f"{where}: latency is {spec.latency}, but steps of {steps.ticks} ticks with a delay of "
            f"{steps.delay} have {steps.latency}"
        )
    counters = {s.input: (s.dtype, s.shape) for s in spec.states if s.input == steps.position}
    if counters != {steps.position: ("int64", (SLOT,))}:
        raise ModelError(f"{where}: steps need a state {steps.position!r}, int64 of shape ['slot']")
    for tensors, own, rows in (
        (spec.inputs, (steps.present,), steps.ticks),
        (spec.outputs, (steps.begun, steps.kept), steps.rows),
    ):
        counts = {t.name: (t.dtype, t.shape) for t in tensors if t.name in own}
        if counts != dict.fromkeys(own, ("int32", (TIME, SLOT))) or len(tensors) <= len(own):
            raise ModelError(
                f"{where}: steps need {' and '.join(map(repr, own))}, int32 of shape ['time', 'slot'], "
                "besides another tensor"
            )
        for t in tensors:
            if t.name not in own and t.step_shape[:1] != (rows,):
                raise ModelError(
                    f"{where}: {t.name!r} has shape {list(t.shape)}: {rows} rows first in a step"
                )


def _check_probe(spec: ModelSpec, probe: Probe, where: str) -> None:
    shown = probe.outputs
    floats = {t.name for t in spec.given if t.dtype == "float32" and len(t.shape) == 1}
    for name, count in Counter(shown).items():
        if count > 1 or name not in floats:
            raise ModelError(
                f"{where}: the probe names {name!r} twice, or no output of float32 by hidden unit"
            )
    rows = {s.input: s.row_bytes // np.dtype(s.dtype).itemsize for s in spec.states}
    widths = {t.name: t.shape[-1] for t in spec.given if t.shape}
    for layer in probe.layers:
        known = probes.KNOWN.get(layer.kind)
        units = {widths[name] for letter, name in layer.outputs.items() if letter != "h"}
        if not layer.outputs or (known and (layer.outputs.keys() != known or len(units) > 1)):
            shows = ", ".join(x for x in probes.MEANING if x in (known or ()))
            raise ModelError(
                f"{where}: the probe's layer {layer.name!r} is no {layer.kind}: that shows "
                f"{shows or 'something'}, of one width"
            )
        for letter, name in layer.states.items():
            if letter not in layer.outputs or rows.get(name) != widths[layer.outputs[letter]]:
                raise ModelError(
                    f"{where}: the probe's {letter!r} of {layer.name!r} is not what state {name!r} is"
                )
    if len(shown) >= len(spec.given):
        raise ModelError(f"{where}: a probe gives what its model gives besides what it shows")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ModelError(f"{where}: expected an object, not {type(value).__name__}")
    return value


def _items(doc: Mapping[str, Any], key: str, where: str) -> list[Any]:
    items = doc.get(key, [])
    if not isinstance(items, list) or len(items) > MAX_STATES:
        raise ModelError(f"{where}: {key} must be a list of at most {MAX_STATES}")
    return items


def _count(part: Mapping[str, Any], key: str, where: str, least: int = 1) -> int:
    value = part.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ModelError(f"{where}: {key} must be a whole number of at least {least}, not {value!r}")
    return value


def _name(part: Mapping[str, Any], key: str, where: str) -> str:
    value = part.get(key)
    if not isinstance(value, str) or not value:
        raise ModelError(f"{where}: {key} must be a name, not {value!r}")
    return value


def _probe(doc: Mapping[str, Any], where: str) -> Probe | None:
    if doc.get("probe") is None:
        return None
    part, where = _mapping(doc["probe"], f"{where}: probe"), f"{where}: probe"
    layers = []
    for i, item in enumerate(_items(part, "layers", where)):
        location = f"{where}: layers[{i}]"
        layer = _mapping(item, location)
        outputs, states = _lettered(layer, "outputs", location), _lettered(layer, "states", location)
        flags = {flag: layer.get(flag, False) for flag in probes.FLAGS}
        for flag, value in flags.items():
            if not isinstance(value, bool):
                raise ModelError(f"{location}: {flag} must be true or false, not {value!r:.80}")
        name, kind = _name(layer, "name", location), _name(layer, "kind", location)
        layers.append(ProbeLayer(name, kind, outputs, states, **flags))
    return Probe(_name(part, "of", where), tuple(layers))


def _lettered(layer: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    """Read names by their letter."""
    part = _mapping(layer.get(key, {} if key == "states" else None), f"{where}: {key}")
    for letter in part:
        if letter not in probes.MEANING:
            raise ModelError(f"{where}: {key}: {letter!r:.80} is none of {', '.join(probes.MEANING)}")
    return {letter: _name(part, letter, f"{where}: {key}") for letter in part}


def latency_of(part: Mapping[str, Any], where: str) -> int:
    value = part.get("latency", 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ModelError(f"{where}: latency must be a count of input time steps, not {value!r}")
    return value


def rate_of(part: Mapping[str, Any], where: str) -> float | None:
    value = part.get("rate")
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MAX_RATE:
        raise ModelError(f"{where}: rate must be a positive number of Hz, not {value!r:.80}")
    return value


def dtype_of(value: Any, where: str) -> str:
    if value not in DTYPES:
        raise ModelError(f"{where}: dtype {value!r} is not one of {', '.join(DTYPES)}")
    return str(value)


def shape_of(value: Any, where: str, words: tuple[str, ...]) -> tuple[Dim, ...]:
    """Read a shape of positive ints and the given words."""
    good = (
        isinstance(value, list | tuple)
        and len(value) <= MAX_RANK
        and all(
            d in words if isinstance(d, str) else isinstance(d, int) and not isinstance(d, bool) and d > 0
            for d in value
        )
    )
    if not good:
        wanted = " or ".join(["positive whole numbers", *map(repr, words)])
        raise ModelError(f"{where}: shape {value!r:.200}: at most {MAX_RANK} {wanted}")
    return tuple(value)


def _tensor(value: Any, where: str) -> ModelTensor:
    part = _mapping(value, where)
    return ModelTensor(
        _name(part, "name", where), dtype_of(part.get("dtype"), where),
        shape_of(part.get("shape"), where, (TIME, SLOT)),
    )  # fmt: skip


def _state(value: Any, where: str) -> ModelState:
    part = _mapping(value, where)
    shape = shape_of(part.get("shape"), where, (SLOT,))
    if shape.count(SLOT) != 1:
        raise ModelError(f"{where}: shape {list(shape)} must hold 'slot' once")
    if part.get("slot_axis", shape.index(SLOT)) != shape.index(SLOT):
        raise ModelError(
            f"{where}: slot_axis {part['slot_axis']!r} is not where 'slot' stands in {list(shape)}"
        )
    dtype = dtype_of(part.get("dtype"), where)
    row_shape = tuple(d for d in shape if isinstance(d, int))
    return ModelState(
        _name(part, "input", where), _name(part, "output", where), dtype, shape,
        initial_row(part.get("initial", 0), row_shape, dtype, where),
    )  # fmt: skip
