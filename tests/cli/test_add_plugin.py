"""`runnel plugins new NAME --package DIR`: one more plugin in a package that is there."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from runnel.cli.main import main

from .test_plugins_command import run


def new(*words: object) -> int:
    return main(["plugins", "new", *map(str, words)])


@pytest.fixture
def package(tmp_path: Path) -> Path:
    assert new("first", "--into", tmp_path) == 0
    return tmp_path / "runnel-first"


def entries(folder: Path) -> dict[str, str]:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]["runnel"]


def test_a_second_and_a_third_are_declared_tested_and_installed(
    package: Path, tmp_path: Path, capsys
) -> None:
    before = (package / "pyproject.toml").read_text()
    capsys.readouterr()
    assert new("second", "--kind", "sink", "--package", package) == 0
    shown = capsys.readouterr().out
    assert "pip install -e ." in shown
    assert 'use = "second"' in shown
    assert new("third", "--kind", "source", "--package", package) == 0
    names = ("first", "second", "third")
    assert list(entries(package).items()) == [(name, f"runnel_{name}") for name in names]
    kept = [line for line in before.splitlines() if line.strip()]
    after = (package / "pyproject.toml").read_text().splitlines()
    assert [line for line in after if line in kept] == kept, "comments and order are as they were"
    shown = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", package], package)
    assert " passed" in shown
    target = tmp_path / "target"
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    run([*pip, "--no-build-isolation", "--target", target, package], tmp_path)
    for name, kind in (("first", "stage"), ("second", "sink"), ("third", "source")):
        shown = run(["-m", "runnel.cli.main", "plugins", name], tmp_path, [target])
        assert shown.startswith(f"{name}  (runnel-first 0.1.0)\n\n  {kind}\n"), shown


PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-kit"
version = "1"
"""


@pytest.mark.parametrize(
    ("entry", "layout", "module"),
    [
        (
            '[project.entry-points.runnel]\nfirst = "acme_kit.first"\n',
            "src/acme_kit/first.py",
            "acme_kit.more",
        ),
        (
            '[project.entry-points."runnel"]  # ours\nkit = "acme_kit"\n',
            "acme_kit/__init__.py",
            "acme_kit.more",
        ),
        ("", "src/acme_kit/__init__.py", "acme_kit.more"),
        ('[project.entry-points.runnel]\nkit = "acme_kit"\n', "acme_kit.py", "runnel_more"),
    ],
)
def test_it_goes_beside_what_is_there(
    entry: str, layout: str, module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / layout).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / layout).write_text("")
    (tmp_path / "tests").mkdir()
    (tmp_path / "pyproject.toml").write_text(PROJECT + entry)
    assert new("more", "--package", tmp_path) == 0
    assert entries(tmp_path)["more"] == module
    home = (tmp_path / layout).parent
    assert (home / f"{module.rpartition('.')[2]}.py").is_file()
    (test,) = (tmp_path / "tests").iterdir()
    assert f"from {module} import" in test.read_text()
    listed = "add runnel_more.py to that list" in capsys.readouterr().out
    assert listed == (module == "runnel_more")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["first"], "declares a plugin 'first' already"),
        (["taken"], "runnel_taken.py is there already"),
        (["tested"], "test_runnel_tested.py is there already"),
        (["My"], "'my', say"),
        (["resample"], "is installed already"),
        (["more", "--into", "."], "give one of them"),
    ],
)
def test_nothing_is_overwritten_and_nothing_is_left_half_done(
    words: list[str], says: str, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (package / "runnel_taken.py").write_text("mine")
    (package / "test_runnel_tested.py").write_text("mine")
    before = snapshot(package)
    assert new(*words, "--package", package) == 2
    assert says in capsys.readouterr().err
    assert snapshot(package) == before


@pytest.mark.parametrize(
    ("project", "says"),
    [
        (None, "there is no"),
        ("[project\n", "cannot be read"),
        ("[tool.x]\n", "no table [project]"),
        ('[project]\nname = "other"\n', "cannot be told"),
        ('[project]\nname = "acme"\nentry-points = { runnel = { a = "acme" } }\n', "add more = "),
    ],
)
def test_a_project_that_is_none_is_left_alone(
    project: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "acme.py").write_text("")
    if project is not None:
        (tmp_path / "pyproject.toml").write_text(project)
    before = snapshot(tmp_path)
    assert new("more", "--package", tmp_path) == 2
    assert says in capsys.readouterr().err
    assert snapshot(tmp_path) == before
