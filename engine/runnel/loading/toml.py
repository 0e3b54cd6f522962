"""Read a pipeline file strictly: typed values, known keys, and the position in each error."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import regular
from ..errors import PipelineError, nearest

MAX_PIPELINE_FILE = 2**20  # bytes: it is written by hand
MAX_KEY_PARTS = 32  # of a dotted key: the parser's time grows with their square
MAX_NAME = 256  # characters of a tensor's name: as many as a message allows

_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_DEEP = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MAX_KEY_PARTS}}}")


def read_toml(path: Path) -> dict[str, Any]:
    data = regular.read(path, MAX_PIPELINE_FILE, "the pipeline", PipelineError)
    try:
        return parse_toml(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: not TOML: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a TOML document. Raises ValueError or RecursionError if it is invalid."""
    deep = _DEEP.search(text)
    if deep is not None:
        line = text.count("\n", 0, deep.start()) + 1
        raise ValueError(f"a key of more than {MAX_KEY_PARTS} parts (at line {line})")
    return tomllib.loads(text)


def known(part: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in part:
        if key not in keys:
            raise PipelineError(f"{where}: unknown key {key!r}{nearest(key, keys)}")


def within(where: str, key: str) -> str:
    """Return an error's name for the table `key` in the table at `where`: ``p.toml: [model.shapes]``."""
    return f"{where[:-1]}.{key}]" if where.endswith("]") else f"{where}: {key}"


def table(part: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = part.get(key, {})
    if not isinstance(value, Mapping):
        raise PipelineError(f"{where}: {key} must be a table, not {value!r:.80}")
    return value


def tables(part: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    value = part.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
        raise PipelineError(f"{where}: {key} must be written as [[{key}]] tables")
    return value


def text(part: Mapping[str, Any], key: str, where: str) -> str:
    value = part.get(key)
    if not isinstance(value, str) or not value:
        raise PipelineError(f"{where}: {key} must be a text, not {value!r}")
    return value


def name(value: str, where: str) -> str:
    """Check a tensor's name in a chunk."""
    if not 1 <= len(value) <= MAX_NAME or not value.isprintable():
        raise PipelineError(f"{where}: a name is 1 to {MAX_NAME} characters, not {value!r:.80}")
    return value


def whole(part: Mapping[str, Any], key: str, where: str) -> int:
    value = part.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PipelineError(f"{where}: {key} must be a whole number of at least 1, not {value!r}")
    return value


def among(name: str, names: Sequence[str], where: str) -> None:
    if name not in names:
        raise PipelineError(f"{where}: the model has no {name!r}{nearest(name, list(names))}")
