"""From a file to a pipeline: a TOML pipeline file, or a model that describes itself.

Read strictly: an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import container
from .errors import CertificateError, ModelError, PipelineError, nearest
from .framing import Frame
from .pipeline import Pipeline
from .spec import (
    SLOT,
    TIME,
    Framing,
    ModelSpec,
    ModelState,
    ModelTensor,
    Signal,
    TensorSpec,
    check,
    dtype_of,
    from_document,
    initial_row,
    shape_of,
)
from .stage import Stage

if TYPE_CHECKING:
    import onnxruntime as ort

MAX_PIPELINE_FILE = 2**20  # bytes: it is written by hand
MAX_STAGES = 64

_TOP = ("input", "model", "before", "after")
_INPUT = ("rate", "shape", "dtype")
_MODEL = (
    "path", "window", "hop", "rate", "latency", "inputs", "outputs", "constants", "state", "shapes",
)  # fmt: skip
_RENAMES = ("path", "inputs", "outputs")  # what may be said of a model that describes itself
_STATE = ("input", "output", "shape", "dtype", "initial")

Providers = Sequence[str | tuple[str, dict[str, Any]]] | None


def load_pipeline(
    path: Path, slots: int, providers: Providers, threads: int, trust: bool, flush_denormals: bool
) -> Pipeline:
    """The pipeline of a .toml or .onnx file, with room for `slots` streams; raises errors of the tree."""
    if path.suffix == ".toml":
        document = _read_toml(path)
    else:
        document = {"model": {"path": path.name}}
    where = str(path)
    _known(document, _TOP, where)
    model_part = _table(document, "model", where)
    if "path" not in model_part:
        raise PipelineError(f'{where}: [model] needs path = "….onnx"')
    file = path.parent / _text(model_part, "path", f"{where}: [model]")

    from .model import ModelStage, load_session  # onnxruntime starts only here

    data = container.read(file)
    described = container.document(data, str(file))
    if described is not None:
        _known(model_part, _RENAMES, f"{where}: [model] (this model describes itself)")
        _vouch(data, described, file, trust)
        spec = from_document(described, str(file))
        session = load_session(data, str(file), providers, threads, flush_denormals)
        _agree(spec, session, str(file))
    else:
        _known(model_part, _MODEL, f"{where}: [model]")
        if path.suffix != ".toml":
            raise ModelError(
                f"{file}: this ONNX file does not describe its states. Export it with runnel_export, or "
                "declare them in a pipeline file (.toml) with [[model.state]] and load that"
            )
        session = load_session(data, str(file), providers, threads, flush_denormals)
        spec = _declared(model_part, session, f"{where}: [model]")
    renamed = _renames(model_part, spec, f"{where}: [model")
    model = ModelStage(session, spec, slots, renamed, file.stem)

    before = _stages(document, "before", where)
    after = _stages(document, "after", where)
    signal = _outer(model, spec)
    if before or "input" in document:
        signal = _input(_table(document, "input", where), signal, before, where)
    stages: list[Stage] = []
    for use, options, place in before:
        stages.append(_plugin(use, signal, options, place))
        signal = stages[-1].outputs
    if spec.framing:
        inner = model.inputs.tensors[0]
        source = TensorSpec(inner.name, inner.dtype, inner.shape[1:])
        stages.append(Frame(source, inner.name, spec.framing, spec.rate))
    stages.append(model)
    signal = model.outputs
    for use, options, place in after:
        stages.append(_plugin(use, signal, options, place))
        signal = stages[-1].outputs
    identity = {
        "model": hashlib.sha256(data).hexdigest(),
        "file": {**document, "model": {**model_part, "path": ""}},
    }
    try:
        return Pipeline(stages, spec, identity)
    except PipelineError as error:
        raise PipelineError(f"{where}: {error.message}") from None


def _vouch(data: bytes, described: Mapping[str, Any], file: Path, trust: bool) -> None:
    """Refuse a file that no certificate vouches for."""
    if trust:
        return
    certificate = described.get("certificate")
    if not isinstance(certificate, Mapping) or "hash" not in certificate:
        raise CertificateError(
            f"{file}: it has no certificate. Export it with runnel_export; "
            "to run it all the same: trust=True (--trust)"
        )
    found = container.digest(data, described, str(file))
    if found != certificate["hash"]:
        raise CertificateError(
            f"{file}: this is not the file that was certified (hash {found[:23]}…, certified "
            f"{str(certificate['hash'])[:23]}…): damaged or edited. Fetch or export it again; "
            "to run it all the same: trust=True (--trust)"
        )


def _agree(spec: ModelSpec, session: ort.InferenceSession, where: str) -> None:
    """The description's names must be the graph's, no more and no fewer."""
    described = {t.name for t in spec.inputs} | {s.input for s in spec.states}
    graph = {v.name for v in session.get_inputs()}
    if described != graph:
        raise ModelError(f"{where}: describes inputs {sorted(described)}, but the graph has {sorted(graph)}")
    missing = {t.name for t in spec.outputs} | {s.output for s in spec.states}
    missing -= {v.name for v in session.get_outputs()}
    if missing:
        raise ModelError(f"{where}: describes outputs {sorted(missing)} that the graph does not have")


# A foreign model, declared in the pipeline file


def _declared(part: Mapping[str, Any], session: ort.InferenceSession, where: str) -> ModelSpec:
    from .model import ORT_TYPES, output_shapes

    graph_in = {v.name: v for v in session.get_inputs()}
    dtypes = {v.name: ORT_TYPES.get(v.type, v.type) for v in (*session.get_inputs(), *session.get_outputs())}
    graph_out = [v.name for v in session.get_outputs()]
    constants = {}
    for name, value in _table(part, "constants", where).items():
        _in_graph(name, list(graph_in), f"{where[:-1]}.constants]")
        constants[name] = np.asarray(value, dtypes[name])
    states = []
    for i, entry in enumerate(_list(part, "state", where)):
        place = f"{where[:-1]}.state] number {i + 1}"
        _known(entry, _STATE, place)
        name, output = _text(entry, "input", place), _text(entry, "output", place)
        _in_graph(name, list(graph_in), place)
        _in_graph(output, graph_out, place)
        dtype = dtype_of(entry.get("dtype", dtypes[name]), place)
        shape = shape_of(entry.get("shape"), place, (SLOT,))
        if shape.count(SLOT) != 1:
            raise PipelineError(
                f"{place}: shape {list(shape)} must hold 'slot' once: the axis of the streams"
            )
        row_shape = tuple(d for d in shape if isinstance(d, int))
        states.append(
            ModelState(
                name, output, dtype, shape, initial_row(entry.get("initial", 0), row_shape, dtype, place)
            )
        )
    framing = None
    if "window" in part or "hop" in part:
        framing = Framing(_whole(part, "window", where), _whole(part, "hop", where))
    shapes = _table(part, "shapes", where)
    free = [n for n in graph_in if n not in constants and n not in {s.input for s in states}]
    for name in shapes:
        _in_graph(name, free, f"{where[:-1]}.shapes]")
    inputs = tuple(
        ModelTensor(n, dtype_of(dtypes[n], where), _input_shape(n, graph_in[n].shape, shapes, framing, where))
        for n in free
    )
    rate, latency = part.get("rate"), part.get("latency", 0)
    any_ticks = bool(inputs) and all(TIME in t.shape for t in inputs)
    spec = ModelSpec(inputs, (), tuple(states), framing, rate, latency, any_ticks, constants)
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
    """A foreign input's shape, from the file, the framing, or [model.shapes]."""
    if name in declared:
        return shape_of(declared[name], f"{where[:-1]}.shapes] {name}", (TIME, SLOT))
    # A name, nothing, or 0 stands for a size that the file leaves open.
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
        f'say it under [model.shapes], for example {name} = ["slot", "time", 80]; if it is a state, '
        "declare it under [[model.state]], if it never changes, under [model.constants]"
    )


