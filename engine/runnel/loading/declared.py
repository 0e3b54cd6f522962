"""Foreign models: models that Runnel did not export, declared in a pipeline file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PipelineError
from ..grouping import Framing
from ..spec import (
    SLOT,
    TIME,
    ModelSpec,
    ModelState,
    ModelTensor,
    bounded,
    check,
    dtype_of,
    initial_row,
    latency_of,
    rate_of,
    shape_of,
)
from . import recurrence, toml

if TYPE_CHECKING:
    import onnxruntime as ort

KEYS = (
    "path", "window", "hop", "rate", "latency", "inputs", "outputs", "constants", "state", "shapes",
    "restarts",
)  # fmt: skip
_STATE = ("input", "output", "shape", "dtype", "initial")


def declared(part: Mapping[str, Any], session: ort.InferenceSession, data: bytes, where: str) -> ModelSpec:
    """Return a model's spec from the file's graph (`data`) and the declaration.

    A trial run finds the shapes of the outputs if neither gives them. Raises PipelineError, ModelError; also
    if a recurrent operator keeps no state between calls.
    """
    from ..model.session import ORT_TYPES, output_shapes

    graph_in = {v.name: v for v in session.get_inputs()}
    dtypes = {v.name: ORT_TYPES.get(v.type, v.type) for v in (*session.get_inputs(), *session.get_outputs())}
    graph_out = [v.name for v in session.get_outputs()]
    constants = {}
    for name, value in toml.table(part, "constants", where).items():
        toml.among(name, list(graph_in), toml.within(where, "constants"))
        try:
            constants[name] = np.asarray(value, dtypes[name])
        except (ValueError, TypeError, OverflowError):
            location = toml.within(where, "constants")
            raise PipelineError(
                f"{location}: {name} is {dtypes[name]} in the model, not {value!r:.80}"
            ) from None
    states: list[ModelState] = []
    for i, entry in enumerate(toml.tables(part, "state", where)):
        location = f"{toml.within(where, 'state')} number {i + 1}"
        toml.known(entry, _STATE, location)
        name, output = toml.text(entry, "input", location), toml.text(entry, "output", location)
        toml.among(name, list(graph_in), location)
        toml.among(output, graph_out, location)
        dtype = dtype_of(entry.get("dtype", dtypes[name]), location)
        shape = shape_of(entry.get("shape"), location, (SLOT,))
        if shape.count(SLOT) != 1:
            raise PipelineError(
                f"{location}: shape {list(shape)} must hold 'slot' once: the axis of the streams"
            )
        row_shape = tuple(d for d in shape if isinstance(d, int))
        states.append(
            ModelState(
                name, output, dtype, shape, initial_row(entry.get("initial", 0), row_shape, dtype, location)
            )
        )
        bounded(states, toml.within(where, "state"))
    framing = None
    if "window" in part or "hop" in part:
        framing = Framing(toml.whole(part, "window", where), toml.whole(part, "hop", where))
    shapes = toml.table(part, "shapes", where)
    free = [n for n in graph_in if n not in constants and n not in {s.input for s in states}]
    for name in shapes:
        toml.among(name, free, toml.within(where, "shapes"))
    inputs = tuple(
        ModelTensor(n, dtype_of(dtypes[n], where), _input_shape(n, graph_in[n].shape, shapes, framing, where))
        for n in free
    )
    rate, latency = rate_of(part, where), latency_of(part, where)
    restarts = part.get("restarts", False)
    if not isinstance(restarts, bool):
        raise PipelineError(f"{where}: restarts must be true or false, not {restarts!r:.80}")
    any_ticks = bool(inputs) and all(TIME in t.shape for t in inputs)
    spec = ModelSpec(inputs, (), tuple(states), framing, rate, latency, any_ticks, constants)
    # Before the trial: its error says more than the trial's.
    recurrence.check(data, spec, restarts, where)
    kept = [n for n in graph_out if n not in {s.output for s in states}]
    outputs = tuple(
        ModelTensor(name, dtype_of(dtypes[name], where), shape)
        for name, shape in output_shapes(session, spec, kept, where).items()
    )
    spec = replace(spec, outputs=outputs)
    check(spec, where)
    return spec


def _input_shape(
    name: str, shape: Sequence[Any], declared: Mapping[str, Any], framing: Framing | None, where: str
) -> tuple[int | str, ...]:
    """Return a foreign input's shape, from the file, the framing, or the table `shapes`."""
    if name in declared:
        return shape_of(declared[name], f"{toml.within(where, 'shapes')} {name}", (TIME, SLOT))
    # A name, nothing, or 0 marks a size that the file leaves open.
    dims = [d if isinstance(d, int) and d > 0 else None for d in shape]
    if (
        framing
        and len(dims) >= 2
        and all(d is not None for d in dims[2:])
        and dims[1] in (None, framing.window)
    ):
        return (SLOT, framing.window, *(d for d in dims[2:] if d is not None))
    if dims and dims[0] is None and all(d is not None for d in dims[1:]):
        return (SLOT, *(d for d in dims[1:] if d is not None))
    raise PipelineError(
        f"{where}: input {name!r} has shape {list(shape)} in the file, which leaves open what is what: "
        f'say it under shapes ([model.shapes]), for example {name} = ["slot", "time", 80]; if it is a state, '
        "declare it under state ([[model.state]]), if it never changes, under constants"
    )
