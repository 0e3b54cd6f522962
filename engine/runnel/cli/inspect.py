"""`runnel inspect`: what a model file, a pipeline or a running daemon holds, and what was proved of it."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import container
from ..spec import ModelSpec
from .text import aligned, certificate_rows, counted, document, model_rows

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
    parser.add_argument("--keys", metavar="FILE", help="who you are, where the daemon has keys")
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="S", help="seconds to wait for a daemon's answer (5)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0. Raises errors of the tree: a file that is none, TimeoutError where no daemon answers."""
    if "://" in args.path:
        from .inspect_daemon import show

        show(args.path, args.json, args.timeout, args.keys)
    else:
        _show_file(Path(args.path), args.json)
    return 0


def _show_file(path: Path, as_json: bool) -> None:
    from ..engine import Engine

    # A file that is not the certified one is shown all the same, and said to be that.
    with Engine.load(path, max_streams=1, trust=True) as engine:
        spec = engine.pipeline.model
        assert spec is not None  # each pipeline file has a model
        file = _model_file(path)
        hint = ""
        if spec.graph is None:
            graph, hint = _count(file)
            spec = replace(spec, graph=graph)
        vouched = _vouched(file, spec)
        if as_json:
            print(json.dumps(_json(engine, spec, file, vouched), indent=2))
        else:
            print(_text(engine, spec, file, vouched, hint))


def _text(engine: Engine, spec: ModelSpec, file: Path, vouched: bool, hint: str) -> str:
    pipeline = engine.pipeline
    rows = [("model", str(file)), *model_rows(spec)]
    if hint:
        rows.append(("ops", hint))
    rows.append(("latency", f"{pipeline.latency} input time steps"))
    rows += [("runs on", f"{name}: {counted(ops)}") for name, ops in engine.placement().items()]
    if len(pipeline.stages) > 1:
        rows += [("stages", f"{s.name}: {s.inputs} -> {s.outputs}") for s in pipeline.stages]
    return aligned([*rows, *certificate_rows(spec.certificate, vouched)])


def _json(engine: Engine, spec: ModelSpec, file: Path, vouched: bool) -> dict[str, Any]:
    pipeline = engine.pipeline
    return {
        "path": str(file),
        **document(spec),
        "latency": pipeline.latency,
        "placement": {name: dict(ops) for name, ops in engine.placement().items()},
        "stages": [
            {"name": s.name, "inputs": str(s.inputs), "outputs": str(s.outputs)} for s in pipeline.stages
        ],
        "vouched": vouched,
    }


def _model_file(path: Path) -> Path:
    """The .onnx file; `path` has been loaded, so it is well-formed."""
    if path.suffix != ".toml":
        return path
    return path.parent / str(tomllib.loads(path.read_text("utf-8"))["model"]["path"])


def _vouched(file: Path, spec: ModelSpec) -> bool:
    if spec.certificate is None:
        return False
    data = container.read(file)
    described = container.document(data, str(file)) or {}
    return container.digest(data, described, str(file)) == spec.certificate.get("hash")


def _count(file: Path) -> tuple[Mapping[str, Any] | None, str]:
    """Operators and cost of a foreign model; None and what would help where onnx is not installed."""
    try:
        from runnel_export.describe import describe_file
    except ImportError:
        return None, "to count a foreign model's operators: pip install 'runnel[export]'"
    return describe_file(container.read(file)), ""