def _renames(part: Mapping[str, Any], spec: ModelSpec, where: str) -> dict[str, str]:
    """Model name -> chunk name, from [model.inputs] and [model.outputs]."""
    renamed: dict[str, str] = {}
    for key, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        table = _table(part, key, f"{where}]")
        for name in table:
            _in_graph(name, [t.name for t in tensors], f"{where}.{key}]")
            renamed[name] = _text(table, name, f"{where}.{key}]")
        names = [renamed.get(t.name, t.name) for t in tensors]
        if len(set(names)) < len(names):
            raise PipelineError(f"{where}.{key}]: two of {names} have one name")
    return renamed


# The stages around it


def _plugin(use: str, signal: Signal, options: Mapping[str, Any], where: str) -> Stage:
    from .plugins import make_stage  # pluggy and package metadata, only where a stage is named

    return make_stage(use, signal, options, where)


def _outer(model: Stage, spec: ModelSpec) -> Signal:
    """What the model takes, counted in samples where it is framed."""
    if not spec.framing:
        return model.inputs
    inner = model.inputs.tensors[0]
    return Signal((TensorSpec(inner.name, inner.dtype, inner.shape[1:]),), spec.rate)


def _input(part: Mapping[str, Any], default: Signal, before: Sequence[Any], where: str) -> Signal:
    """[input]: what clients send to the first of the stages before the model; its rate only if said."""
    place = f"{where}: [input]"
    _known(part, _INPUT, place)
    if not before:
        raise PipelineError(f"{place} says what comes before the stages of [[before]], and there are none")
    if len(default.tensors) != 1 and ("shape" in part or "dtype" in part):
        raise PipelineError(
            f"{place}: shape and dtype are for a model with one input, this one takes {default}"
        )
    rate = part.get("rate")
    if rate is not None and not (isinstance(rate, int | float) and rate > 0):
        raise PipelineError(f"{place}: rate must be a positive number of Hz, not {rate!r}")
    tensors = default.tensors
    if len(tensors) == 1:
        shape = part.get("shape", list(tensors[0].shape))
        dtype = dtype_of(part.get("dtype", tensors[0].dtype), place)
        sizes = tuple(d for d in shape_of(shape, place, ()) if isinstance(d, int))
        tensors = (TensorSpec(tensors[0].name, dtype, sizes),)
    return Signal(tensors, float(rate) if rate else None)


