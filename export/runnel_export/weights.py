"""Load weights from a file into a module: from a `state_dict`, or from a trainer's checkpoint.

A checkpoint is dicts within dicts. Each dict that has tensors may hold the weights, under each prefix of its
keys; a dict with one prefix is called a *place* here. If one place has every weight of the module, in the
right shape, it is loaded. If several such places differ, the error lists them and the user chooses.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runnel.errors import UsageError, nearest

from .kinds import Kind, kind_of

_PICKLED = re.compile(r"GLOBAL (\S+)")  # in torch's error for a file that has more than plain tensors
_DEEPEST = 8  # levels of dicts within dicts: a trainer needs three
_MOST = 10_000  # most dicts that are searched: an optimizer has one per weight
_LISTED = 6  # most places, or names of weights, in an error

_OUT = {
    Kind.TORCHSCRIPT: "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')",
    Kind.PROGRAM: "torch.save(torch.export.load(FILE).state_dict, 'weights.pt')",
}
_NOT_WEIGHTS = (Kind.ONNX, Kind.HDF5, Kind.TFLITE, Kind.GGUF, Kind.NOTEBOOK, Kind.ARRAYS)


def load_weights(module: nn.Module, path: str | Path, key: str | None = None) -> list[str]:
    """Load the weights in a file into `module`, and return notes for the user on what was chosen.

    Args:
        module: its weights are overwritten. After an error they are as before.
        path: a ``.safetensors`` file, or a ``torch.save`` file of tensors and dicts of tensors. A file with
            code in it is refused, and the code is not run.
        key: the position of the weights in a checkpoint, such as ``"model_state_dict"`` or
            ``"state_dict.model"``. Needed only if several sets of weights in the file fit and differ.

    Prefixes (``module.``, ``_orig_mod.``, ``model.``) are removed. The list of notes is empty if the file is
    the module's own ``state_dict``.

    Raises UsageError if the file cannot be read, if the weights do not fit, or if it is uncertain which
    weights are meant.
    """
    path = Path(path)
    held = _read(path)
    if not isinstance(held, Mapping):
        raise UsageError(f"{path}: it holds a {type(held).__name__}, expected what module.state_dict() gives")
    places = _places(held, module)
    if not places:
        raise UsageError(f"{path}: it holds no tensors, expected what module.state_dict() gives")
    if key is not None:
        chosen = [p for p in places if p.name == key] or [p for p in places if p.path == key]
        if not chosen:
            near = (
                nearest(key, [p.name for p in places if p.matching])
                if any(p.matching for p in places)
                else ""
            )
            close = near if "did you mean" in near else ""
            raise UsageError(f"{path}: it has no weights at {key!r}{close}. {_listing(places, module)}")
        places = chosen
    place = _chosen(places, module, path)
    _load(module, place, path)
    return place.notes()


def split_key(text: str) -> tuple[Path, str | None]:
    """Split ``FILE`` or ``FILE:KEY`` from a command line. The file's name may contain a colon."""
    file, colon, key = text.rpartition(":")
    if colon and key and not Path(text).exists() and Path(file).exists():
        return Path(file), key
    return Path(text), None


# ------------------------------------------------------------------ reading


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(
            f"{path}: {'a folder, expected a file of weights' if path.is_dir() else 'no such file'}"
        )
    kind = kind_of(path)
    if kind in _OUT:
        raise UsageError(f"{path} is {kind.value}: take the weights out of it: {_OUT[kind]}")
    if kind in _NOT_WEIGHTS:
        raise UsageError(f"{path} is {kind.value}: not a file of weights (.safetensors, or .pt)")
    try:
        if kind is Kind.SAFETENSORS or path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)  # never runs pickled code
    except ImportError:
        raise UsageError("a .safetensors file needs: pip install safetensors") from None
    except Exception as error:  # the reader of each format has its own errors
        held = _PICKLED.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if held and kind is Kind.WEIGHTS:
            raise UsageError(
                f"{path}: besides weights it holds an object ({held[1]}), which could run any code and is "
                "not loaded. Where it was made, save the weights: torch.save(checkpoint[KEY], 'weights.pt')"
            ) from error
        if held:
            raise UsageError(
                f"{path}: it holds a pickled module or other object ({held[1]}), which is not loaded: save "
                "module.state_dict() instead"
            ) from error
        raise UsageError(
            f"{path}: not a file of weights (.safetensors, or .pt without code in it), or damaged"
        ) from error


