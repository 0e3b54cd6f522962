"""Load a pipeline from a TOML pipeline file, or from a model that describes itself.

Reading is strict: an unknown key is an error that names the nearest known key.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .. import regular
from ..errors import ModelError, PipelineError, nearest
from ..insight import health, taps
from ..notices import Listener, Notices
from ..pipeline import feedback
from ..pipeline.identity import Part, digest
from ..pipeline.pipeline import Pipeline, same_rate
from ..spec import Signal, TensorSpec, dtype_of, rate_of, shape_of
from ..stage import MAX_PASSAGES, Stage
from . import toml
from .modelfile import ModelFile, Providers, RunOptions, read_model

MAX_STAGES: Final = 64
MAX_LISTENERS: Final = 16
MAX_INPUTS: Final = 64  # tensors of a chunk: as many as a message may have
MAX_SECONDS: Final = 1e9  # for a stage's chunk, and for the patience of a health check
# Bytes of a file that an option names, which is read whole.
MAX_OPTION_FILE: Final = 64 * 2**20
MODEL: Final = "model"  # the `use` of a model among the stages
DEFAULT_INPUT: Final = "x"  # name of the input if neither a model nor [input.tensors] gives one

_TOP = (
    "input", "model", "before", "after", "feedback", "limits", "health", "notice", "serve", "source", "sink",
)  # fmt: skip
_INPUT = ("rate", "shape", "dtype", "tensors")
_LIMITS = ("stage_seconds",)
_TENSOR = ("shape", "dtype")


@dataclass(slots=True)
class _Entry:
    """One of the file's stages, in order; [model] is one of them."""

    key: str  # the table of the file that it is in
    use: str
    options: dict[str, Any]
    location: str  # its name in errors
    model: ModelFile | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)  # options as they enter the fingerprint
    package: str = ""  # a plugin's distribution and version


def load_pipeline(
    path: Path,
    slots: int,
    providers: Providers,
    threads: int,
    trust: bool,
    flush_denormals: bool,
    observer: taps.Observer | None = None,
) -> Pipeline:
    """Load the pipeline of a .toml or .onnx file, for up to `slots` streams.

    `observer`: gets all values of its one stream. A model with a probe beside it is then run as the probe;
    input and output are the same.
    """
    if path.is_dir():
        raise PipelineError(f"{path} is a folder: name a pipeline (.toml) or a model (.onnx) in it")
    in_toml = path.suffix == ".toml"
    document = toml.read_toml(path) if in_toml else {"model": {"path": path.name}}
    where = str(path)
    toml.known(document, _TOP, where)
    entries, main = _entries(document, where)
    running = RunOptions(slots, providers, threads, trust, flush_denormals, probes=observer is not None)
    for entry in entries:
        if entry.use == MODEL:
            try:
                entry.model = read_model(entry.options, path.parent, entry.location, running, in_toml)
            except ModelError as error:
                if in_toml or path.suffix == ".onnx":
                    raise
                raise ModelError(
                    f"{error.message}; the name of a pipeline ends in .toml, that of a model in .onnx"
                ) from None

    # A feedback step forks each of its streams, and all streams may be stepped at once.
    forks = MAX_PASSAGES + (slots if "feedback" in document else 0)
    signal = arriving = _first_signal(document, entries, main, where)
    stages: list[Stage] = []
    for entry in entries:
        if entry.model is not None:
            made = entry.model.stages(signal.rate, slots, forks)
            _check_arrives(made[0].inputs, signal, entry)
            entry.identity = {**entry.options, "path": ""}  # the file's content counts, not its path
            if observer is not None:
                made = taps.around(entry.model, made, stages, signal, observer)
        else:
            made = [_plugin(entry, signal, path.parent)]
        stages += made
        signal = stages[-1].outputs
    taken = stages[0].inputs
    if set(taken.tensors) != set(arriving.tensors) or not same_rate(taken.rate, arriving.rate):
        raise PipelineError(f"{where}: [input] says {arriving}, but {entries[0].location} takes {taken}")
    if observer is not None:
        stages = taps.between(stages, observer)
    spec = main.model.spec if main is not None and main.model is not None else None
    parts, seconds = _parts(document, entries), _stage_seconds(document, where)
    try:
        pipeline = Pipeline(stages, spec, {}, seconds, parts)
    except PipelineError as error:
        raise PipelineError(f"{where}: {error.message}") from None
    if "feedback" not in document:
        return pipeline
    loop = feedback.read(toml.table(document, "feedback", where), pipeline, f"{where}: [feedback]")
    return Pipeline([loop], spec, {}, parts=parts)


