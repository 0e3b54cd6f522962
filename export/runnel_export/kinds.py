"""Recognise a file by its first bytes, before torch is imported and without running any code in it."""

from __future__ import annotations

import ast
import io
import json
import pickletools
import zipfile
import zlib
from enum import Enum
from pathlib import Path

from runnel.errors import UsageError

_LOOK = 2**20  # bytes read of a file, or of a pickle in it, so that large files are recognised as fast
_NAMED = 8  # modules listed in an error
_FORM = "FILE.py:NAME or package.module:NAME"


class Kind(Enum):
    """Files that are often given in place of Python code. The value is the kind's name in an error."""

    TORCHSCRIPT = "a TorchScript file (torch.jit.save)"
    PROGRAM = "an exported program (torch.export.save)"
    WEIGHTS = "weights, or a trainer's checkpoint (torch.save)"
    MODULE = "a pickled module (torch.save of a whole module)"
    PICKLE = "a pickle"
    SAFETENSORS = "weights (safetensors)"
    ONNX = "an ONNX model"
    ARRAYS = "arrays of numpy"
    HDF5 = "an HDF5 file, as Keras writes it"
    TFLITE = "a TensorFlow Lite model"
    GGUF = "a GGUF model"
    NOTEBOOK = "a notebook"


_SAVE = "torch.save(module.state_dict(), 'weights.pt')"
_WITH_CODE = "give the Python code of its module, and them by --weights"
_ELSEWHERE = "runnel exports PyTorch modules"
_HELP = {
    Kind.TORCHSCRIPT: f"compiled code cannot be exported: {_WITH_CODE}. They are in it: "
    "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')",
    Kind.PROGRAM: f"its sizes may be fixed, and its states are lost in it: {_WITH_CODE}. They are in it: "
    "torch.save(torch.export.load(FILE).state_dict, 'weights.pt')",
    Kind.WEIGHTS: "weights need the Python code of their module: runnel export FILE.py:NAME --weights {file}",
    Kind.MODULE: f"a pickle can run any code, so it is not loaded. Where it was made: {_SAVE}; then "
    "runnel export FILE.py:NAME --weights weights.pt",
    Kind.PICKLE: f"a pickle can run any code, so it is not loaded. Where it was made: {_SAVE}; then "
    "runnel export FILE.py:NAME --weights weights.pt",
    Kind.SAFETENSORS: "weights need the Python code of their module: "
    "runnel export FILE.py:NAME --weights {file}",
    Kind.ONNX: "it is exported already: runnel inspect {file}, and runnel run. If others exported it, a "
    "pipeline's file says which of its tensors are states (README, 'A model from elsewhere')",
    Kind.ARRAYS: "give the Python code of a module; real data is given by --data {file}",
    Kind.HDF5: _ELSEWHERE,
    Kind.TFLITE: _ELSEWHERE,
    Kind.GGUF: _ELSEWHERE,
    Kind.NOTEBOOK: "put the module's class into a file of its own, model.py, or: "
    "jupyter nbconvert --to script {file}",
}


def kind_of(path: Path) -> Kind | None:
    """Return the kind of a file; None if it is unknown or cannot be read. No code in it is run."""
    try:
        with path.open("rb") as file:
            head = file.read(_LOOK)
    except OSError:
        return None
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and len(head) > 2:
        return _pickled(head)
    for magic, at, kind in (
        (b"\x89HDF\r\n\x1a\n", 0, Kind.HDF5),
        (b"TFL3", 4, Kind.TFLITE),
        (b"GGUF", 0, Kind.GGUF),
        (b"\x93NUMPY", 0, Kind.ARRAYS),
        (b'{"', 8, Kind.SAFETENSORS),
    ):
        if head[at : at + len(magic)] == magic and (kind is not Kind.SAFETENSORS or _fits(head, path)):
            return kind
    if head[:1] == b"\x08" and b"\x12" in head[2:4] + head[4:5]:  # ir_version, then producer_name
        return Kind.ONNX
    if path.suffix == ".onnx" and head[:1] in (b"\x08", b"\x12", b":"):
        return Kind.ONNX
    return Kind.NOTEBOOK if _notebook(head) else None


