"""What the sources and the sinks of `runnel run` have in common: kinds of file, and names of columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import UsageError, nearest
from ..spec import Signal, TensorSpec

SOUND = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".aiff": "AIFF"}  # soundfile's names
TABLE = {".csv": ",", ".tsv": "\t"}  # and what separates their cells


def kind_of(path: Path, kinds: Iterable[str], what: str) -> str:
    """The file's suffix, one of `kinds`; UsageError names those."""
    suffix = path.suffix.lower()
    known = list(kinds)
    if suffix not in known:
        raise UsageError(
            f"{path}: {what} is told by the name's ending, and {suffix or 'none'} is not one"
            f"{nearest(suffix, known)}"
        )
    return suffix


def columns_of(signal: Signal) -> list[str]:
    """One name for each number of a time step: ``x`` for a scalar, ``y.0``, ``y.1`` … or ``z.0.1`` else."""
    return [name for tensor in signal.tensors for name in tensor_columns(tensor)]


def tensor_columns(tensor: TensorSpec) -> list[str]:
    """The columns of one array, in C order."""
    places = itertools.product(*map(range, tensor.shape))
    return [".".join([tensor.name, *map(str, place)]) for place in places]


def soundfile(path: Path) -> Any:
    """The module soundfile; UsageError says how to get it."""
    try:
        return import_module("soundfile")
    except (ImportError, OSError) as error:  # OSError: the package is there, its C library is not
        raise UsageError(
            f"{path}: sound files need the package soundfile ({error}): pip install 'runnel[audio]'"
        ) from None
