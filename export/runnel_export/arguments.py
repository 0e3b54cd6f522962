"""What `export` is given, checked before any work: each error names its argument."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runnel.errors import ExportError


def check_module(module: Any) -> None:
    """Raises ExportError for what is no plain `nn.Module`: the classes around one have it inside."""
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
    """Raises ExportError for a name that no file can have, and for a folder that is not there."""
    if path.suffix != ".onnx":
        raise ExportError(f"{str(path)!r}: a model file's name ends in .onnx")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, a NUL in it, a folder that is closed
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
    """Raises ExportError for a value of the wrong kind."""
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
    """(time, batch) axes counted from the front, where the inputs are of one rank; 0 and 0 is (0, 1)."""
    ranks = {t.dim() for t in inputs.values()}
    if len(ranks) == 1 and (rank := ranks.pop()):
        # (an axis beyond the rank stays as it is, to be refused as the user wrote it)
        batch_axis = batch_axis + rank if -rank <= batch_axis < 0 else batch_axis
        if time_axis is not None:
            time_axis = time_axis + rank if -rank <= time_axis < 0 else time_axis
    return time_axis, 1 if time_axis == 0 and batch_axis == 0 else batch_axis