# ------------------------------------------------------------------ places


@dataclass
class _Place:
    """One dict of a file, with one prefix of its keys."""

    path: str  # keys from the file's top to the dict, joined by dots
    prefix: str  # with its last dot
    held: Mapping[Any, Any]
    tensors: int  # number of tensors under the prefix
    values: dict[str, Tensor] = field(default_factory=dict)  # by the module's keys, in any shape
    sources: dict[str, str] = field(default_factory=dict)  # module's key -> the file's key
    matching: int = 0  # number of `values` that have the module's shape
    torn: bool = False  # two of the file's keys stand for one weight, and differ

    @property
    def name(self) -> str:
        return ".".join(part for part in (self.path, self.prefix.rstrip(".")) if part) or "."

    def notes(self) -> list[str]:
        if not self.path and not self.prefix:
            return []
        without = f"its keys without {self.prefix!r}" if self.prefix else ""
        said = "weights from " + ", ".join(p for p in (f"key {self.path!r}" * bool(self.path), without) if p)
        other = [
            str(k)
            for k, v in self.held.items()
            if isinstance(v, Tensor) and not str(k).startswith(self.prefix)
        ]
        if other:
            several = f"{len(other)} other tensors are" if len(other) > 1 else "1 other tensor is"
            said += f"; {several} not used: {_few(other)}"
        return [said]


def _places(held: Mapping[Any, Any], module: nn.Module) -> list[_Place]:
    """Return every place, best match first. Equal matches keep the order of the file."""
    own = {k: v for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    # A prefix `module` comes from a wrapper, unless the user's module has such a key.
    wrappers = {"_orig_mod"} | ({"module"} if not any("module" in k.split(".") for k in own) else set())
    wanted = {".".join(_bare(k.split("."), wrappers)): (k, v) for k, v in own.items()}
    found: list[_Place] = []
    for path, mapping in _dicts(held):
        keys = [str(k) for k, v in mapping.items() if isinstance(v, Tensor)]
        grouped: dict[str, _Place] = {}
        for key, value in mapping.items():
            if not isinstance(value, Tensor):
                continue
            for prefix, (name, like) in _hits(str(key), wrappers, wanted):
                place = grouped.setdefault(prefix, _place(path, prefix, mapping, keys))
                if name in place.values:
                    place.torn |= not _equal(place.values[name], value)
                    continue
                place.values[name], place.sources[name] = value, str(key)
                place.matching += _fits(value, like)
        found += grouped.values() or [_place(path, "", mapping, keys)]
    return sorted(found, key=lambda p: -p.matching)


def _place(path: str, prefix: str, held: Mapping[Any, Any], keys: Sequence[str]) -> _Place:
    return _Place(path, prefix, held, sum(key.startswith(prefix) for key in keys))


def _dicts(held: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield every dict that has tensors, with the keys that lead to it."""
    waiting: list[tuple[str, Mapping[Any, Any], int]] = [("", held, 0)]
    for path, mapping, depth in waiting:  # the list grows during the loop
        if any(isinstance(v, Tensor) for v in mapping.values()):
            yield path, mapping
        for key, value in mapping.items():
            if isinstance(value, Mapping) and depth < _DEEPEST and len(waiting) < _MOST:
                waiting.append((f"{path}.{key}" if path else str(key), value, depth + 1))


def _bare(parts: Sequence[str], wrappers: set[str]) -> list[str]:
    return [part for part in parts if part not in wrappers]


_Wanted = Mapping[str, tuple[str, Tensor]]


def _hits(key: str, wrappers: set[str], wanted: _Wanted) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """Yield the module's weights that a key could stand for, each with the prefix to remove."""
    parts = key.split(".")
    for start in range(len(parts)):
        if parts[start] in wrappers:
            continue
        if (hit := wanted.get(".".join(_bare(parts[start:], wrappers)))) is not None:
            yield "".join(f"{part}." for part in parts[:start]), hit


def _fits(value: Tensor, like: Tensor) -> bool:
    return nn.parameter.is_lazy(like) or value.shape == like.shape


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))