def _stages(document: Mapping[str, Any], key: str, where: str) -> list[tuple[str, dict[str, Any], str]]:
    """(use, options, where) of each [[before]] or [[after]] entry."""
    entries = _list(document, key, where)
    if len(entries) > MAX_STAGES:
        raise PipelineError(f"{where}: {len(entries)} [[{key}]] stages; at most {MAX_STAGES}")
    found = []
    for i, entry in enumerate(entries):
        place = f"{where}: [[{key}]] number {i + 1}"
        options = dict(entry)
        use = _text(options, "use", place)
        del options["use"]
        found.append((use, options, f"{place} ({use})"))
    return found


# Reading TOML


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_PIPELINE_FILE:
            raise PipelineError(f"{path}: a pipeline file has at most {MAX_PIPELINE_FILE} bytes")
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise PipelineError(f"{path}: cannot read the pipeline: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not TOML: {error}") from None


def _known(part: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in part:
        if key not in keys:
            raise PipelineError(f"{where}: unknown key {key!r}{nearest(key, keys)}")


def _table(part: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = part.get(key, {})
    if not isinstance(value, Mapping):
        raise PipelineError(f"{where}: {key} must be a table, not {value!r:.80}")
    return value


def _list(part: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    value = part.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
        raise PipelineError(f"{where}: {key} must be written as [[{key}]] tables")
    return value


def _text(part: Mapping[str, Any], key: str, where: str) -> str:
    value = part.get(key)
    if not isinstance(value, str) or not value:
        raise PipelineError(f"{where}: {key} must be a text, not {value!r}")
    return value


def _whole(part: Mapping[str, Any], key: str, where: str) -> int:
    value = part.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PipelineError(f"{where}: {key} must be a whole number of at least 1, not {value!r}")
    return value


def _in_graph(name: str, names: Sequence[str], where: str) -> None:
    if name not in names:
        raise PipelineError(f"{where}: the model has no {name!r}{nearest(name, list(names))}")
