"""`runnel serve`: serve a pipeline as a daemon."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..daemon.settings import Settings, Source
    from ..daemon.supervision.systemd import Notifier

HELP = "serve a pipeline to clients"

_EXAMPLE = """examples:
  runnel serve vad.toml --bind ipc:///run/runnel.sock
  runnel serve model.onnx --bind tcp://127.0.0.1:7070 --max-streams 4096
  runnel serve vad.toml --bind ipc:///run/runnel.sock --workers 4 --metrics 9464

A pipeline file may contain all of this; flags override it:
  [serve]
  bind = "ipc:///run/runnel.sock"
  max_streams = 4096
  idle_seconds = 600
  workers = 4

To serve other machines, it needs keys (runnel keys --help); then only listed users are admitted:
  bind = "tcp://0.0.0.0:7070"
  keys = "daemon.key"                # these two are relative to the pipeline file
  authorised = "users.toml"          # lines of the users' .pub files; or a folder of such files

SIGTERM and Ctrl-C answer what has arrived and exit with 0; a second one stops at once, with status 1
if something was left unanswered.
SIGHUP reads [serve] again: idle_seconds and log_level change at once, other changes are only logged. It
also reads the list of users again: a key that was removed is refused from then on.
"""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    parser.add_argument("pipeline", help="a pipeline (.toml), or a model that describes itself (.onnx)")
    parser.add_argument(
        "--bind",
        metavar="ADDRESS",
        help="ipc:///path/to.sock, or tcp://127.0.0.1:port; with keys tcp://0.0.0.0:port too",
    )
    parser.add_argument(
        "--keys", metavar="FILE", help="the daemon's secret key; then only listed users are admitted"
    )
    parser.add_argument("--authorised", metavar="PATH", help="the list of users: a file, or a folder of .pub")
    parser.add_argument(
        "--max-streams", type=int, metavar="N", help="most streams open at once in a worker (1024)"
    )
    parser.add_argument(
        "--user-streams",
        type=int,
        metavar="N",
        help="streams that each user can count on, with keys (0: an equal share of a quarter of all)",
    )
    parser.add_argument(
        "--idle-seconds",
        type=float,
        metavar="S",
        help="close a stream without a request for longer (3600; 0: never)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes, one a core; streams are placed by name (1)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="onnxruntime's threads (1)")
    parser.add_argument(
        "--provider",
        action="append",
        dest="providers",
        metavar="NAME",
        help="onnxruntime execution provider; may be repeated",
    )
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (info)")
    parser.add_argument("--log-format", metavar="FORMAT", help="text (key=value), or json (text)")
    parser.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        help="serve /metrics for Prometheus, /healthz and /readyz over HTTP there; a port alone: loopback",
    )
    parser.add_argument(
        "--metrics-keys", metavar="FILE", help="key file of the user for these pages, if the daemon has keys"
    )
    parser.add_argument(
        "--trust", action="store_true", help="accept a model that differs from the certified one"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0 once everything that had arrived was answered, 1 if it was stopped before."""
    from ..daemon import logs, process
    from ..daemon.settings import FLAGS, Source
    from ..daemon.supervision.systemd import Notifier
    from ..daemon.vetting import vet

    process.hold_standard_files()
    process.raise_files()
    source = Source(Path(args.pipeline), {name: getattr(args, name) for name in FLAGS})
    settings, _ = source.read()
    vet(settings, args.pipeline)  # report errors before a large model is loaded
    with logs.written(sys.stderr, settings.log_format, settings.log_level), Notifier() as notifier:
        if settings.workers > 1:
            answered = _many(args, settings, source, notifier)
        else:
            answered = _one(args, settings, source, notifier)
    return 0 if answered else 1


def _one(args: argparse.Namespace, settings: Settings, source: Source, notifier: Notifier) -> bool:
    from ..daemon import process
    from ..daemon.authenticator import authenticator_for
    from ..daemon.loop import Daemon
    from ..daemon.supervision.lifecycle import Service

    authenticator = authenticator_for(settings)
    with process.load(args.pipeline, settings, args.trust) as engine:
        hooks = Service(notifier, source, settings, _observe)
        daemon = Daemon(
            engine,
            settings.bind,
            idle_seconds=settings.idle_seconds,
            hooks=hooks,
            authenticator=authenticator,
            user_streams=settings.user_streams,
        )
        with hooks:
            return daemon.serve(_SIGNALS)


def _many(args: argparse.Namespace, settings: Settings, source: Source, notifier: Notifier) -> bool:
    from ..daemon.supervision.supervisor import Supervisor

    supervisor = Supervisor(args.pipeline, settings, source, notifier, _observe, trust=args.trust)
    return supervisor.serve(_SIGNALS)


def _observe(settings: Settings, addresses: Sequence[str]) -> AbstractContextManager[object]:
    """Monitors of the daemon, active while it serves at the addresses."""
    if not settings.metrics:
        return nullcontext()
    from ..daemon.metrics import http as metrics
    from ..wire.keys import client_keys

    keys = client_keys(settings.metrics_keys) if settings.metrics_keys else None
    return metrics.serve(settings.metrics, addresses, keys)
