"""`runnel feed`: stream a file or a live source through a daemon."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from ..client.client import Client
from ..errors import UsageError
from ..spec import Array
from ..stage import Chunk
from .connectors import (
    INPUTS,
    Outputs,
    fit_together,
    last_row,
    on_terminal,
    parse_connector,
    sinks_of,
    source_of,
    stamps_of,
)
from .pace import Stopper, chunk_steps, generated, in_all, limited, most_steps, paced, rows_of, seconds_of
from .progress import Progress, counted
from .run import add_shared_arguments
from .socketwait import await_socket
from .stamps import GENERATED, step_served

HELP = "stream a file, or a live source, through a daemon"

_EXAMPLE = f"""examples:
  runnel feed ipc:///run/runnel.sock speech.wav -o segments.csv
  runnel feed tcp://127.0.0.1:7070 speech.wav --id mic-1 --chunk 20ms --realtime
  runnel feed tcp://gateway:7070 readings.csv -o forecast.csv --keys sensor-7.key
  runnel feed ipc:///run/runnel.sock "lines:/dev/ttyUSB0?baud=9600" -o jsonl:

{INPUTS}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    parser.add_argument("address", help="where the daemon serves: ipc:///path/to.sock, or tcp://host:port")
    parser.add_argument(
        "input", nargs="?", help="a file, -, or NAME:…: as for `runnel run`; not needed with --generate"
    )
    parser.add_argument("--id", metavar="NAME", help="the stream's name (default: a random one)")
    add_shared_arguments(parser)
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="S", help="seconds to wait for a reply (5)"
    )
    parser.add_argument(
        "--keys", metavar="FILE", help="your key file, for a daemon with keys: see runnel keys"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0 once the output is complete. Raises errors of the tree; then there is no output."""
    seconds, more = seconds_of(args.seconds), generated(args.generate)
    if args.input is None and not more:
        raise UsageError("INPUT is needed: a file, -, or NAME:…; or --generate N")
    await_socket(args.address, args.timeout, args.quiet)
    with ExitStack() as stack:
        client = stack.enter_context(Client(args.address, args.timeout, keys=args.keys))
        served = client.describe()
        connector = None if args.input is None else parse_connector("source", args.input, args.columns)
        source = stack.enter_context(source_of(connector, served.inputs))
        rate = served.inputs.rate or source.rate
        # From a file, many chunks are in flight; from a live source, each result is written at once.
        live = args.realtime or source.live
        block = chunk_steps(args.chunk, rate, args.realtime and not source.live)
        most = most_steps(args.steps, seconds, rate, source.live)
        stopper = Stopper(source.live, seconds)
        chunks = limited(stopper.watch(source.chunks(block)), most)
        if args.realtime and not source.live:
            chunks = paced(chunks, rate, lambda: source.stamp)
        total = in_all(source.steps, most, args.generate)
        sinks = sinks_of(args.output)
        fit_together(connector, sinks)
        step = GENERATED if more else step_served(served.inputs, served.outputs, served.latency)
        stamps = stamps_of(source, step, sinks, served.outputs)
        if stamps is not None:
            chunks = stamps.watch(chunks, source)
        speed = None if source.live else rate
        share = None if more else lambda: source.share  # generated time steps are not part of the input
        progress = Progress(total, speed, args.quiet, on_terminal(sinks), share=share)
        stack.callback(progress.close)
        if source.live and connector is not None:
            progress.begin(f"live from {connector.name}, until Ctrl-C")
        with (
            stopper,
            Outputs(sinks, served.outputs, source.live, stamps) as outputs,
            client.open(args.id) as stream,
        ):
            chunks = _counted(chunks, progress)
            before: Chunk | Array | None = None
            for out in map(stream.feed, chunks) if live else stream.feed_all(chunks):
                if more:
                    before = last_row(out)
                else:
                    outputs.write(out)
            if before is not None:
                outputs.write(before)
            for steps in more:
                outputs.write(stream.generate(steps))
                progress.add(steps)
            outputs.write(stream.flush())
        progress.close(f"{progress.summary()}, {counted(outputs.rows, 'row')} out")
    return 0


def _counted(chunks: Iterable[Chunk], progress: Progress) -> Iterator[Chunk]:
    for chunk in chunks:
        progress.add(rows_of(chunk))
        yield chunk
