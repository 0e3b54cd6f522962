"""`runnel export`: a PyTorch module on the command line, to a certified model file."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import container
from ..errors import UsageError, nearest
from ..spec import Framing, from_document
from .text import aligned, certificate_rows, model_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

HELP = "turn a PyTorch module into a certified step model"

_EXAMPLE = """\
examples:
  runnel export model.py:Tagger -o tagger.onnx --input float32[1,50,80] --weights tagger.safetensors
  runnel export my.package:build --args '{"hidden": 32}' -o lm.onnx --input 'tokens=int64[1,50]<1000'
  runnel export cells.py:Cell -o cell.onnx --time-axis none --input float32[1,8] --state h=1,32

Shapes are those that forward takes: (batch, time, features...) unless --time-axis says otherwise.
The module's code is imported and run."""

_INPUT = re.compile(r"(?:(?P<name>\w+)=)?(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,\s]+)\](?:<(?P<below>\d+))?\Z")
_STATE = re.compile(r"(?P<name>\w+)=(?P<shape>[\d,\s]+)\Z")
_DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    add = parser.add_argument
    add("target", metavar="FILE.py:NAME", help="or package.module:NAME; a module, or what makes one")
    add("-o", "--output", required=True, type=Path, metavar="MODEL.onnx", help="the file to write")
    add("--input", action="append", default=[], metavar="[NAME=]DTYPE[SHAPE]",
        help="an input, with '<N' for integers below N; repeat for several")  # fmt: skip
    add(
        "--args",
        type=_json_object,
        default={},
        metavar="JSON",
        help="keyword arguments for what makes the module",
    )
    add("--weights", type=Path, help="a .safetensors or .pt file to load into the module")
    add("--data", type=Path, help="real data to try besides: .npy, or .npz by input names")
    add(
        "--state", action="append", default=[], metavar="NAME=SHAPE", help="an explicit state, zeros at first"
    )
    add("--time-axis", type=_axis, default=1, help="of the inputs; 'none' for a module that is one step")
    add("--batch-axis", type=int, default=0, help="of the inputs (default 0; 1 where the time axis is 0)")
    add("--window", type=int, help="samples that the module sees a step: the stream is samples then")
    add("--hop", type=int, help="samples that it advances (default: the window)")
    add("--rate", type=float, help="Hz of the stream's time axis")
    add("--quantize", choices=["int8"], help="hold weights in 8 bits")
    add("--tolerance", type=float, help="largest error, relative to the peak (1e-4; 0.1 for int8)")
    add("--seed", type=int, default=0, help="of the random data")
    add("-q", "--quiet", action="store_true", help="print nothing where all is well")


def run(args: argparse.Namespace) -> int:
    try:
        import torch

        from runnel_export import export
    except ImportError as error:
        raise UsageError(f"export needs {error.name}: pip install 'runnel[export]'") from error
    torch.manual_seed(args.seed)  # a module made here gets the same weights each time
    module = load_module(args.target, args.args)
    if args.weights is not None:
        _load_weights(module, args.weights)

    def report(line: str) -> None:
        print(line, file=sys.stderr)

    certificate = export(
        module,
        _example(module, args.input),
        args.output,
        time_axis=args.time_axis,
        batch_axis=args.batch_axis,
        state=dict(_state(text) for text in args.state) or None,
        framing=_framing(args.window, args.hop),
        rate=args.rate,
        quantize=args.quantize,
        tolerance=args.tolerance,
        data=_data(args.data) if args.data is not None else None,
        progress=None if args.quiet else report,
        seed=args.seed,
    )
    if not args.quiet:
        print(certificate)
        print(aligned([("model", str(args.output)), *_summary(args.output)]))
    return 0


