"""`runnel run`: run a file or a live source through a pipeline, at full speed or in real time."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from ..engine import Engine
from ..errors import RunnelError, UsageError
from ..files import warn
from ..spec import Array
from ..stage import Chunk, Steps
from ..stream import Stream
from .connectors import (
    INPUTS,
    ConnectorSpec,
    Outputs,
    declared_connectors,
    fit_together,
    last_row,
    on_terminal,
    parse_connector,
    sinks_of,
    source_of,
    stamps_of,
)  # fmt: skip
from .pace import Stopper, chunk_steps, generated, in_all, limited, most_steps, paced, rows_of, seconds_of
from .progress import Progress, counted
from .stamps import GENERATED, step_of

HELP = "run a file, or a live source, through a pipeline"

_EXAMPLE = f"""examples:
  runnel run vad.toml speech.wav -o segments.csv
  runnel run model.onnx sensors.csv --columns temperature,pressure -o out.jsonl
  runnel run model.onnx "host:?rate=2" -o plot: -o log.csv --for 5m
  runnel run model.onnx "sensors.csv?time=t&sep=;&decimal=," -o out.csv
  arecord -t raw -f FLOAT_LE -r 16000 -d 10 | runnel run vad.toml - --chunk 20ms
  runnel run text.toml prompt.txt --generate 300 -o txt:

{INPUTS}
A pipeline file may hold them too, as [source] and [[sink]] tables; the command line takes their place.