def explain_target(target: str) -> None:
    """Raise UsageError if `target` cannot be a module's code. The error names what the file is."""
    place, colon, name = target.rpartition(":")
    whole = Path(target)
    file = whole if whole.exists() or not colon else Path(place)
    if file.is_dir() and (file == whole or "." not in place):
        raise UsageError(f"{file} is a folder: write {_FORM}")
    if file.suffix == ".py":
        if not file.is_file():
            raise UsageError(f"{file}: no such file")
        if file == whole or not name:
            raise UsageError(f"{target!r}: {_named_in(file)}")
        return
    if file.is_file():
        kind = kind_of(file)
        if kind is None:
            raise UsageError(f"{file} is no Python code: write {_FORM}")
        raise UsageError(f"{file} is {kind.value}: {_HELP[kind].replace('{file}', _quoted(file))}")
    if len(file.parts) > 1 or file.suffix in _SUFFIXES:
        raise UsageError(f"{file}: no such file; the code of a module is {_FORM}")


_SUFFIXES = (".pt", ".pth", ".pt2", ".ckpt", ".bin", ".pkl", ".safetensors", ".onnx", ".h5", ".ipynb")


def _quoted(file: Path) -> str:
    text = str(file)
    return f"'{text}'" if " " in text else text


def _named_in(file: Path) -> str:
    """Return a hint that lists the modules in a Python file. The code is not run."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, ValueError, SyntaxError):
        return f"say what in it is the module: {file}:NAME"
    found: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base) for base in node.bases]
            if any(b.rpartition(".")[2] in ("Module", "LightningModule") or b in found for b in bases):
                found.append(node.name)
    several = " or ".join(f"{file}:{name}" for name in found[-_NAMED:])
    return f"say what in it is the module: {several or f'{file}:NAME'}"


def _archive(path: Path) -> Kind | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            parts = {name.partition("/")[2] for name in names}
            if "models/model.json" in parts or "serialized_exported_program.json" in {*parts, *names}:
                return Kind.PROGRAM
            if "constants.pkl" in parts or any(part.startswith("code/") for part in parts):
                return Kind.TORCHSCRIPT
            held = next((name for name in names if name.endswith("/data.pkl")), None)
            if held is not None:
                with archive.open(held) as file:
                    return Kind.MODULE if _is_object(file.read(_LOOK)) else Kind.WEIGHTS
            if names and all(name.endswith(".npy") for name in names):
                return Kind.ARRAYS
            if "model.weights.h5" in names:
                return Kind.HDF5
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None
    return None


_LEGACY = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # magic number of torch's older format


def _pickled(head: bytes) -> Kind | None:
    if head[2:14] != _LEGACY:
        return Kind.PICKLE
    file = io.BytesIO(head)
    try:
        for _ in range(3):  # the magic number, the protocol's version, the machine's sizes
            for _ in pickletools.genops(file):
                pass
    except Exception:  # cut off
        return Kind.WEIGHTS
    return Kind.MODULE if _is_object(file.read()) else Kind.WEIGHTS


def _is_object(pickle: bytes) -> bool:
    """Whether a pickle begins with a class. A pickled dict or tensor does not."""
    try:
        for op, argument, _ in pickletools.genops(io.BytesIO(pickle)):
            if op.name == "GLOBAL":
                name = str(argument)
                return not name.startswith("torch._utils ") and name != "collections OrderedDict"
            if op.name not in ("PROTO", "FRAME"):
                return False
    except Exception:  # cut off, or not a pickle
        return False
    return False


def _fits(head: bytes, path: Path) -> bool:
    """Whether the first eight bytes give the length of a header that fits into the file."""
    return 2 <= int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _notebook(head: bytes) -> bool:
    if not head.lstrip().startswith(b"{") or b'"cells"' not in head:
        return False
    try:
        return len(head) == _LOOK or "nbformat" in json.loads(head)
    except ValueError:
        return False