def load_notices(path: Path) -> Notices:
    """Load the listeners to events of streams: the [[notice]] tables of a pipeline file."""
    if path.suffix != ".toml":
        return Notices()
    where = str(path)
    entries = toml.tables(toml.read_toml(path), "notice", where)
    if not entries:
        return Notices()
    from .registry import make

    if len(entries) > MAX_LISTENERS:
        raise PipelineError(f"{where}: {len(entries)} [[notice]] tables; at most {MAX_LISTENERS}")
    listeners: list[tuple[str, Listener]] = []
    for i, entry in enumerate(entries):
        location = f"{where}: [[notice]] number {i + 1}"
        options = dict(entry)
        use = toml.text(options, "use", location)
        del options["use"]
        listeners.append((use, make("notice", use, (), options, f"{location} ({use})", path.parent)))
    return Notices(listeners)


def load_health(path: Path) -> health.Settings:
    """Load the settings of health checks: the [health] table of a pipeline file."""
    if path.suffix != ".toml":
        return health.Settings()
    part = toml.table(toml.read_toml(path), "health", str(path))
    return health.settings(part, f"{path}: [health]")


def _stage_seconds(document: Mapping[str, Any], where: str) -> float | None:
    """Read [limits] stage_seconds: the time limit of a stage for one stream's chunk."""
    part, location = toml.table(document, "limits", where), f"{where}: [limits]"
    toml.known(part, _LIMITS, location)
    value = part.get("stage_seconds")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SECONDS:
        raise PipelineError(
            f"{location}: stage_seconds must be a number of seconds above 0, not {value!r:.80}"
        )
    return float(value)


def _parts(document: Mapping[str, Any], entries: Sequence[_Entry]) -> list[Part]:
    """Return the identity of a pipeline.

    It covers the file's tables that affect its numbers, and the content of named files. How a pipeline is
    served, and its sources and sinks, are not part of it: they do not invalidate a snapshot.
    """
    computing = [key for key in ("input", "feedback") if key in document]
    parts = [Part(f"[{key}]", options=digest(document[key])) for key in computing]
    counted: Counter[str] = Counter()
    for entry in entries:
        label = f"[{MODEL}]"
        if entry.key != MODEL:
            counted[entry.key] += 1
            label = f"[[{entry.key}]] number {counted[entry.key]}"
        content = entry.model.content if entry.model is not None else ""
        parts.append(Part(label, entry.use, entry.package, content, digest(entry.identity)).bounded())
    return parts


def _entries(document: Mapping[str, Any], where: str) -> tuple[list[_Entry], _Entry | None]:
    """Return all stages of the file, and the [model] among them if it has one."""
    before, after = _stages(document, "before", where), _stages(document, "after", where)
    has_input = "input" in document or (before and before[0].use == MODEL)
    if "model" not in document and (before or after) and has_input:
        return [*before, *after], None
    part = toml.table(document, "model", where)
    if "path" not in part:
        hint = ". A pipeline without a model says under [input] what comes in" if before or after else ""
        raise PipelineError(f'{where}: [model] needs path = "….onnx"{hint}')
    main = _Entry(MODEL, MODEL, dict(part), f"{where}: [model]")
    return [*before, main, *after], main


def _stages(document: Mapping[str, Any], key: str, where: str) -> list[_Entry]:
    """Return each [[before]] or [[after]] entry."""
    entries = toml.tables(document, key, where)
    if len(entries) > MAX_STAGES:
        raise PipelineError(f"{where}: {len(entries)} [[{key}]] stages; at most {MAX_STAGES}")
    found = []
    for i, entry in enumerate(entries):
        location = f"{where}: [[{key}]] number {i + 1}"
        options = dict(entry)
        use = toml.text(options, "use", location)
        del options["use"]
        found.append(_Entry(key, use, options, f"{location} ({use})"))
    return found


