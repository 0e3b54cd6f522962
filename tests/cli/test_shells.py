"""Examples can be typed as they stand: what a shell, zsh too, would take for its own is in quotes."""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from pathlib import Path

import pytest

from runnel.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "deploy").glob("*.md")), ROOT / "plugins" / "README.md",
         *sorted((ROOT / "export").glob("**/*.md"))]  # fmt: skip
OURS = "?[]*{}"  # zsh takes these for patterns of file names, and it is an error if no file matches


def bare(line: str) -> str:
    """The characters of a command line that stand in no quotes."""
    line = re.sub(r"\\.", "", line)
    line = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
    return line.partition(" #")[0]


def commands(text: str) -> list[str]:
    """The lines of a text that begin a command of ours, and what follows a pipe or a variable."""
    found = re.findall(r"^ *\$? ?((?:[a-z]+ .*\| )?(?:runnel|pip install|python -m pip) .*)$", text, re.M)
    return [line for line in found if "runnel COMMAND" not in line]


def wrong(line: str) -> set[str]:
    text = bare(line)
    text = re.sub(r"\$\{\w+\}", "", text)
    return set(text) & set(OURS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_help_text(name: str) -> None:
    module = import_module(f"runnel.cli.{COMMANDS[name]}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    epilog = parser.epilog or ""
    assert "runnel" in epilog or not epilog
    for line in commands(epilog):
        assert not wrong(line), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page(page: Path) -> None:
    for block in re.findall(r"^```(?:sh|console|bash)\n(.*?)^```", page.read_text(), re.M | re.S):
        for line in commands(block):
            assert not wrong(line), line


def test_what_is_looked_for_is_found() -> None:
    for line in (
        "runnel run p.toml x.csv?time=t",
        "runnel run p.toml host:?rate=2",
        "pip install runnel[audio]",
    ):
        (found,) = commands(line)
        assert wrong(found)
    for line in (
        'runnel run p.toml "x.csv?time=t" -o a.csv',
        "pip install 'runnel[audio]'",
        r"runnel run a x.csv\?t=a",
    ):
        (found,) = commands(line)
        assert not wrong(found)
