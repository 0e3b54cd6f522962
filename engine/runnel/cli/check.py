"""`runnel check`: report what `runnel serve` would, without serving."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .text import Row, aligned, count

if TYPE_CHECKING:
    from ..daemon.settings import Settings
    from ..engine import Engine

HELP = "say what a daemon would do with a pipeline or a model, and what is wrong, without serving"

_EXAMPLE = """examples:
  runnel check vad.toml
  runnel check vad.toml --bind tcp://0.0.0.0:7070 --keys daemon.key --authorised users.toml
  runnel check model.onnx --max-streams 100000 --json

Takes the flags of `runnel serve`. The pipeline and its model are loaded, listeners are made, files of keys
are read, and nothing is bound. Exit status 0: it can be served; 2: it cannot, with the reason.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from . import serve

    serve.add_arguments(parser)
    parser.epilog = _EXAMPLE
    parser.add_argument("--json", action="store_true", help="for programs: the same as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Exit status 0. Raises the errors with which `serve` would refuse."""
    from ..daemon import process
    from ..daemon.settings import FLAGS, Source
    from ..daemon.vetting import vet

    source = Source(Path(args.pipeline), {name: getattr(args, name) for name in FLAGS})
    settings, _ = source.read()
    if settings.bind:
        vet(settings, args.pipeline)
    with process.load(args.pipeline, settings, args.trust) as engine:
        found = document(args.pipeline, settings, engine)
    print(json.dumps(found, indent=2) if args.json else _text(found))
    return 0


def document(pipeline: str, settings: Settings, engine: Engine) -> dict[str, Any]:
    """For programs: bytes and seconds; null if not configured. Raises UsageError for a path in use."""
    from ..daemon import process
    from ..daemon.supervision.supervisor import addresses

    keyed = bool(settings.keys)
    served = engine.pipeline
    warnings = [] if settings.bind else ["no address: serve needs --bind, or bind in the table [serve]"]
    bound = addresses(settings.bind, settings.workers, keyed) if settings.bind else []
    for address in bound:
        warnings += _in_the_way(address)
    files = process.most_files()
    if files < 2 * settings.max_streams:
        warnings.append(
            f"open files: at most {files} in a worker; a client takes one or two, so {settings.max_streams} "
            "streams need clients that open several each, or a higher limit (LimitNOFILE=)"
        )
    return {
        "file": pipeline,
        "pipeline": served.fingerprint,
        "inputs": str(served.inputs),
        "outputs": str(served.outputs),
        "stages": [stage.name for stage in served.stages],
        "bind": bound,
        "users": _users(settings),
        "metrics": _metrics(settings, warnings),
        "limits": {
            "workers": settings.workers,
            "max_streams": settings.max_streams,
            "idle_seconds": settings.idle_seconds,
            "threads": settings.threads,
            "open_files": files,
        },
        # A stream has two rows: the current state, and the one that a step writes.
        "memory": {
            "state_bytes": served.state_bytes,
            "max_streams_bytes": 2 * served.state_bytes * settings.max_streams * settings.workers,
        },
        "log": {"level": settings.log_level, "format": settings.log_format},
        "warnings": warnings,
    }


def _in_the_way(address: str) -> list[str]:
    from ..daemon import socketfile
    from ..wire.address import parse

    path = parse(address, keyed=True).path
    if path is None or not socketfile.taken(path):
        return []
    return [f"{address}: a daemon is serving there now; another one would be refused"]


def _users(settings: Settings) -> list[str] | None:
    """Names of the authorised users; None if everyone who reaches the address is admitted."""
    if not settings.keys:
        return None
    from ..wire.keys import read_users

    return sorted(set(read_users(Path(settings.authorised)).values()))


def _metrics(settings: Settings, warnings: list[str]) -> str | None:
    if not settings.metrics:
        return None
    from ..daemon.metrics import http as metrics
    from ..daemon.metrics import prometheus as exposition

    host, port = metrics.parse(settings.metrics)
    if not metrics.is_loopback(host):
        warnings.append("metrics are readable by whoever reaches their address")
    try:
        exposition.encoder("")
    except UsageError as error:
        warnings.append(f"health checks only: {error.message}")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _text(found: Mapping[str, Any]) -> str:
    users, memory = found["users"], found["memory"]
    rows: list[Row] = [("file", found["file"]), ("pipeline", found["pipeline"])]
    rows += [("stages", name) for name in found["stages"]]
    rows += [("inputs", found["inputs"]), ("outputs", found["outputs"])]
    rows += [("bind", address) for address in found["bind"]] or [("bind", "nowhere")]
    if users is None:
        rows.append(("users", "whoever reaches the address"))
    else:
        rows.append(("users", f"{count(len(users))}: {', '.join(users)}"))
    rows.append(("metrics", found["metrics"] or "none"))
    rows += [("limits", f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {count(value)}")
             for name, value in found["limits"].items()]  # fmt: skip
    rows.append(("memory", f"{count(memory['state_bytes'])} bytes of state a stream, in its models"))
    rows.append(("memory", f"{count(memory['max_streams_bytes'])} bytes of state for all streams"))
    rows += [("warning", text) for text in found["warnings"]]
    return aligned(rows)