def _plugin(entry: _Entry, signal: Signal, folder: Path) -> Stage:
    from .registry import (  # pluggy and package metadata, only if a stage is named
        make_stage,
        named_files,
        origin,
    )

    stage = make_stage(entry.use, signal, entry.options, entry.location, folder)
    # The content of a file named by an option counts, not its path.
    files = named_files(entry.use, entry.options, entry.location, folder)
    digests = {key: [_digest(file, entry.location) for file in named] for key, named in files.items()}
    entry.identity = {**entry.options, **digests}
    entry.package = origin(entry.use)
    return stage


# The input


def _first_signal(
    document: Mapping[str, Any], entries: Sequence[_Entry], main: _Entry | None, where: str
) -> Signal:
    """Return the signal that clients send: from [input], else from the first model."""
    first = entries[0]
    default: Signal | None = None
    if first.model is not None:
        default = first.model.inputs
    elif main is not None and main.model is not None:
        # Not the model's rate: a resampler may stand between.
        default = Signal(main.model.inputs.tensors)
    if default is not None and "input" not in document:
        return default
    location = f"{where}: [input]"
    if first is main:
        raise PipelineError(f"{location} says what comes before the stages of [[before]], and there are none")
    return _input(toml.table(document, "input", where), default, location)


def _input(part: Mapping[str, Any], default: Signal | None, location: str) -> Signal:
    """Read [input]: the signal that clients send to the first stage."""
    toml.known(part, _INPUT, location)
    rate = rate_of(part, location) or (default.rate if default is not None else None)
    if "tensors" in part:
        if "shape" in part or "dtype" in part:
            raise PipelineError(f"{location}: say shape and dtype of each of its tensors, or of the only one")
        return Signal(_tensors(part, location), rate)
    tensors = default.tensors if default is not None else (TensorSpec(DEFAULT_INPUT, "float32"),)
    if len(tensors) == 1:
        return Signal((_tensor(tensors[0], part, location),), rate)
    if "shape" in part or "dtype" in part:
        raise PipelineError(
            f"{location}: shape and dtype are for a model with one input, this one takes {default}: "
            "say them under [input.tensors]"
        )
    return Signal(tensors, rate)


def _tensors(part: Mapping[str, Any], location: str) -> tuple[TensorSpec, ...]:
    """Read [input.tensors]: name = {dtype, shape}, in the order of the file."""
    tensors, within = toml.table(part, "tensors", location), toml.within(location, "tensors")
    if not 1 <= len(tensors) <= MAX_INPUTS:
        raise PipelineError(f"{within}: {len(tensors)} tensors; 1 to {MAX_INPUTS} are possible")
    found = []
    for name in tensors:
        toml.name(name, within)
        if isinstance(tensors[name], str):
            raise PipelineError(
                f'{within}: {name} must be a table, as in {name} = {{ dtype = "float32", shape = [2] }}, not '
                f"{tensors[name]!r:.80}"
            )
        one = toml.table(tensors, name, within)
        toml.known(one, _TENSOR, f"{within} {name}")
        found.append(_tensor(TensorSpec(name, "float32"), one, f"{within} {name}"))
    return tuple(found)


def _tensor(default: TensorSpec, part: Mapping[str, Any], location: str) -> TensorSpec:
    shape = part.get("shape", list(default.shape))
    dtype = dtype_of(part.get("dtype", default.dtype), location)
    sizes = tuple(d for d in shape_of(shape, location, ()) if isinstance(d, int))
    return TensorSpec(default.name, dtype, sizes)


def _check_arrives(wanted: Signal, signal: Signal, entry: _Entry) -> None:
    """Raise unless the model's inputs arrive by name; the pipeline checks the rest."""
    here = list(signal.names)
    for name in wanted.names:
        if name not in here:
            key = toml.within(entry.location, "inputs")
            raise PipelineError(
                f"{entry.location}: the model takes {wanted}, but {signal} arrives{nearest(name, here)}: its "
                f'name can be said under {key}, {{ {name} = "{here[0]}" }}'
            )


def _digest(file: Path, location: str) -> str:
    """Return the SHA-256 of a file that an option names."""
    try:
        data = regular.read(file, MAX_OPTION_FILE, "a file that an option names", PipelineError)
    except PipelineError as error:
        raise PipelineError(f"{location}: {error.message}") from None
    return hashlib.sha256(data).hexdigest()