def _chosen(places: Sequence[_Place], module: nn.Module, path: Path) -> _Place:
    """Return the place that is meant. Raise UsageError if that is uncertain."""
    size = _size(module)
    whole = [p for p in places if p.matching == size and not p.torn]
    if whole:
        first, *rest = whole
        if all(_equal(first.values[n], p.values[n]) for p in rest for n in first.values):
            return first
        flag = _shell(f"{path}:{first.name}")
        raise UsageError(
            f"{path}: weights at several places in it fit, and they differ. {_listing(whole, module)}. "
            f'Choose one: --weights {flag}, or load_weights(..., key="{first.name}")'
        )
    partly = [p for p in places if p.matching] or list(places)
    if len(partly) == 1 or partly[0].matching > partly[1].matching:
        return partly[0]  # `_load` refuses it, and its error lists what is missing
    raise UsageError(f"{path}: no weights in it fit {type(module).__name__}. {_listing(places, module)}")


def _size(module: nn.Module) -> int:
    return sum(isinstance(v, Tensor) for v in module.state_dict().values())


def _listing(places: Sequence[_Place], module: nn.Module) -> str:
    shown = [f"{p.name} ({p.tensors} tensors, {p.matching} of the module's {_size(module)})" for p in places]
    more = f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    return f"It has: {', '.join(shown[:_LISTED])}{more}"


def _shell(text: str) -> str:
    return f"'{text}'" if " " in text else text


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


# ------------------------------------------------------------------ loading


def _load(module: nn.Module, place: _Place, path: Path) -> None:
    """Load all values of a place, or none. Raise UsageError that names what does not fit."""
    used = set(place.sources.values())
    values: dict[str, Any] = dict(place.values)
    for key, value in place.held.items():  # keys that the module lacks, and its extra state
        if str(key).startswith(place.prefix) and str(key) not in used:
            values[str(key).removeprefix(place.prefix)] = value
    if place.torn:
        raise UsageError(f"{path}: two keys at {place.name!r} stand for one weight of the module, and differ")
    before = {
        k: v.detach().clone()
        for k, v in module.state_dict(keep_vars=True).items()
        if isinstance(v, Tensor) and not nn.parameter.is_lazy(v)
    }
    try:
        module.load_state_dict(values)
    except Exception as error:  # a module's own hooks may raise anything
        module.load_state_dict(before, strict=False)
        where = f" at {place.name!r}" if place.name != "." else ""
        why = _misfit(module, values) or str(error).strip().partition("\n")[0]
        raise UsageError(f"{path}: the weights{where} do not fit {type(module).__name__}: {why}") from error


def _misfit(module: nn.Module, values: Mapping[str, Any]) -> str:
    own = module.state_dict()
    shared = [n for n in own if n in values and isinstance(values[n], Tensor) and isinstance(own[n], Tensor)]
    sized = [
        f"{n}: {tuple(values[n].shape)} in the file, {tuple(own[n].shape)} in the module"
        for n in shared
        if not _fits(values[n], own[n])
    ]
    parts = []
    if missing := [n for n in own if n not in values]:
        parts.append(f"missing: {_few(missing)}")
    if unknown := [n for n in values if n not in own]:
        parts.append(f"not the module's: {_few(unknown)}")
    if sized:
        parts.append(f"of other sizes: {_few(sized)}; was the module made with other arguments?")
    return "; ".join(parts)
