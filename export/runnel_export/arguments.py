"""Check the arguments of `export` before any work. Each error names its argument."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runnel import Blocks, Framing
from runnel.errors import ExportError
from runnel.probe import beside

from .call import Call, first_parameter
from .dry_run import without_batch
from .pairing import parameter_order

Example = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class Options:
    """Keyword arguments of `export`, as the user gave them. Its docstring describes each."""

    time_axis: int | None
    batch_axis: int
    state: Mapping[str, Any] | None
    framing: Framing | None
    blocks: Blocks | None
    rate: float | None
    quantize: str | None
    probe: str | None
    tolerance: float | None
    output_names: Sequence[str] | None
    data: Example | None
    seed: int


@dataclass(frozen=True)
class Request:
    """Arguments of `export` after all checks. `call` holds the axes, counted from the front."""

    path: Path
    shown: Path  # the probe's file
    inputs: Mapping[str, Tensor]  # the example, by forward's parameters
    state: Mapping[str, Any] | None
    data: Mapping[str, Tensor] | None
    call: Call
    options: Options


def check_arguments(module: nn.Module, example: Example, path: Path, options: Options) -> Request:
    """Check every argument of `export`. Raises ExportError for the first that does not fit."""
    check_module(module)
    check_file(path)
    check_options(
        time_axis=options.time_axis,
        batch_axis=options.batch_axis,
        state=options.state,
        output_names=options.output_names,
        tolerance=options.tolerance,
        seed=options.seed,
    )
    inputs = _named(module, example, "example")
    check_example(inputs)
    time_axis, batch_axis = counted_axes(inputs, options.time_axis, options.batch_axis)
    _check_arguments(inputs, options.framing, options.rate, options.quantize)
    _check_blocks(options.blocks, options.framing, options.state, time_axis)
    shown = beside(path)
    _check_probe(options.probe, shown, options.quantize)
    data = None if options.data is None else _named(module, options.data, "data")
    _check_layout(data or {}, inputs, time_axis, batch_axis)
    state = parameter_order(module, options.state or {})
    if any(t.dim() < 2 for t in inputs.values()) and time_axis is not None:
        told = without_batch(module, inputs)
        if told:
            raise ExportError(told)
    batch = batch_size(inputs, time_axis, batch_axis)
    call = Call(time_axis, batch_axis, batch, state, options.output_names)
    return Request(path, shown, inputs, options.state, data, call, options)


def check_module(module: Any) -> None:
    """Raise ExportError for anything but a plain `nn.Module`. A wrapper's error names the inner module."""
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise ExportError(f"module is the class {module.__name__}: give an instance, {module.__name__}(...)")
    if not isinstance(module, nn.Module):
        raise ExportError(f"module is a {type(module).__name__}, expected an nn.Module")
    if isinstance(module, torch.jit.ScriptModule):
        raise ExportError(
            "module is TorchScript, which torch.export does not read: give the nn.Module itself"
        )
    for kind, attribute in (
        (torch._dynamo.OptimizedModule, "_orig_mod"),
        (nn.DataParallel, "module"),
        (nn.parallel.DistributedDataParallel, "module"),
    ):
        if isinstance(module, kind):
            raise ExportError(f"module is wrapped in {kind.__name__}: pass the inner module (.{attribute})")


def check_file(path: Path) -> None:
    """Raise ExportError if no file can have this name, or if its folder does not exist."""
    if path.suffix != ".onnx":
        raise ExportError(f"{str(path)!r}: a model file's name ends in .onnx")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, has a NUL, or the folder cannot be read
        reason = error.strerror if isinstance(error, OSError) else error
        raise ExportError(f"{str(path)!r}: not a place for a file: {reason}") from error
    if not path.parent.is_dir():
        raise ExportError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ExportError(f"{path} is a folder: name a file, or take it away")


def check_options(
    *,
    time_axis: Any,
    batch_axis: Any,
    state: Any,
    output_names: Any,
    tolerance: Any,
    seed: Any,
) -> None:
    """Raise ExportError for a value of the wrong kind."""
    for name, axis in (("time_axis", time_axis), ("batch_axis", batch_axis)):
        if not _whole(axis) and not (axis is None and name == "time_axis"):
            raise ExportError(f"{name}={axis!r}: the number of an axis" + ", or None" * (name == "time_axis"))
    if state is not None and not isinstance(state, Mapping):
        raise ExportError(
            f"state is a {type(state).__name__}: expected a dict from forward's parameters to tensors, "
            'such as {"h": torch.zeros(1, 1, 32)}'
        )
    if output_names is not None and (
        not isinstance(output_names, Sequence)
        or isinstance(output_names, str)
        or not all(isinstance(n, str) and n for n in output_names)
    ):
        raise ExportError(f"output_names={output_names!r}: a list of names, one for each output")
    if tolerance is not None and not (isinstance(tolerance, int | float) and 0 < tolerance < math.inf):
        raise ExportError(f"tolerance={tolerance!r}: a positive number, relative to the peak of each element")
    if not _whole(seed) or seed < 0:
        raise ExportError(f"seed={seed!r}: a whole number of at least 0")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_example(inputs: Mapping[str, Tensor]) -> None:
    if not inputs:
        raise ExportError("example is an empty dict: give each parameter of forward that is data a tensor")


