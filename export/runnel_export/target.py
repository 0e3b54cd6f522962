"""Make a module and its example from the command-line arguments of `runnel export`."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import math
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runnel.errors import RunnelError, UsageError, nearest

from .dry_run import first_line

_INPUT = re.compile(r"(?:(?P<name>\w+)=)?(?P<dtype>[a-z]+\d*)\[(?P<shape>[\d,\s]+)\](?:<(?P<below>\d+))?\Z")
_STATE = re.compile(r"(?P<name>\w+)=(?P<shape>[\d,\s]+)\Z")
_DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_MOST = 2**26  # most elements of an example


def load_module(target: str, kwargs: Mapping[str, Any], seed: int) -> nn.Module:
    """Return the nn.Module that ``file.py:name`` or ``package.module:name`` names. This runs that code.

    `name` is a module, or a class or function that makes one from `kwargs`. The same `seed` gives the same
    weights. Raises UsageError.
    """
    torch.manual_seed(seed)
    place, colon, name = target.rpartition(":")
    if not colon or not name:
        raise UsageError(f"{target!r}: write FILE.py:NAME or package.module:NAME")
    with _users_code(place):
        found: Any = _import(place)
    for part in name.split("."):
        if not hasattr(found, part):
            near = nearest(part, [n for n in dir(found) if n[0] != "_"])
            raise UsageError(f"{place} has no {part!r}{_guarded(place, part) or near}")
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise UsageError(f"{target}: a {type(found).__name__}, expected an nn.Module or what makes one")
        _check_arguments(found, kwargs, target)
        with _users_code(target):
            found = found(**kwargs)
    elif kwargs:
        raise UsageError(f"{target} is a module already: --args is for a class or a function that makes one")
    if not isinstance(found, nn.Module):
        raise UsageError(f"{target} made a {type(found).__name__}, expected an nn.Module")
    return found


def _check_arguments(make: Any, kwargs: Mapping[str, Any], target: str) -> None:
    try:
        inspect.signature(make).bind(**kwargs)
    except TypeError as error:
        shown = f"{target.rpartition(':')[2]}{inspect.signature(make)}"
        raise UsageError(f"{target}: {shown}: {error}; give its arguments with --args '{{...}}'") from error
    except ValueError:  # made in C, without a signature
        return


@contextmanager
def _users_code(what: str) -> Iterator[None]:
    """Run the user's code in this context. Its errors become UsageError, with the line in the user's code."""
    argv, sys.argv = sys.argv, [what.rpartition(":")[0] or what]  # a script may read its command line
    try:
        yield
    except (RunnelError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise UsageError(
            f"{what}: its code ends the program ({_where(error) or 'sys.exit'}) when it is imported: put "
            'what a script does under if __name__ == "__main__":'
        ) from error
    except Exception as error:
        help = "--traceback shows more"
        if isinstance(error, ModuleNotFoundError):
            help = f"install the package that has {error.name!r} where runnel is installed ({sys.prefix})"
        at = _where(error)
        raise UsageError(
            f"{what}: its code fails{' at ' + at if at else ''}: {first_line(error)} ({help})"
        ) from error
    finally:
        sys.argv = argv


def _where(error: BaseException) -> str:
    """Return the last line of the user's code in an error's traceback, as ``nets.py, line 5``."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    ours = Path(__file__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename[:1] != "<"]
    theirs = [f for f in frames if Path(f.filename) != ours and "site-packages" not in Path(f.filename).parts]
    own = [f for f in theirs if not Path(f.filename).is_relative_to(Path(inspect.__file__).parent)]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else ""


def _guarded(place: str, name: str) -> str:
    """Return a hint for a name that is defined only when the file is run as a program."""
    try:
        tree = ast.parse(Path(place).read_bytes())
    except (OSError, ValueError, SyntaxError):
        return ""
    guards = [n for n in tree.body if isinstance(n, ast.If) and "__name__" in ast.unparse(n.test)]
    within = (part for guard in guards for part in ast.walk(guard))
    if any(isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and n.id == name for n in within):
        return (
            ' when it is imported: it is made under if __name__ == "__main__". Name the class, or a function '
            "that returns the module"
        )
    return ""


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
    sys.path.insert(0, str(file.resolve().parent))  # for its imports of files in the same folder
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def unloaded(module: nn.Module, target: str) -> list[str]:
    """Return the note for a module that has weights but loaded none; empty for a module without weights."""
    if not module.state_dict():
        return []
    name = target.rpartition(":")[2]
    name += "()" if name == type(module).__name__ else ""
    return [f"no --weights: the weights are those that {name} starts with"]


def example(module: nn.Module, texts: Sequence[str]) -> Tensor | dict[str, Tensor]:
    """Make random tensors from texts such as ``x=float32[1,50,80]``. Raises UsageError."""
    if not texts:
        raise UsageError(
            f"say what forward{inspect.signature(module.forward)} takes: --input [NAME=]DTYPE[SHAPE], "
            "for example --input 'float32[1,50,80]' for a batch of one, 50 ticks, 80 features"
        )
    inputs = [_input(text) for text in texts]
    if len(inputs) == 1 and not inputs[0][0]:
        return inputs[0][1]
    if not all(name for name, _ in inputs):
        raise UsageError("with several inputs, name each: --input x=float32[1,50,80]")
    return dict(inputs)


def _input(text: str) -> tuple[str, Tensor]:
    match = _INPUT.match(text.replace(" ", ""))
    if not match or match["dtype"] not in _DTYPES:
        hint = _dtype_hint(match["dtype"]) if match else ""
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
    below, most = int(match["below"]), torch.iinfo(dtype).max
    if not 1 <= below <= most:
        raise UsageError(f"--input {text!r}: {below} is no bound for {match['dtype']}: 1 to {most}")
    values = torch.randint(0, below, shape)
    # The proof draws its data from the range of the example, so the example must contain both ends.
    values.view(-1)[0], values.view(-1)[-1] = 0, below - 1
    return match["name"] or "", values.to(dtype)


def _dtype_hint(word: str) -> str:
    """Return a suggestion for a misspelt dtype. For ``float`` and ``int`` it is the usual size."""
    usual = next((known for known in _DTYPES if word and known.rstrip("0123456789") == word), word)
    return f" (did you mean {usual!r}?)" if usual != word else nearest(word, _DTYPES)


def state(texts: Sequence[str]) -> dict[str, Tensor] | None:
    """Make explicit states of zeros from texts such as ``h=1,1,32``; None if there are none."""
    found = {}
    for text in texts:
        match = _STATE.match(text)
        if not match:
            raise UsageError(
                f"--state {text!r}: write it as h=1,1,32: the shape that forward takes, batch included"
            )
        found[match["name"]] = torch.zeros(_sizes(match["shape"], text))
    return found or None


def _sizes(text: str, whole: str) -> list[int]:
    sizes = [int(part) for part in text.split(",") if part.strip()]
    if not sizes or math.prod(sizes) < 1:
        raise UsageError(f"{whole!r}: sizes are whole numbers of at least 1")
    if math.prod(sizes) > _MOST:
        raise UsageError(
            f"{whole!r}: {math.prod(sizes)} elements; an example needs a few rows and ticks, at most {_MOST}"
        )
    return sizes


def data(path: Path) -> Tensor | dict[str, Tensor]:
    """Read arrays from a .npy or .npz file. Raises UsageError."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return torch.from_numpy(loaded)
        return {name: torch.from_numpy(loaded[name]) for name in loaded.files}
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path}: not data: .npy, or .npz by input names, without objects ({error})"
        ) from error
