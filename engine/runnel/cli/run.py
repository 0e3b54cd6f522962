"""`runnel run`: a file through a pipeline, as fast as it goes or in real time."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

from ..engine import Engine
from ..errors import RunnelError, UsageError
from ..stage import Chunk
from .progress import Progress
from .sinks import STDOUT, open_sink
from .sources import STDIN, open_source

HELP = "run a file, or standard input, through a pipeline"

_EXAMPLE = """examples:
  runnel run vad.toml speech.wav -o segments.csv
  runnel run model.onnx sensors.csv --columns temperature,pressure -o out.jsonl
  arecord -t raw -f FLOAT_LE -r 16000 -d 10 | runnel run vad.toml - --chunk 20ms

An output appears when it is whole; a run that fails, or is broken off with Ctrl-C, leaves none.
"""

_CHUNK_STEPS = 4096  # time steps fed at once: enough for the model's blocks, little memory
MAX_CHUNK = 2**24  # time steps: what one block of input may hold in memory
_CHUNK_SECONDS = 0.1  # the same for --realtime: what a live client would send


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    parser.add_argument("pipeline", help="a pipeline (.toml), or a model that describes itself (.onnx)")
    parser.add_argument(
        "input",
        help="sound (.wav .flac .ogg .aiff), a table with a header (.csv .tsv), an array (.npy), or - for "
        "raw little-endian numbers of the pipeline's input dtype and shape on standard input",
    )
    parser.add_argument(
        "-o", "--output", default=STDOUT, metavar="OUT",
        help=".csv .tsv .npy .jsonl .wav .flac, or - for a table on standard output (the default)",
    )  # fmt: skip
    parser.add_argument(
        "--columns", metavar="A,B", type=lambda text: text.split(","),
        help="columns of a table, or channels of a sound file (from 1), in the order of the inputs",
    )  # fmt: skip
    parser.add_argument(
        "--chunk", metavar="N", help="time steps fed at once: 160, or 20ms, or 0.1s; changes no output"
    )
    parser.add_argument("--realtime", action="store_true", help="feed no faster than the input's rate")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="onnxruntime's threads (1)")
    parser.add_argument(
        "--provider", action="append", metavar="NAME", help="onnxruntime execution provider; may be repeated"
    )
    parser.add_argument("--trust", action="store_true", help="take a model that is not the certified one")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 once the output is whole. Raises errors of the tree; then there is no output."""
    with ExitStack() as stack:
        engine = stack.enter_context(
            Engine.load(
                args.pipeline, max_streams=1, providers=args.provider, threads=args.threads, trust=args.trust
            )
        )
        inputs = engine.pipeline.inputs
        block = chunk_steps(args.chunk, inputs.rate, args.realtime)
        source = stack.enter_context(open_source(args.input, inputs, block, args.columns))
        rate = inputs.rate or source.rate
        chunks = source.chunks
        if args.realtime:
            if not rate:
                raise UsageError(
                    "--realtime: the pipeline has no rate, nor has the input; say it under [model] or [input]"
                )
            chunks = paced(chunks, rate)
        progress = Progress(source.steps, rate, args.quiet)
        stack.callback(progress.close)
        with open_sink(args.output, engine.pipeline.outputs) as write:
            name = "standard input" if args.input == STDIN else args.input
            made = _feed(engine, chunks, write, progress, name)
        progress.close(f"{progress.summary()}, {made} rows out")
    return 0


def _feed(
    engine: Engine, chunks: Iterable[Chunk], write: Callable[[Chunk], None], progress: Progress, name: str
) -> int:
    """Everything through one stream; the number of rows that came out."""
    made = 0
    with engine.open() as stream:
        for chunk in chunks:
            try:
                out = stream.feed(chunk)
            except RunnelError as error:
                raise type(error)(
                    f"{name}: in the chunk that begins at time step {progress.steps}: {error}"
                ) from error
            write(out)
            made += _rows(out)
            progress.add(_rows(chunk))
        rest = stream.flush()
    if not isinstance(rest, dict):  # one output comes bare
        rest = {engine.pipeline.outputs.names[0]: rest}
    write(rest)
    return made + _rows(rest)


def chunk_steps(text: str | None, rate: float | None, realtime: bool) -> int:
    """``--chunk`` as time steps: ``160``, ``20ms``, ``0.1s``, or the default."""
    if text is None:
        return max(1, round(_CHUNK_SECONDS * rate)) if realtime and rate else 1 if realtime else _CHUNK_STEPS
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)?", text)
    if not match:
        raise UsageError(f"--chunk {text!r}: a number of time steps (160) or a time (20ms, 0.1s)")
    value, unit = float(match[1]), match[2]
    if unit and not rate:
        raise UsageError(f"--chunk {text}: the pipeline has no rate: give a number of time steps")
    steps = value * {"ms": 0.001, "s": 1.0}[unit] * (rate or 0) if unit else value
    if not 1 <= round(steps) <= MAX_CHUNK or (not unit and steps != int(steps)):
        raise UsageError(
            f"--chunk {text}: that is {steps:g} time steps; 1 to {MAX_CHUNK}, whole, are possible"
        )
    return round(steps)


def paced(
    chunks: Iterable[Chunk],
    rate: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Chunk]:
    """Each chunk once its last time step would have arrived. Falling behind is caught up, not carried on."""
    began, arrived = clock(), 0
    for chunk in chunks:
        arrived += _rows(chunk)
        wait = began + arrived / rate - clock()
        if wait > 0:
            sleep(wait)
        yield chunk


def _rows(chunk: Chunk) -> int:
    return len(next(iter(chunk.values())))
