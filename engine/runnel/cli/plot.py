"""`runnel plot`: draw a pipeline's signals and states over time, as a picture or for TensorBoard."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ..engine import Engine
from ..errors import UsageError
from ..files import OutputFile
from ..stage import Chunk, Steps
from .connectors import INPUTS, ConnectorSpec, declared_connectors, path_of, source_of
from .pace import Stopper, chunk_steps, generated, most_steps, rows_of, seconds_of
from .progress import Progress, counted
from .run import add_input_arguments, fed, input_of

if TYPE_CHECKING:
    from ..insight.recorder import Axis, Record, Recorder

_LEAST_CHUNK = 64  # time steps fed at once: more than enough for a drawing

HELP = "draw input, output and the gates inside, over time"

_EXAMPLE = f"""examples:
  runnel plot lm.onnx text.txt -o gates.png
  runnel plot text.toml prompt.txt --generate 120 -o gates.svg --layers gru.0 --show r,z
  runnel plot sensor.toml readings.csv --from 1h --for 2m -o gates.pdf
  runnel plot silero.toml speech.wav -o states.png
  runnel plot host.toml --for 30s -o host.png
  runnel plot lm.onnx text.txt --tensorboard runs/lm && tensorboard --logdir runs

Gates are seen where the model has a probe beside it: lm.probe.onnx, which `runnel export --probe gates`
writes with lm.onnx and proves to give the same outputs. Without one the model's states are drawn.

i f o   input, forget, output gate; g candidate, c cell state, h hidden state      (LSTM)
r z     reset, update gate; n candidate, h hidden state                            (GRU)
Gates are from 0 to 1, all else is drawn around 0. The line over a heat map is the mean over all units.