def counted_axes(
    inputs: Mapping[str, Tensor], time_axis: int | None, batch_axis: int
) -> tuple[int | None, int]:
    """Return the (time, batch) axes counted from the front, if all inputs have one rank.

    If both are 0, the batch axis becomes 1.
    """
    ranks = {t.dim() for t in inputs.values()}
    if len(ranks) == 1 and (rank := ranks.pop()):
        # An axis beyond the rank stays as it is, so that a later error shows what the user wrote.
        batch_axis = batch_axis + rank if -rank <= batch_axis < 0 else batch_axis
        if time_axis is not None:
            time_axis = time_axis + rank if -rank <= time_axis < 0 else time_axis
    return time_axis, 1 if time_axis == 0 and batch_axis == 0 else batch_axis


def _named(module: nn.Module, example: Example, what: str) -> dict[str, Tensor]:
    """Return the tensors by forward's parameter names. Raise ExportError for anything but tensors."""
    named = dict(example) if isinstance(example, Mapping) else {first_parameter(module): example}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise ExportError(
                f"{what}: {name!r} is a {type(value).__name__}, expected a tensor (batch, time, ...)"
                f"{_instead(module, value)}"
            )
        if not value.numel():
            raise ExportError(f"{what}: {name!r} has shape {tuple(value.shape)}, which holds nothing")
    return named


def _instead(module: nn.Module, value: Any) -> str:
    """Return a hint: what to give instead of a value that is often given in place of a tensor."""
    if isinstance(value, np.ndarray):
        return ": torch.from_numpy(...)"
    if isinstance(value, Mapping):
        names = ", ".join(map(str, value))
        return f": wrap the module in one whose forward({names}) makes that dict"
    if isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value):
        return f": torch.randn{tuple(value)}"
    if isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
        parameters = list(inspect.signature(module.forward).parameters)[: len(value)]
        form = ", ".join(f"{name!r}: ..." for name in parameters)
        return f": several inputs are a dict by forward's parameters, {{{form}}}"
    return ""


def batch_size(
    inputs: Mapping[str, Tensor], time_axis: int | None, batch_axis: int, what: str = "example"
) -> int:
    """Return the batch size. Raise ExportError if an input lacks an axis or the batch sizes differ."""
    sizes, ticks = {}, {}
    for name, value in inputs.items():
        for axis, kind in ((batch_axis, "batch"), (time_axis, "time")):
            if axis is not None and not -value.dim() <= axis < value.dim():
                raise ExportError(
                    f"{what}: {name!r} has shape {tuple(value.shape)}, so no axis {axis} for {kind}: "
                    "expected (batch, time, ...), or say time_axis= and batch_axis="
                )
        sizes[name] = value.shape[batch_axis]
        ticks[name] = 1 if time_axis is None else value.shape[time_axis]
    if len(set(sizes.values())) > 1:
        raise ExportError(f"{what}: the inputs differ in their batch: {sizes}")
    if len(set(ticks.values())) > 1:
        raise ExportError(
            f"{what}: the inputs differ in their time steps: {ticks}; a stream has one tick of each at a time"
        )
    return next(iter(sizes.values()))


def _check_layout(
    data: Mapping[str, Tensor], inputs: Mapping[str, Tensor], time_axis: int | None, batch_axis: int
) -> None:
    """Raise ExportError unless the data has the example's axes, plus time if the example is one step."""
    for name in data.keys() & inputs.keys():
        wanted: list[str | int] = list(inputs[name].shape)
        wanted[batch_axis] = "batch"
        if time_axis is None:
            wanted.insert(batch_axis % len(wanted) + 1, "time")
        else:
            wanted[time_axis] = "time"
        if data[name].dim() != len(wanted):
            missing = ": add a batch axis" if data[name].dim() == len(wanted) - 1 else ""
            raise ExportError(
                f"{name!r}: data has shape {tuple(data[name].shape)}; expected "
                f"({', '.join(map(str, wanted))}){missing}"
            )


def _check_arguments(
    inputs: Mapping[str, Tensor],
    framing: Framing | None,
    rate: float | None,
    quantize: str | None,
) -> None:
    if quantize not in (None, "int8"):
        raise ExportError(f"quantize={quantize!r}: None or 'int8'")
    if framing and len(inputs) != 1:
        raise ExportError(f"framing is for a module with one input, this one has {', '.join(inputs)}")
    if rate is not None and not rate > 0:
        raise ExportError(f"rate={rate!r}: a positive number of Hz")


def _check_probe(probe: str | None, shown: Path, quantize: str | None) -> None:
    if probe is None:
        return
    if probe != "gates":
        raise ExportError(f"probe={probe!r}: None or 'gates'")
    check_file(shown)
    if quantize:
        raise ExportError(
            "probe= does not go together with quantize=: what is shown are the float32 model's gates, and an "
            "int8 one has others. Export the probe without quantize=, to another file"
        )


def _check_blocks(
    blocks: Blocks | None, framing: Framing | None, state: Mapping[str, Any] | None, time_axis: int | None
) -> None:
    if blocks is None:
        return
    if framing or state or time_axis is None:
        other = "framing=" if framing else "state=" if state else "time_axis=None"
        raise ExportError(
            f"blocks= does not go together with {other}: it is for a module over whole sequences of ticks "
            "that finds its state by itself"
        )