A file appears when it is whole; a run that fails, or is broken off with Ctrl-C, leaves none. With a live
source Ctrl-C is how it ends: well, with status 0 and all that was made until then.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    parser.add_argument("pipeline", help="a pipeline (.toml), or a model that describes itself (.onnx)")
    parser.add_argument(
        "input",
        nargs="?",
        help="sound (.wav .flac .ogg .aiff), a table with a header (.csv .tsv), .npy, .jsonl, .parquet, - "
        "for raw little-endian numbers on standard input, or NAME:…; needed unless the pipeline has "
        "[source], or with --generate",
    )
    add_shared_arguments(parser)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="onnxruntime's threads (1)")
    parser.add_argument(
        "--provider", action="append", metavar="NAME", help="onnxruntime execution provider; may be repeated"
    )
    parser.add_argument(
        "--trust", action="store_true", help="accept a model that differs from the certified one"
    )


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that `runnel feed` takes too."""
    parser.add_argument(
        "-o", "--output", action="append", metavar="OUT",
        help="a file (.csv .tsv .npy .jsonl .parquet .wav .flac), - for a table on standard output (the "
        "default), or NAME:…; may be repeated. Tables and JSON lines write a number's label, if it has one",
    )  # fmt: skip
    add_input_arguments(parser)
    parser.add_argument(
        "--chunk", metavar="N", help="time steps fed at once: 160, or 20ms, or 0.1s; changes no output"
    )
    parser.add_argument(
        "--realtime", action="store_true",
        help="feed no faster than the input's rate, or than its time column says",
    )  # fmt: skip
    parser.add_argument(
        "--generate", type=int, default=0, metavar="N",
        help="N time steps that the pipeline generates, if its file feeds all its inputs back "
        "([feedback]): at once, or after INPUT, of which only the last output is written then",
    )  # fmt: skip


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that `runnel plot` takes too: how INPUT is read, and how much of it."""
    parser.add_argument(
        "--columns", metavar="A,B", type=lambda text: text.split(","),
        help="columns of a table, or channels of a sound file (from 1), in the order of the inputs",
    )  # fmt: skip
    parser.add_argument("--for", dest="seconds", metavar="TIME", help="only so much: 10s, 500ms, 5m, 2h")
    parser.add_argument("--steps", type=int, metavar="N", help="only so many time steps")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 once the output is complete. Raises errors of the tree; then there is no output."""
    seconds = seconds_of(args.seconds)
    with ExitStack() as stack:
        engine = stack.enter_context(
            Engine.load(
                args.pipeline, max_streams=1, providers=args.provider, threads=args.threads, trust=args.trust
            )
        )
        engine.health.on_event = _warn_health
        connector, sinks = declared_connectors(Path(args.pipeline))
        connector = input_of(args, connector, engine.pipeline.generates)
        more = generated(args.generate)
        if more:
            engine.pipeline.accept(Steps(more[0]))  # fails before anything is read or written
        inputs = engine.pipeline.inputs
        source = stack.enter_context(source_of(connector, inputs))
        rate = inputs.rate or source.rate
        block = chunk_steps(args.chunk, rate, args.realtime and not source.live)
        most = most_steps(args.steps, seconds, rate, source.live)
        stopper = Stopper(source.live, seconds)
        chunks = limited(stopper.watch(source.chunks(block)), most)
        if args.realtime and not source.live:
            chunks = paced(chunks, rate, lambda: source.stamp)
        total = in_all(source.steps, most, args.generate)
        sinks = sinks_of(args.output, sinks)
        fit_together(connector, sinks)
        step = GENERATED if more else step_of(engine.pipeline)
        stamps = stamps_of(source, step, sinks, engine.pipeline.outputs)
        if stamps is not None:
            chunks = stamps.watch(chunks, source)
        speed = None if source.live else rate
        share = None if more else lambda: source.share  # generated time steps are not part of the input
        progress = Progress(total, speed, args.quiet, on_terminal(sinks), share=share)
        stack.callback(progress.close)
        if source.live and connector is not None:
            progress.begin(f"live from {connector.name}, until Ctrl-C")
        with stopper, Outputs(sinks, engine.pipeline.outputs, source.live, stamps) as outputs:
            _feed(engine, chunks, more, outputs, progress, connector.name if connector else "")
        progress.close(f"{progress.summary()}, {counted(outputs.rows, 'row')} out")
    return 0


def _warn_health(event: str, stream: str, reason: str) -> None:
    """Warn about a health event of the state, which the output may not show."""
    warn(f"{event.replace('_', ' ')}: {reason}")


def input_of(
    args: argparse.Namespace, of_pipeline: ConnectorSpec | None, generates: bool
) -> ConnectorSpec | None:
    """The input of the command line, or else of the pipeline, which may have none."""
    if args.input is not None:
        return parse_connector("source", args.input, args.columns)
    if of_pipeline is None and not args.generate:
        also = ", or --generate N: it can make time steps of itself" if generates else ""
        raise UsageError(f"INPUT is needed: a file, -, or NAME:…, or a [source] in the pipeline's file{also}")
    if args.columns is not None:
        raise UsageError(f"--columns is for an INPUT; write columns = … under [source] of {args.pipeline}")
    return of_pipeline


def _feed(
    engine: Engine,
    chunks: Iterable[Chunk],
    more: Iterable[int],
    outputs: Outputs,
    progress: Progress,
    name: str,
) -> None:
    """Feed all chunks to one stream, then generate `more` time steps."""
    before: Chunk | Array | None = None  # output of a prompt's last step: earlier ones are not written
    with engine.open() as stream:
        for chunk in chunks:
            out = fed(stream, chunk, name, progress.steps)
            if more:
                before = last_row(out)
            else:
                outputs.write(out)
            progress.add(rows_of(chunk))
        if before is not None:
            outputs.write(before)
        for steps in more:
            outputs.write(stream.generate(steps))
            progress.add(steps)
        outputs.write(stream.flush())


def fed(stream: Stream, chunk: Chunk, name: str, at: int) -> Chunk | Array:
    """Feed a chunk; an error names the input and the time step at which the chunk begins."""
    try:
        made: Chunk | Array = stream.feed(chunk)
    except RunnelError as error:
        raise type(error)(f"{name}: in the chunk that begins at time step {at}: {error}") from error
    return made
