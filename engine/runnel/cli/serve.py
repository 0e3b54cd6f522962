"""`runnel serve`: a pipeline as a daemon."""

from __future__ import annotations

import argparse
import logging
import signal
import sys

HELP = "serve a pipeline to clients on this machine"

_EXAMPLE = """examples:
  runnel serve vad.toml --bind ipc:///run/runnel.sock
  runnel serve model.onnx --bind tcp://127.0.0.1:7070 --max-streams 4096

SIGTERM and Ctrl-C answer what has arrived and exit with 0; a second one stops at once and exits with 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    parser.add_argument("pipeline", help="a pipeline (.toml), or a model that describes itself (.onnx)")
    parser.add_argument(
        "--bind", required=True, metavar="ADDRESS", help="ipc:///path/to.sock, or tcp://127.0.0.1:port"
    )
    parser.add_argument(
        "--max-streams", type=int, default=1024, metavar="N", help="streams open at once, at most (1024)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="onnxruntime's threads (1)")
    parser.add_argument(
        "--provider", action="append", metavar="NAME", help="onnxruntime execution provider; may be repeated"
    )
    parser.add_argument("--trust", action="store_true", help="take a model that is not the certified one")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 once all that had arrived was answered, 1 if it was stopped before."""
    from ..engine import Engine
    from ..serve.address import parse
    from ..serve.daemon import Daemon

    _allow_files()
    parse(args.bind)  # a bad address is told before a large model is loaded
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s runnel: %(message)s")
    with Engine.load(
        args.pipeline,
        max_streams=args.max_streams,
        providers=args.provider,
        threads=args.threads,
        trust=args.trust,
        flush_denormals=True,  # the process is the daemon's own
    ) as engine:
        answered = Daemon(engine, args.bind).serve(signals=(signal.SIGTERM, signal.SIGINT))
    return 0 if answered else 1


def _allow_files() -> None:
    """Raise the soft limit on open files to the hard one: libzmq aborts when an ipc socket meets it."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
