"""From a file to a pipeline: a TOML pipeline file, or a model that describes itself.

Read strictly: an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import container, foreign, tables
from .errors import CertificateError, ModelError, PipelineError
from .framing import Frame
from .pipeline import Pipeline
from .spec import ModelSpec, Signal, TensorSpec, dtype_of, from_document, rate_of, shape_of
from .stage import Stage

if TYPE_CHECKING:
    import onnxruntime as ort

MAX_STAGES = 64

_TOP = ("input", "model", "before", "after", "serve")
_INPUT = ("rate", "shape", "dtype")
_RENAMES = ("path", "inputs", "outputs")  # what may be said of a model that describes itself

Providers = Sequence[str | tuple[str, dict[str, Any]]] | None


def load_pipeline(
    path: Path, slots: int, providers: Providers, threads: int, trust: bool, flush_denormals: bool
) -> Pipeline:
    """The pipeline of a .toml or .onnx file, with room for `slots` streams; raises errors of the tree."""
    if path.is_dir():
        raise PipelineError(f"{path} is a folder: name a pipeline (.toml) or a model (.onnx) in it")
    if path.suffix == ".toml":
        document = tables.read_toml(path)
    else:
        document = {"model": {"path": path.name}}
    where = str(path)
    tables.known(document, _TOP, where)
    model_part = tables.table(document, "model", where)
    if "path" not in model_part:
        raise PipelineError(f'{where}: [model] needs path = "….onnx"')
    file = path.parent / tables.text(model_part, "path", f"{where}: [model]")

    from .model import ModelStage, load_session  # onnxruntime starts only here

    data = container.read(file)
    described = container.document(data, str(file))
    if described is not None:
        tables.known(model_part, _RENAMES, f"{where}: [model] (this model describes itself)")
        _vouch(data, described, file, trust)
        spec = from_document(described, str(file))
        session = load_session(data, str(file), providers, threads, flush_denormals)
        _agree(spec, session, str(file))
    else:
        tables.known(model_part, foreign.KEYS, f"{where}: [model]")
        if path.suffix != ".toml":
            raise ModelError(
                f"{file}: this ONNX file does not describe its states. Export it with runnel_export, or "
                "declare them in a pipeline file (.toml) with [[model.state]] and load that"
            )
        session = load_session(data, str(file), providers, threads, flush_denormals)
        spec = foreign.declared(model_part, session, f"{where}: [model]")
    renamed = _renames(model_part, spec, f"{where}: [model")
    model = ModelStage(session, spec, slots, renamed, file.stem)

    before = _stages(document, "before", where)
    after = _stages(document, "after", where)
    signal = _outer(model, spec)
    if before or "input" in document:
        signal = _input(tables.table(document, "input", where), signal, before, where)
    stages: list[Stage] = []
    for use, options, place in before:
        stages.append(_plugin(use, signal, options, place))
        signal = stages[-1].outputs
    if spec.framing:
        inner = model.inputs.tensors[0]
        source = TensorSpec(inner.name, inner.dtype, inner.shape[1:])
        stages.append(Frame(source, inner.name, spec.framing, spec.rate, spec.latency))
    stages.append(model)
    signal = model.outputs
    for use, options, place in after:
        stages.append(_plugin(use, signal, options, place))
        signal = stages[-1].outputs
    # How a pipeline is served is not what it computes: a snapshot fits whatever [serve] says.
    computed = {key: part for key, part in document.items() if key != "serve"}
    identity = {
        "model": hashlib.sha256(data).hexdigest(),
        "file": {**computed, "model": {**model_part, "path": ""}},
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


def _renames(part: Mapping[str, Any], spec: ModelSpec, where: str) -> dict[str, str]:
    """Model name -> chunk name, from [model.inputs] and [model.outputs]."""
    renamed: dict[str, str] = {}
    for key, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        table = tables.table(part, key, f"{where}]")
        for name in table:
            tables.among(name, [t.name for t in tensors], f"{where}.{key}]")
            renamed[name] = tables.text(table, name, f"{where}.{key}]")
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
    tables.known(part, _INPUT, place)
    if not before:
        raise PipelineError(f"{place} says what comes before the stages of [[before]], and there are none")
    if len(default.tensors) != 1 and ("shape" in part or "dtype" in part):
        raise PipelineError(
            f"{place}: shape and dtype are for a model with one input, this one takes {default}"
        )
    rate = rate_of(part, place)
    tensors = default.tensors
    if len(tensors) == 1:
        shape = part.get("shape", list(tensors[0].shape))
        dtype = dtype_of(part.get("dtype", tensors[0].dtype), place)
        sizes = tuple(d for d in shape_of(shape, place, ()) if isinstance(d, int))
        tensors = (TensorSpec(tensors[0].name, dtype, sizes),)
    return Signal(tensors, float(rate) if rate else None)


def _stages(document: Mapping[str, Any], key: str, where: str) -> list[tuple[str, dict[str, Any], str]]:
    """(use, options, where) of each [[before]] or [[after]] entry."""
    entries = tables.tables(document, key, where)
    if len(entries) > MAX_STAGES:
        raise PipelineError(f"{where}: {len(entries)} [[{key}]] stages; at most {MAX_STAGES}")
    found = []
    for i, entry in enumerate(entries):
        place = f"{where}: [[{key}]] number {i + 1}"
        options = dict(entry)
        use = tables.text(options, "use", place)
        del options["use"]
        found.append((use, options, f"{place} ({use})"))
    return found
