"""What a file is, told from its first bytes, without torch: files of each kind, made by their own makers."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from runnel.cli.main import main
from runnel_export.kinds import Kind, kind_of
from tests.export.zoo import exported


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x)[0]


def made(kind: str, folder: Path) -> Path:
    """A file of that kind, under a name that says nothing about it."""
    import warnings

    path, net = folder / "file.bin", Net().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        match kind:
            case "torchscript":
                torch.jit.save(torch.jit.script(net), path)
            case "program":
                with path.open("wb") as file:
                    torch.export.save(torch.export.export(net, (torch.zeros(1, 5, 4),)), file)
            case "weights":
                torch.save(net.state_dict(), path)
            case "legacy":
                torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
            case "checkpoint":
                torch.save({"epoch": 3, "model": net.state_dict(), "lr": 1e-3}, path)
            case "module":
                torch.save(net, path)
            case "pickle":
                path.write_bytes(pickle.dumps({"a": 1}))
            case "safetensors":
                from safetensors.torch import save_file

                save_file(dict(net.state_dict()), path)
            case "onnx":
                path.write_bytes(exported("lstm").read_bytes())
            case "npz":
                with path.open("wb") as file:
                    np.savez(file, a=np.zeros(3))
            case "hdf5":
                path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
            case "notebook":
                path.write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4}))
            case "zip":
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("readme.txt", "nothing")
            case "text":
                path.write_text("class Net: ...\n")
            case "empty":
                path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("torchscript", Kind.TORCHSCRIPT),
        ("program", Kind.PROGRAM),
        ("weights", Kind.WEIGHTS),
        ("legacy", Kind.WEIGHTS),
        ("checkpoint", Kind.WEIGHTS),
        ("module", Kind.MODULE),
        ("pickle", Kind.PICKLE),
        ("safetensors", Kind.SAFETENSORS),
        ("onnx", Kind.ONNX),
        ("npz", Kind.ARRAYS),
        ("hdf5", Kind.HDF5),
        ("notebook", Kind.NOTEBOOK),
        ("zip", None),
        ("text", None),
        ("empty", None),
    ],
)
def test_a_file_is_known_by_what_is_in_it(kind: str, expected: Kind | None, tmp_path: Path) -> None:
    assert kind_of(made(kind, tmp_path)) is expected


@pytest.mark.parametrize("cut", [1, 7, 30, 200, -1])
@pytest.mark.parametrize("kind", ["torchscript", "weights", "legacy", "safetensors", "onnx"])
def test_a_file_that_was_cut_off_raises_nothing(kind: str, cut: int, tmp_path: Path) -> None:
    path = made(kind, tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    kind_of(path)


def test_a_pickle_is_looked_at_and_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"weight": Evil()}, tmp_path / "evil.pt")
        kind_of(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What `runnel export` says of a target, in a folder and where torch cannot be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "runnel_export.target", None)  # it alone of the command imports torch

    def said(target: str) -> str:
        assert main(["export", target, "-o", "m.onnx"]) == 2
        error = capsys.readouterr().err
        assert "pip install" not in error, "torch was looked for first"
        assert error.count("\n") == 1
        return error

    return said


def test_torch_is_not_imported_for_a_target_that_is_none(tmp_path: Path) -> None:
    made("weights", tmp_path)
    code = "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; from runnel.cli.main import main; "
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(main(['export', 'file.bin', '-o', 'm.onnx']))"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--weights file.bin" in done.stderr


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("torchscript", "model.pt", "TorchScript"),
        ("program", "model.pt2", "torch.export.save"),
        ("weights", "model.pt", "--weights model.pt"),
        ("module", "whole model.pth", "--weights"),
        ("pickle", "model.pkl", "pickle"),
        ("safetensors", "model.safetensors", "--weights model.safetensors"),
        ("onnx", "model.onnx", "runnel inspect model.onnx"),
        ("hdf5", "model.h5", "PyTorch"),
        ("notebook", "model.ipynb", "nbconvert"),
        ("npz", "model.npz", "--data model.npz"),
        ("text", "model.txt", "FILE.py:NAME"),
    ],
)
def test_what_is_no_module_is_said_before_torch_is_imported(
    kind: str, name: str, says: str, tmp_path: Path, refused
) -> None:
    made(kind, tmp_path).rename(tmp_path / name)
    for target in (name, f"{name}:Net"):
        error = refused(target)
        assert name in error
        assert says in error


def test_a_python_file_without_a_name_says_which_modules_are_in_it(tmp_path: Path, refused) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch.nn as nn\nclass Helper: pass\nclass Base(nn.Module): pass\nclass Tagger(Base): pass\n"
    )
    error = refused("nets.py")
    assert "nets.py:Base or nets.py:Tagger" in error
    assert "Helper" not in error
    (tmp_path / "broken.py").write_text("class Net(nn.Module:\n")
    assert "broken.py:NAME" in refused("broken.py")


@pytest.mark.parametrize(
    "target", ["none.pt", "none.pt:Net", "folder/none.safetensors", "nowhere.py", "folder"]
)
def test_a_file_that_is_not_there(target: str, tmp_path: Path, refused) -> None:
    (tmp_path / "folder").mkdir()
    assert ("is a folder" if target == "folder" else "no such file") in refused(target)
