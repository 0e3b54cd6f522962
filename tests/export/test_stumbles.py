"""The likeliest mistakes of a newcomer with a model of their own: each is answered with what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runnel.cli.main import main
from runnel.errors import ExportError
from runnel_export import export

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden=4):
        super().__init__()
        self.gru = nn.GRU(3, hidden, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.act = lambda x: x.relu()

    def forward(self, x):
        return self.act(self.drop(self.gru(x)[0]))

class Two(Net):
    def forward(self, batch):
        return super().forward(batch["x"] + batch["y"])

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.size = undefined_name
"""

FILES = {
    "nets.py": NETS,
    "lacks.py": "import no_such_library\n",
    "syntax.py": "x = 1\nclass Net(:\n",
    "ends.py": "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('data')\n"
               "args = parser.parse_args()\n",
    "guarded.py": "from nets import Net\nif __name__ == '__main__':\n    model = Net()\n",
    "late.py": "def make():\n    import no_such_library\n",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "my work"
    made.mkdir()
    for name, text in FILES.items():
        (made / name).write_text(text)
    monkeypatch.chdir(made)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "nets", raising=False)  # another test's
    return made


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("lacks.py:Net", ["lacks.py, line 1", "no_such_library", "install the package"]),
        ("late.py:make", ["late.py, line 2", "no_such_library", "install the package"]),
        ("syntax.py:Net", ["syntax.py, line 2", "SyntaxError"]),
        ("ends.py:Net", ["ends.py, line 4", 'if __name__ == "__main__":']),
        ("guarded.py:model", ["has no 'model'", "made under if __name__", "Name the class"]),
        (
            "nets.py:Broken",
            [f"nets.py, line {NETS[: NETS.index('undefined')].count(chr(10)) + 1}", "NameError"],
        ),
        ("nets.py:Nets", ["did you mean 'Net'"]),
    ],
)
def test_what_fails_in_the_users_code_is_said_with_its_line(
    target: str, says: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", target, "--input", "float32[1,9,3]", "-o", "m.onnx"]) == 2
    error = capsys.readouterr().err
    for part in says:
        assert part in error
    assert "Traceback" not in error


def test_the_whole_of_it_is_there_for_who_asks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "nets.py:Broken", "--input", "float32[1,9,3]", "-o", "m.onnx", "--traceback"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "self.size = undefined_name" in error


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--args", '{"hiden": 3}'], ["Net(hidden=4)", "hiden", "--args"]),
        (["--args", "{'hidden': 3}"], ["double quotes", """'{"hidden": 32}'"""]),
        (["--input", "float32(1,9,3)"], ["x=float32[1,50,80]"]),
        (["--input", "float32[9,3]"], ["no batch axis", "(1, 9, 3)"]),
        (["--input", "float32[1,9,4]"], ["x: float32 (1, 9, 4)"]),
        (["--input", "float64[1,9,3]"], ["float64", "float32"]),
    ],
)
def test_a_command_line_is_put_right(
    words: list[str], says: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [] if "--input" in words else ["--input", "float32[1,9,3]"]
    try:
        status: object = main(["export", "nets.py:Net", *words, *more, "-o", "m.onnx"])
    except SystemExit as error:  # argparse's own way
        status = error.code
    assert status == 2
    error = capsys.readouterr().err
    for part in says:
        assert part in error


def test_a_path_with_spaces_dropout_in_train_mode_and_a_lambda_are_no_mistakes(folder: Path) -> None:
    out = folder / "a model.onnx"
    assert (
        main(["export", str(folder / "nets.py:Net"), "--input", "float32[1,9,3]", "-q", "-o", str(out)]) == 0
    )
    assert main(["verify", "-q", str(out)]) == 0


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Dict(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["x"] + batch["y"]


X = torch.ones(1, 9, 3)


@pytest.mark.parametrize(
    ("module", "example", "says"),
    [
        (nn.Linear(3, 2), np.ones((1, 9, 3), np.float32), "torch.from_numpy"),
        (nn.Linear(3, 2), (1, 9, 3), "torch.randn(1, 9, 3)"),
        (Two(), (X, X), "{'x': ..., 'y': ...}"),
        (Dict(), {"batch": {"x": X, "y": X}}, "forward(x, y) makes that dict"),
        (Dict(), {"x": X, "y": X}, "forward(x, y) makes that"),
        (nn.Linear(3, 2).double(), X, "module.float()"),
    ],
)
def test_an_example_of_another_kind_says_what_to_give(
    module: nn.Module, example: object, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as found:
        export(module, example, tmp_path / "m.onnx")  # type: ignore[arg-type]
    assert says in found.value.message


def test_the_examples_of_the_help_can_be_typed_into_zsh() -> None:
    """Brackets, braces and < are a shell's own: they are quoted."""
    import argparse
    import shlex

    from runnel.cli import export as command

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert parser.epilog
    lines = [line for line in parser.epilog.splitlines() if line.startswith("  runnel export")]
    assert lines
    for line in lines:
        bare = "".join(part for i, part in enumerate(line.split("'")) if i % 2 == 0)
        assert not set("[]{}<>?*") & set(bare), line
        assert parser.parse_args(shlex.split(line)[2:]).target
