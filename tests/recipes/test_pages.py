"""The command that runs recipes, and the pages with their tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import measured
import pytest
import torch

from runnel.errors import UsageError
from tests.recipes.pages import RECIPES, command

NAMES = command().RECIPES


def test_every_folder_is_a_recipe_of_the_command_and_of_the_index() -> None:
    folders = {f.parent.name for f in RECIPES.glob("*/recipe.py")}
    assert folders == set(NAMES)
    index = (RECIPES / "README.md").read_text("utf-8")
    assert all(f"[{name}]({name}/README.md)" in index for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_the_tables_that_were_measured(name: str) -> None:
    page = (RECIPES / name / "README.md").read_text("utf-8")
    assert page.startswith("# ")
    _, _, rest = page.partition(measured.BEGIN)
    recorded, end, _ = rest.partition(measured.END)
    assert end
    rows = [
        line for line in recorded.splitlines() if line.startswith("| ") and any(c.isdigit() for c in line)
    ]
    assert len(rows) >= 3
    assert "minutes in all" in recorded


def test_the_command_lists_its_recipes_without_loading_any() -> None:
    told = [sys.executable, "-X", "importtime", RECIPES, "--help"]
    made = subprocess.run(told, capture_output=True, text=True, check=True)
    for name in NAMES:
        assert f"  {name} " in made.stdout
    loaded = {line.rpartition("|")[2].strip() for line in made.stderr.splitlines()}
    assert "measured" in loaded
    assert not loaded & {"torch", "numpy.linalg", "onnxruntime", *NAMES}


def test_without_torch_the_command_says_what_installs_it(tmp_path: Path) -> None:
    """As a base install is: the command is there, what recipes need is not."""
    (tmp_path / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, RECIPES, *words, "--out", tmp_path / "out"]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    assert run("--help").returncode == 0
    for name in NAMES:
        made = run(name)
        assert made.returncode == 1
        assert made.stderr == (
            f"{name}: No module named 'torch': `make recipe NAME={name}` installs what it needs, or "
            "pip install '.[recipes]'\n"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["memory"], "'memory'"), (["long_memory", "--quick", "--record"], "--record is for")],
)
def test_what_cannot_be_is_said(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command().main(arguments)
    assert stopped.value.code == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (UsageError("no series here"), "no series here"),
        (PermissionError(13, "Permission denied", "a.onnx"), "[Errno 13] Permission denied: 'a.onnx'"),
        (subprocess.TimeoutExpired("runnel run", 60), "Command 'runnel run' timed out after 60 seconds"),
        (
            ModuleNotFoundError("No module named 'scipy'", name="scipy"),
            "No module named 'scipy': `make recipe NAME=forecast` installs what it needs, "
            "or pip install '.[recipes]'",
        ),
    ],
)
def test_a_recipe_that_fails_says_why(
    error: Exception,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = command()

    class Failing:
        @staticmethod
        def run(out: Path, quick: bool, say: measured.Say) -> list[measured.Table]:
            raise error

    monkeypatch.setattr(module, "recipe", lambda name: Failing)
    assert module.main(["forecast", "--out", str(tmp_path / "made")]) == 1
    assert capsys.readouterr().err == f"forecast: {why}\n"


def test_a_file_in_the_folders_place_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for out in (taken, taken / "below"):
        assert command().main(["forecast", "--quick", "--out", str(out)]) == 1
        assert f"its files cannot go to {out}" in capsys.readouterr().err
    assert taken.read_text() == "mine"


def test_every_recipe_has_one_thread_and_gives_the_others_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that its figures are the same at every run, and those that the page tells."""
    module, seen = command(), []

    class Counting:
        @staticmethod
        def run(out: Path, quick: bool, say: measured.Say) -> list[measured.Table]:
            seen.append(torch.get_num_threads())
            return []

    monkeypatch.setattr(module, "recipe", lambda name: Counting)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert module.main(["forecast", "--out", str(tmp_path)]) == 0
        assert (seen, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(before)


TABLE = measured.Table("Of two", ["cell", "5"], [["LSTM", "100 %"], ["a longer name", "9 %"]])


def test_a_table_on_the_screen_is_aligned() -> None:
    assert str(TABLE).splitlines() == [
        "Of two",
        "  cell               5",
        "  LSTM           100 %",
        "  a longer name    9 %",
    ]


def test_recording_replaces_what_was_recorded_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"# A\n\nbefore\n{measured.BEGIN}\nold\n{measured.END}\nafter \\1\n")
    measured.record(page, [TABLE], 90.0)
    text = page.read_text()
    assert text.startswith(
        f"# A\n\nbefore\n{measured.BEGIN}\n**Of two**\n\n| cell | 5 |\n| --- | --- |\n| LSTM | 100 % |"
    )
    assert f"(1.5 minutes in all; {os.cpu_count()} processors, of which torch uses one; torch " in text
    assert text.endswith(f"{measured.END}\nafter \\1\n")
    assert "old" not in text


def test_a_page_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# A\n")
    with pytest.raises(OSError, match="has no <!-- measured -->"):
        measured.record(page, [TABLE], 1.0)
    assert page.read_text() == "# A\n"
