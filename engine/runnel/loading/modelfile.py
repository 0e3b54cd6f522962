"""A model's table in a pipeline file, and the stages that run the model.

One function reads ``[model]`` and each ``use = "model"``, with the same keys and the same check of the
certificate. Each model has its own session, framing, slots and batches. It takes its inputs by name from the
signal that arrives. Its output is its own outputs: other arrays are not passed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import probe as probes
from ..errors import CertificateError, ModelError, PipelineError
from ..model import blocks, steps
from ..model.framing import Frame
from ..spec import ModelSpec, Signal, TensorSpec, from_document
from ..stage import Stage
from . import container, declared, toml

if TYPE_CHECKING:
    import onnxruntime as ort

_RENAMES = ("path", "inputs", "outputs")  # the keys allowed for a model that describes itself

Providers = Sequence[str | tuple[str, dict[str, Any]]] | None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How an engine runs its models: see `Engine.load`."""

    streams: int
    providers: Providers
    threads: int
    trust: bool
    flush_denormals: bool
    probes: bool = False  # run a model as the probe beside it, if there is one


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model that is read and loaded, before its input signal is known."""

    file: Path
    spec: ModelSpec
    session: ort.InferenceSession
    renamed: Mapping[str, str]  # model name -> chunk name
    content: str  # a digest of what it computes: see `container.content`

    @property
    def inputs(self) -> Signal:
        """The input signal: samples if framed, ticks if the model takes blocks."""
        tensors = tuple(
            TensorSpec(self.renamed.get(t.name, t.name), t.dtype, t.step_shape) for t in self.spec.inputs
        )
        if self.spec.framing:
            [inner] = tensors
            tensors = (TensorSpec(inner.name, inner.dtype, inner.shape[1:]),)
        if grouped := self.spec.blocks or self.spec.steps:
            present = self.renamed.get(grouped.present, grouped.present)
            return blocks.outer(Signal(tensors), present, self.spec.rate)
        return Signal(tensors, self.spec.rate)

    def stages(self, rate: float | None, streams: int, forks: int) -> list[Stage]:
        """Return the model's stage, with its framing or block stages if it has them.

        `rate`: of the input signal, used if the model states none. `forks`: the number alive at once.
        """
        from ..model.session import ModelStage

        spec = self.spec
        rate = spec.rate or rate
        model = ModelStage(self.session, spec, streams, self.renamed, self.file.stem, rate, forks)
        model.file = self.file
        if spec.blocks:
            return blocks.enclosed(model, spec.blocks, rate, *map(model.chunk_name, spec.blocks.own))
        if spec.steps:
            return steps.enclosed(model, spec.steps, rate, *map(model.chunk_name, spec.steps.own))
        if not spec.framing:
            return [model]
        [samples] = self.inputs.tensors
        return [Frame(samples, model.inputs.names[0], spec.framing, rate, spec.latency), model]


def read_model(
    part: Mapping[str, Any], folder: Path, where: str, running: RunOptions, in_toml: bool = True
) -> ModelFile:
    """Read and load the model of a table.

    `where` is the table's name in errors, `folder` the base of relative paths. Raises PipelineError,
    ModelError, CertificateError, ProviderError.
    """
    from ..model.session import load_session  # imported here, because it loads onnxruntime

    if "path" not in part:
        raise PipelineError(f'{where} needs path = "….onnx"')
    file = folder / toml.text(part, "path", where)
    data = container.read(file)
    container.refuse_external(data, str(file))
    described = container.document(data, str(file))
    if described is None and not in_toml:
        raise ModelError(
            f"{file}: this ONNX file does not describe its states. Export it with runnel_export, or "
            "declare them in a pipeline file (.toml) with [[model.state]] and load that"
        )
    if described is not None:
        toml.known(part, _RENAMES, f"{where} (this model describes itself)")
        if not running.trust:
            _check_certificate(data, described, file)
        spec = from_document(described, str(file))
    else:
        toml.known(part, declared.KEYS, where)
    content = container.content(data, described, str(file))  # not the probe's: it computes the same
    if running.probes and described is not None and spec.probe is None and probes.beside(file).exists():
        data, spec = _probe(file, spec, running.trust)
    session = load_session(data, str(file), running.providers, running.threads, running.flush_denormals)
    if described is not None:
        _check_names(spec, session, str(file))
    else:
        spec = declared.declared(part, session, data, where)
    return ModelFile(file, spec, session, _renames(part, spec, where), content)


def _probe(file: Path, spec: ModelSpec, trust: bool) -> tuple[bytes, ModelSpec]:
    """Read the probe beside a model. ModelError if it does not belong to it."""
    found = probes.beside(file)
    data = container.read(found)
    container.refuse_external(data, str(found))
    described = container.document(data, str(found)) or {}
    seen = from_document(described, str(found)) if described else None
    again = f"export {file.name} again with --probe gates, or take {found.name} away"
    if seen is None or seen.probe is None:
        raise ModelError(
            f"{found} is where the probe of {file.name} is looked for, and shows nothing: {again}"
        )
    if seen.probe.of != (spec.certificate or {}).get("hash"):
        raise ModelError(
            f"{found} is the probe of another model than {file.name}, or of an earlier export: {again}"
        )
    if not trust:
        _check_certificate(data, described, found)
    return data, seen


def _check_certificate(data: bytes, described: Mapping[str, Any], file: Path) -> None:
    """Raise CertificateError unless the file's certificate matches."""
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


def _check_names(spec: ModelSpec, session: ort.InferenceSession, where: str) -> None:
    """Raise ModelError unless the description's names are exactly the graph's."""
    described = {t.name for t in spec.inputs} | {s.input for s in spec.states}
    graph = {v.name for v in session.get_inputs()}
    if described != graph:
        raise ModelError(f"{where}: describes inputs {sorted(described)}, but the graph has {sorted(graph)}")
    missing = {t.name for t in spec.outputs} | {s.output for s in spec.states}
    missing -= {v.name for v in session.get_outputs()}
    if missing:
        raise ModelError(f"{where}: describes outputs {sorted(missing)} that the graph does not have")


def _renames(part: Mapping[str, Any], spec: ModelSpec, where: str) -> dict[str, str]:
    """Return {model name: chunk name} from the tables `inputs` and `outputs`."""
    renamed: dict[str, str] = {}
    for key, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        location = toml.within(where, key)
        table = toml.table(part, key, where)
        for name in table:
            toml.among(name, [t.name for t in tensors], location)
            renamed[name] = toml.name(toml.text(table, name, location), location)
        names = [renamed.get(t.name, t.name) for t in tensors]
        if len(set(names)) < len(names):
            raise PipelineError(f"{location}: two of {names} have one name")
    return renamed
