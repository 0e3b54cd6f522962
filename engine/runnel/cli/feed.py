"""`runnel feed`: a file through a daemon, as `runnel run` sends it through a pipeline."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from ..errors import UsageError
from ..serve.client import Client
from ..stage import Chunk
from .progress import Progress
from .run import chunk_steps, paced
from .sinks import STDOUT, open_sink
from .sources import open_source

HELP = "stream a file, or standard input, through a daemon"

_EXAMPLE = """examples:
  runnel feed ipc:///run/runnel.sock speech.wav -o segments.csv
  runnel feed tcp://127.0.0.1:7070 speech.wav --id mic-1 --chunk 20ms --realtime
  runnel feed tcp://gateway:7070 readings.csv -o forecast.csv --keys sensor-7.key
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    parser.add_argument("address", help="where the daemon serves: ipc:///path/to.sock, or tcp://host:port")
    parser.add_argument("input", help="sound, a table, an array, or -: as for `runnel run`")
    parser.add_argument(
        "-o", "--output", default=STDOUT, metavar="OUT",
        help=".csv .tsv .npy .jsonl .wav .flac, or - for a table on standard output (the default)",
    )  # fmt: skip
    parser.add_argument("--id", metavar="NAME", help="the stream's name; one is made otherwise")
    parser.add_argument(
        "--columns", metavar="A,B", type=lambda text: text.split(","),
        help="columns of a table, or channels of a sound file (from 1), in the order of the inputs",
    )  # fmt: skip
    parser.add_argument(
        "--chunk", metavar="N", help="time steps sent at once: 160, or 20ms, or 0.1s; changes no output"
    )
    parser.add_argument("--realtime", action="store_true", help="send no faster than the input's rate")
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="S", help="seconds to wait for a reply (5)"
    )
    parser.add_argument("--keys", metavar="FILE", help="your keys, for a daemon that has some: runnel keys")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 once the output is whole. Raises errors of the tree; then there is no output."""
    with ExitStack() as stack:
        client = stack.enter_context(Client(args.address, args.timeout, keys=args.keys))
        served = client.describe()
        block = chunk_steps(args.chunk, served.inputs.rate, args.realtime)
        source = stack.enter_context(open_source(args.input, served.inputs, block, args.columns, served=True))
        rate = served.inputs.rate or source.rate
        chunks = source.chunks
        if args.realtime:
            if not rate:
                raise UsageError("--realtime: neither the daemon's pipeline nor the input has a rate")
            chunks = paced(chunks, rate)
        progress = Progress(source.steps, rate, args.quiet)
        stack.callback(progress.close)
        made = 0
        with open_sink(args.output, served.outputs) as write, client.open(args.id) as stream:
            counted = _counted(chunks, progress)
            # Ahead of its results where the input is all there; live, each result is written when it is made.
            live = args.realtime or args.input == "-"
            for out in map(stream.feed, counted) if live else stream.feed_all(counted):
                write(out)
                made += _rows(out)
            rest = stream.flush()
            if not isinstance(rest, dict):  # one output comes bare
                rest = {served.outputs.names[0]: rest}
            write(rest)
            made += _rows(rest)
        progress.close(f"{progress.summary()}, {made} rows out")
    return 0


def _counted(chunks: Iterable[Chunk], progress: Progress) -> Iterator[Chunk]:
    for chunk in chunks:
        progress.add(_rows(chunk))
        yield chunk


def _rows(chunk: Chunk) -> int:
    return len(next(iter(chunk.values())))