{INPUTS}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    parser.add_argument("pipeline", help="a pipeline (.toml), or a model that describes itself (.onnx)")
    parser.add_argument(
        "input", nargs="?", help="a file, -, or NAME:…: as for `runnel run`; needed unless the pipeline has "
        "[source], or with --generate",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the picture: .png, .svg or .pdf")
    parser.add_argument(
        "--tensorboard", type=Path, metavar="DIR",
        help="add an event file for TensorBoard: scalars, histograms, heat maps, text",
    )  # fmt: skip
    parser.add_argument(
        "--from",
        dest="first",
        metavar="N",
        help="where the picture begins: a time step (1000), or a time (10s)",
    )
    parser.add_argument(
        "--layers", type=_listed, metavar="A,B", help="only these layers of the probe: lstm.0,lstm.1"
    )
    parser.add_argument(
        "--show", type=_listed, metavar="X,Y", help="only these gates and states of each layer: i,f,c"
    )
    add_input_arguments(parser)
    parser.add_argument(
        "--generate", type=int, default=0, metavar="N",
        help="N time steps that the pipeline generates: at once, or after INPUT",
    )  # fmt: skip
    parser.add_argument(
        "--trust", action="store_true", help="accept a model that differs from the certified one"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0 once everything is written. Raises errors of the tree; then no picture is written."""
    from ..insight.recorder import Recorder
    from ..loading.loader import load_pipeline

    format = _format(args)
    seconds, recorder = seconds_of(args.seconds), Recorder()
    with ExitStack() as stack:
        path = Path(args.pipeline)
        pipeline = load_pipeline(path, 1, None, 1, args.trust, False, observer=recorder)
        engine = stack.enter_context(Engine(pipeline, max_streams=1))
        recorder.choose(args.layers, args.show)
        connector = input_of(args, declared_connectors(path)[0], pipeline.generates)
        more = generated(args.generate)
        if more:
            pipeline.accept(Steps(more[0]))
        source = stack.enter_context(source_of(connector, pipeline.inputs))
        if connector is not None and args.output is not None:
            _keep_apart(args.output, path_of(connector))
        axis = recorder.axis(pipeline.inputs.rate or source.rate)
        first, steps = _window(args, seconds, axis, source.live)
        recorder.begin(axis, first, steps)
        out = OutputFile(args.output) if args.output else None
        whole = False
        if out is not None:
            stack.callback(lambda: out.close(whole))
        total = None if source.steps is None else source.steps + args.generate
        drawn = None if total is None or axis.domain else min(total, first + steps)
        progress = Progress(drawn, None if source.live else axis.rate, args.quiet)
        stack.callback(progress.close)
        if source.live and connector is not None:
            progress.begin(f"live from {connector.name}, until {counted(steps, 'time step')}, or Ctrl-C")
        stopper = Stopper(source.live, seconds)
        with stopper:
            block = min(chunk_steps(None, None, False), max(_LEAST_CHUNK, steps))
            chunks = stopper.watch(source.chunks(block))
            given, ended = _feed(
                engine, chunks, more, recorder, progress, connector.name if connector else ""
            )
        record = recorder.record(float(given) if progress.steps > given and not axis.domain else None)
        if not args.quiet:
            _report_undrawn(record, recorder, total, progress.steps, ended)
        summary = progress.summary()  # before drawing, which takes longer
        report = _write(args, record, out, format, connector)
        whole = True
        progress.close(f"{summary}: {report}")
    return 0


def _feed(
    engine: Engine,
    chunks: Iterable[Chunk],
    more: Iterable[int],
    recorder: Recorder,
    progress: Progress,
    name: str,
) -> tuple[int, bool]:
    """Feed until everything to draw was seen. Return the input's time steps, and whether the stream ended."""
    with engine.open() as stream:
        for chunk in chunks:
            fed(stream, chunk, name, progress.steps)
            progress.add(rows_of(chunk))
            if recorder.full:
                return progress.steps, False
        given = progress.steps
        for steps in more:
            if recorder.full:
                return given, False
            stream.generate(steps)
            progress.add(steps)
        stream.flush()
    return given, True


def _write(
    args: argparse.Namespace,
    record: Record,
    out: OutputFile | None,
    format: str,
    connector: ConnectorSpec | None,
) -> str:
    """Write the picture and the events. Return a summary of what was written."""
    from ..insight import picture
    from ..insight import tensorboard as events

    read = "" if connector is None else connector.file.name if connector.file else connector.use
    title = f"{Path(args.pipeline).name}   {read}"
    parts = []
    if out is not None:
        panels = picture.draw(record, out.file, format, title)
        parts.append(f"{counted(panels, 'panel')} in {args.output}")
    if args.tensorboard is not None:
        image = BytesIO()
        picture.draw(record, image, "png", title)
        tags = events.write(record, args.tensorboard, image.getvalue())
        parts.append(f"{counted(tags, 'tag')} for TensorBoard in {args.tensorboard}")
    return ", ".join(parts)


def _report_undrawn(record: Record, recorder: Recorder, total: int | None, steps: int, ended: bool) -> None:
    """Print what was not drawn, and how to see it."""
    lines = [f"not drawn: {text}" for text in record.omitted]
    start, end = (round(edge) for edge in record.span)
    in_all = None  # in the input's time steps, if the axis has those
    if not record.axis.domain:
        in_all = steps if ended else total
    if not ended or start or (in_all is not None and end < in_all):
        of = f" of {in_all}" if in_all is not None else ""
        lines.append(f"drawn: time steps {start} to {end}{of}; --from and --steps (or --for) choose others")
    lines += [
        f"the states of {model} are drawn: its gates are seen where {model}.probe.onnx stands beside it, "
        "which `runnel export --probe gates` writes"
        for model in recorder.unprobed
    ]
    for line in lines:
        print(f"runnel: {line}", file=sys.stderr)


def _window(args: argparse.Namespace, seconds: float | None, axis: Axis, live: bool) -> tuple[int, int]:
    """The first time step to draw, and the number of time steps."""
    from ..insight.recorder import DEFAULT_TICKS, MAX_TICKS

    first = _first(args.first, axis)
    asked = most_steps(args.steps, seconds, axis.rate, live)
    most = -int(-MAX_TICKS * axis.tick // 1)
    if asked is None:
        return first, most if live and seconds else -int(-DEFAULT_TICKS * axis.tick // 1)
    if asked > most:
        raise UsageError(
            f"--steps and --for: that is {counted(asked, 'time step')}; a picture holds at most {most}, of "
            f"{MAX_TICKS} steps of the model: begin further on, with --from"
        )
    return first, asked


def _first(text: str | None, axis: Axis) -> int:
    """``--from``: ``1000``, ``10s``, ``5m``."""
    if text is None:
        return 0
    if re.fullmatch(r"\d{1,15}", text):
        return int(text)
    try:
        after = seconds_of(text)
    except UsageError:
        raise UsageError(f"--from {text!r}: a time step (1000), or a time, as 10s, 500ms, 5m or 2h") from None
    if not axis.rate:
        raise UsageError(f"--from {text}: neither the pipeline nor the input has a rate: give a time step")
    return round((after or 0) * axis.rate)


def _format(args: argparse.Namespace) -> str:
    """The picture's format, from the file's ending. Checks first that it can be made."""
    from ..insight import picture
    from ..insight import tensorboard as events

    if args.output is None and args.tensorboard is None:
        raise UsageError("where to? -o FILE (.png, .svg or .pdf), --tensorboard DIR, or both")
    format: str = "png" if args.output is None else args.output.suffix.lower().removeprefix(".")
    if format not in picture.FORMATS:
        raise UsageError(
            f"-o {args.output}: the kind of picture is told by the name's ending: "
            f".{', .'.join(picture.FORMATS)} (for numbers: runnel run)"
        )
    picture.require_libraries()
    if args.tensorboard is not None:
        events.require_libraries()
        if args.tensorboard.exists() and not args.tensorboard.is_dir():
            raise UsageError(f"--tensorboard {args.tensorboard}: that is a file; name a folder")
    return format


def _keep_apart(output: Path, read: Path | None) -> None:
    if read is not None and output.resolve() == read.resolve():
        raise UsageError(f"-o: {output} is what is read, and would be lost: name another file")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
