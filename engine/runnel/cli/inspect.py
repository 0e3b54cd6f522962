"""`runnel inspect`: show the contents and certificate of a model or pipeline, or a running daemon."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..loading import container
from ..pipeline.feedback import Feedback
from ..spec import ModelSpec
from .text import Row, aligned, certificate_rows, count, counted, document, model_rows

if TYPE_CHECKING:
    from ..engine import Engine

HELP = "show inputs, states, operators, cost and certificate of a model or pipeline, or what a daemon serves"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "examples:\n  runnel inspect model.onnx\n  runnel inspect pipeline.toml --json\n"
        "  runnel inspect ipc:///run/runnel.sock\n  runnel inspect tcp://gateway:7070 --keys ops.key"
    )
    parser.add_argument(
        "path", metavar="FILE|ADDRESS", help="a .onnx model, a .toml pipeline, or where a daemon serves"
    )
    parser.add_argument("--json", action="store_true", help="for programs: the same as one JSON object")
    parser.add_argument("--keys", metavar="FILE", help="your key file, for a daemon with keys")
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="S", help="seconds to wait for a daemon's answer (5)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0. Raises errors of the tree, such as TimeoutError if no daemon answers."""
    if "://" in args.path:
        from .inspect_daemon import show

        show(args.path, args.json, args.timeout, args.keys)
    else:
        _show_file(Path(args.path), args.json)
    return 0


@dataclass(frozen=True)
class _Model:
    """One of a pipeline's models, as it is shown."""

    name: str
    file: Path
    spec: ModelSpec
    vouched: bool
    placement: Mapping[str, Mapping[str, int]]
    hint: str  # how to show more

    def rows(self) -> list[Row]:
        rows = [("model", str(self.file)), *model_rows(self.spec)]
        if self.hint:
            rows.append(("ops", self.hint))
        rows += [("runs on", f"{provider}: {counted(ops)}") for provider, ops in self.placement.items()]
        return rows + certificate_rows(self.spec.certificate, self.vouched)

    def json(self) -> dict[str, Any]:
        placement = {provider: dict(ops) for provider, ops in self.placement.items()}
        fields = document(self.spec)
        return {"path": str(self.file), **fields, "placement": placement, "vouched": self.vouched}


def _show_file(path: Path, as_json: bool) -> None:
    from ..engine import Engine

    # A file that differs from the certified one is shown as well, with that remark.
    with Engine.load(path, max_streams=1, trust=True) as engine:
        models = _models(engine)
        if as_json:
            print(json.dumps(_json(engine, path, models), indent=2))
        else:
            print(_text(engine, path, models))


def _models(engine: Engine) -> list[_Model]:
    """The models, in the order of the stages."""
    from ..model.session import ModelStage, placement

    found = []
    for stage in engine.pipeline.unrolled.stages:
        if isinstance(stage, ModelStage) and stage.file is not None:
            spec, hint = stage.spec, ""
            if spec.graph is None:
                graph, hint = _count(stage.file)
                spec = replace(spec, graph=graph)
            vouched = _vouched(stage.file, spec)
            found.append(_Model(stage.name, stage.file, spec, vouched, placement(stage.session), hint))
    return found


def _text(engine: Engine, path: Path, models: list[_Model]) -> str:
    pipeline = engine.pipeline
    rows: list[Row] = [] if len(models) == 1 else [("pipeline", str(path))]
    rows += [row for model in models for row in model.rows()]
    if len(models) > 1:
        rows.append(("all models", f"{count(pipeline.state_bytes)} bytes of state a stream"))
    rows.append(("latency", f"{pipeline.latency} input time steps"))
    stages = pipeline.unrolled.stages
    if len(stages) > 1 or not models:
        rows += [("stages", f"{s.name}: {s.inputs} -> {s.outputs}") for s in stages]
    return aligned([*rows, *(("feedback", f"{i} <- {o}") for i, o in _fed_back(engine).items())])


def _json(engine: Engine, path: Path, models: list[_Model]) -> dict[str, Any]:
    """For programs: a single model directly, or a list of models."""
    pipeline = engine.pipeline
    stages = pipeline.unrolled.stages
    fields = {
        "latency": pipeline.latency,
        "stages": [{"name": s.name, "inputs": str(s.inputs), "outputs": str(s.outputs)} for s in stages],
        "feedback": _fed_back(engine),
    }
    if len(models) == 1:
        return {**models[0].json(), **fields}
    listed = [{"name": model.name, **model.json()} for model in models]
    return {"path": str(path), "state_bytes": pipeline.state_bytes, "models": listed, **fields}


def _fed_back(engine: Engine) -> dict[str, str]:
    """Input <- output, for a pipeline with a loop."""
    loop = engine.pipeline.stages[0]
    return {one.target.name: one.source for one in loop.loop_inputs} if isinstance(loop, Feedback) else {}


def _vouched(file: Path, spec: ModelSpec) -> bool:
    if spec.certificate is None:
        return False
    data = container.read(file)
    described = container.document(data, str(file)) or {}
    return container.digest(data, described, str(file)) == spec.certificate.get("hash")


def _count(file: Path) -> tuple[Mapping[str, Any] | None, str]:
    """Operators and cost of a foreign model; None and a hint if onnx is not installed."""
    try:
        from runnel_export.describe import describe_file
    except ImportError:
        return None, "to count a foreign model's operators: pip install 'runnel[export]'"
    return describe_file(container.read(file)), ""
