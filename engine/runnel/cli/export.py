"""`runnel export`: turn a PyTorch module into a certified model file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..grouping import Blocks, Framing
from ..loading import container
from ..probe import beside
from ..spec import ModelSpec, from_document
from .text import Row, aligned, model_rows, probe_rows, quantize_rows

HELP = "turn a PyTorch module into a certified step model"

_EXAMPLE = """\
examples:
  runnel export model.py:Tagger -o tagger.onnx --input 'float32[1,50,80]' --weights tagger.safetensors
  runnel export model.py:Tagger -o tagger.onnx --input 'float32[1,50,80]' --weights last.ckpt:state_dict
  runnel export model.py:Tagger -o tagger.onnx --input 'float32[1,50,80]' --probe gates
  runnel export my.package:build --args '{"hidden": 32}' -o lm.onnx --input 'tokens=int64[1,50]<1000'
  runnel export cells.py:Cell -o cell.onnx --time-axis none --input 'float32[1,8]' --state h=1,32

Shapes are those that forward takes: (batch, time, features...) unless --time-axis says otherwise.
The module's code is imported and run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    add = parser.add_argument
    add(
        "target",
        metavar="FILE.py:NAME",
        help="or package.module:NAME; a module, or a function that makes one",
    )
    add("-o", "--output", required=True, type=Path, metavar="MODEL.onnx", help="the model file to write")
    add("--input", action="append", default=[], metavar="[NAME=]DTYPE[SHAPE]",
        help="an input, with '<N' for integers below N; repeat for several")  # fmt: skip
    add(
        "--args",
        type=_json_object,
        default={},
        metavar="JSON",
        help="keyword arguments of the target",
    )
    add(
        "--weights",
        metavar="FILE[:KEY]",
        help="a .safetensors or .pt file to load into the module; KEY says where in a trainer's checkpoint "
        "they are, which is found by itself if only one place fits",
    )
    add("--data", type=Path, help="real data for further checks: .npy, or .npz by "
        "input names, of shape (batch, time, features...)")  # fmt: skip
    add(
        "--state", action="append", default=[], metavar="NAME=SHAPE", help="an explicit state, zeros at first"
    )
    add(
        "--time-axis",
        type=_axis,
        default=1,
        help="time axis of the inputs; 'none' for a module that is one step",
    )
    add(
        "--batch-axis",
        type=int,
        default=0,
        help="batch axis of the inputs (default 0; 1 if the time axis is 0)",
    )
    add(
        "--window",
        type=int,
        help="samples that the module sees in one step; the stream then consists of samples",
    )
    add("--hop", type=int, help="samples by which the window advances (default: the window)")
    add("--lookahead", type=int, help="ticks of the future that bidirectional layers see")
    add("--block", type=int, help="ticks run together, with --lookahead (default: a third of it)")
    add("--rate", type=float, help="Hz of the stream's time axis")
    add("--quantize", choices=["int8"], help="hold weights in 8 bits")
    add(
        "--probe",
        choices=["gates"],
        help="write MODEL.probe.onnx too, which shows each layer's gates and states",
    )
    add("--tolerance", type=float, help="largest error, relative to the peak (1e-4; 0.1 for int8)")
    add("--seed", type=int, default=0, help="seed of the random data")
    add("-q", "--quiet", action="store_true", help="print nothing if all is well")


def run(args: argparse.Namespace) -> int:
    from runnel_export.kinds import explain_target

    explain_target(args.target)  # before importing torch, which takes seconds
    try:
        from runnel_export import export, target, weights
    except ImportError as error:
        raise UsageError(f"export needs {error.name}: pip install 'runnel[export]'") from error
    module = target.load_module(args.target, args.args, args.seed)
    if args.weights is None:
        notes = target.unloaded(module, args.target)
    else:
        notes = weights.load_weights(module, *weights.split_key(args.weights))

    def report(line: str) -> None:
        print(line, file=sys.stderr)

    if not args.quiet:
        for note in notes:
            report(note)
    certificate = export(
        module,
        target.example(module, args.input),
        args.output,
        time_axis=args.time_axis,
        batch_axis=args.batch_axis,
        state=target.state(args.state),
        framing=_framing(args.window, args.hop),
        blocks=_blocks(args.block, args.lookahead),
        rate=args.rate,
        quantize=args.quantize,
        probe=args.probe,
        tolerance=args.tolerance,
        data=target.data(args.data) if args.data is not None else None,
        # a rewritten line on a terminal; a line for each stage in a log
        progress=False if args.quiet else None if sys.stderr.isatty() else report,
        seed=args.seed,
        notes=notes,
    )
    if not args.quiet:
        print(certificate)
        print(aligned([("model", str(args.output)), *_summary(args.output)]))
        if args.probe:
            shown = beside(args.output)
            print(aligned([("probe", str(shown)), *probe_rows(_spec(shown))]))
    return 0


def _framing(window: int | None, hop: int | None) -> Framing | None:
    if window is None:
        if hop is not None:
            raise UsageError("--hop needs --window")
        return None
    return Framing(window, hop if hop is not None else window)


def _blocks(block: int | None, lookahead: int | None) -> Blocks | None:
    if lookahead is None:
        if block is not None:
            raise UsageError("--block needs --lookahead")
        return None
    return Blocks(block if block is not None else max(1, lookahead // 3), lookahead)


def _spec(path: Path) -> ModelSpec:
    return from_document(container.document(container.read(path), str(path)), str(path))


def _summary(path: Path) -> list[Row]:
    spec = _spec(path)
    quantized = (spec.certificate or {}).get("quantize")
    return [*model_rows(spec), *(quantize_rows(quantized) if quantized else [])]


def _axis(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"not JSON ({error}): names are in double quotes, and all of it in single ones for the shell: "
            "'{\"hidden\": 32}'"
        ) from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('expected an object, such as {"hidden": 32}')
    return value
