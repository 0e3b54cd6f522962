"""What the pages name is there: links, files, commands and make targets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runnel.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for f in ("engine", "plugins", "export", "deploy") for page in ROOT.glob(f"{f}/*.md")),
        *ROOT.glob("export/recipes/**/README.md"),
    ]
)
_FENCED = re.compile(r"^```.*?^```$", re.M | re.S)


def anchor(heading: str) -> str:
    """As forges make it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = _FENCED.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, part = target.partition("#")
        found = page.parent / name if name else page
        assert found.exists(), f"{target}: there is no such file"
        if part:
            headings = re.findall(r"^#+ (.*)$", found.read_text("utf-8"), re.M)
            assert part in map(anchor, headings), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_that_is_named_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    typed = re.findall(r"^(?:\$ |    |  )?(?:\S+/)?runnel ([a-z]+)\b", text, re.M)
    quoted = re.findall(r"`(?:\S+/)?runnel ([a-z]+)\b", text)
    missing = {name for name in (*typed, *quoted) if name not in COMMANDS}
    if page == ROOT / "README.md":  # it says what is not there yet
        said = re.search(r"^## State of the project\n(.*)^---$", text, re.M | re.S)
        assert said
        missing -= set(re.findall(r"`runnel ([a-z]+)`", said[1]))
    assert not missing


def test_the_readmes_table_has_every_command_with_its_help() -> None:
    from importlib import import_module

    rows = re.findall(r"^\| `runnel (\w+)` \| (.*) \|$", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert [name for name, _ in rows] == list(COMMANDS)
    for name, about in rows:
        assert import_module(f"runnel.cli.{COMMANDS[name]}").HELP.split(":")[0] in about


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    text = page.read_text("utf-8")
    named = re.findall(r"^make (\w+)\b", text, re.M) + re.findall(r"`make (\w+)`", text)
    assert set(named) <= set(targets)


@pytest.mark.parametrize(
    ("folder", "package", "page"),
    [
        ("engine", "runnel", "architecture.md"),
        ("plugins", "runnel_plugins", "README.md"),
        ("export", "runnel_export", "README.md"),
    ],
)
def test_a_components_page_names_its_modules(folder: str, package: str, page: str) -> None:
    """A module that the page does not name cannot be found by a reader."""
    text = (ROOT / folder / page).read_text("utf-8")
    quoted = {word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"\w+", code)}
    root = ROOT / folder / package
    for path in (*root.glob("*.py"), *root.glob("lift/*.py"), *root.glob("certify/*.py")):
        if not path.stem.startswith("_") and path.stem not in ("errors", "trial"):
            assert path.stem in quoted, f"{folder}/{page} does not name {path.name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 180