def load_module(target: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """The nn.Module that ``file.py:name`` or ``package.module:name`` names; runs that code.

    `name` is a module, or a class or function that makes one from `kwargs`. Raises UsageError.
    """
    from torch import nn

    place, colon, name = target.rpartition(":")
    if not colon or not name:
        raise UsageError(f"{target!r}: write FILE.py:NAME or package.module:NAME")
    found: Any = _import(place)
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(
                f"{place} has no {part!r}{nearest(part, [n for n in dir(found) if n[0] != '_'])}"
            )
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise UsageError(f"{target}: a {type(found).__name__}, expected an nn.Module or what makes one")
        try:
            found = found(**kwargs)
        except TypeError as error:
            raise UsageError(f"{target}: {error}; give its arguments with --args '{{...}}'") from error
    elif kwargs:
        raise UsageError(f"{target} is a module already: --args is for a class or a function that makes one")
    if not isinstance(found, nn.Module):
        raise UsageError(f"{target} made a {type(found).__name__}, expected an nn.Module")
    return found


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and (place == error.name or place.startswith(f"{error.name}.")):
                raise UsageError(
                    f"no module {place!r} here or installed; a file is named FILE.py:NAME"
                ) from None
            raise
    file = Path(place)
    if not file.is_file():
        raise UsageError(f"{place}: no such file")
    sys.path.insert(0, str(file.resolve().parent))  # what it imports from beside itself
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def _load_weights(module: nn.Module, path: Path) -> None:
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)  # never unpickles code
            weights = weights.get("state_dict", weights)
        module.load_state_dict(weights)
    except ImportError:
        raise UsageError("a .safetensors file needs: pip install safetensors") from None
    except Exception as error:
        raise UsageError(f"{path}: cannot be loaded into {type(module).__name__}: {error}") from error


def _example(module: nn.Module, texts: list[str]) -> Tensor | dict[str, Tensor]:
    import inspect

    if not texts:
        raise UsageError(
            f"say what forward{inspect.signature(module.forward)} takes: --input [NAME=]DTYPE[SHAPE], "
            "for example --input float32[1,50,80] for a batch of one, 50 ticks, 80 features"
        )
    inputs = [_input(text) for text in texts]
    if len(inputs) == 1 and not inputs[0][0]:
        return inputs[0][1]
    if not all(name for name, _ in inputs):
        raise UsageError("with several inputs, name each: --input x=float32[1,50,80]")
    return dict(inputs)


def _input(text: str) -> tuple[str, Tensor]:
    import torch

    match = _INPUT.match(text.replace(" ", ""))
    if not match or match["dtype"] not in _DTYPES:
        hint = nearest(match["dtype"], _DTYPES) if match else ""
        raise UsageError(f"--input {text!r}: write it as x=float32[1,50,80] or tokens=int64[1,50]<1000{hint}")
    dtype = getattr(torch, match["dtype"])
    shape = _sizes(match["shape"], text)
    if dtype.is_floating_point:
        if match["below"]:
            raise UsageError(f"--input {text!r}: '<' is for integers")
        return match["name"] or "", torch.randn(shape).to(dtype)
    if dtype == torch.bool:
        return match["name"] or "", torch.rand(shape) < 0.5
    if not match["below"]:
        raise UsageError(f"--input {text!r}: say how large the integers get: {text}<1000")
    values = torch.randint(0, int(match["below"]), shape)
    # The proof draws from the range that it finds here, so both ends must be in it.
    values.view(-1)[0], values.view(-1)[-1] = 0, int(match["below"]) - 1
    return match["name"] or "", values.to(dtype)


def _state(text: str) -> tuple[str, Tensor]:
    import torch

    match = _STATE.match(text)
    if not match:
        raise UsageError(
            f"--state {text!r}: write it as h=1,1,32: the shape that forward takes, batch included"
        )
    return match["name"], torch.zeros(_sizes(match["shape"], text))


def _sizes(text: str, whole: str) -> list[int]:
    sizes = [int(part) for part in text.split(",") if part.strip()]
    if not sizes or math.prod(sizes) < 1:
        raise UsageError(f"{whole!r}: sizes are whole numbers of at least 1")
    return sizes


def _data(path: Path) -> Tensor | dict[str, Tensor]:
    import numpy as np
    import torch

    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return torch.from_numpy(loaded)
        return {name: torch.from_numpy(loaded[name]) for name in loaded.files}
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path}: not data: .npy, or .npz by input names, without objects ({error})"
        ) from error


def _framing(window: int | None, hop: int | None) -> Framing | None:
    if window is None:
        if hop is not None:
            raise UsageError("--hop needs --window")
        return None
    return Framing(window, hop if hop is not None else window)


def _summary(path: Path) -> list[tuple[str, str]]:
    spec = from_document(container.document(container.read(path), str(path)), str(path))
    return [*model_rows(spec), *certificate_rows(spec.certificate, True)]


def _axis(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('expected an object, such as {"hidden": 32}')
    return value
