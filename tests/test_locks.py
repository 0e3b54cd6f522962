"""The locked versions fit pyproject.toml on each Python that is supported, and come with hashes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAMES = ["demo", "recipes", "test", "fuzz"]  # each holds what those before it lack
PYTHONS = ["3.11.0", "3.12.0", "3.13.0", "3.14.0"]


def entries(name: str) -> list[tuple[Requirement, list[str]]]:
    """Each requirement of a lock file, with its hashes."""
    text = re.sub(r"^#.*\n", "", (ROOT / "locks" / f"{name}.txt").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [(Requirement(words[0]), words[1:]) for words in (re.split(r" +--hash=", line) for line in lines)]


def wanted(extra: str | None) -> Iterator[Requirement]:
    """What Runnel and one of its extras require, without Runnel itself."""
    project = PROJECT["project"]
    for text in project["dependencies"] if extra is None else project["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == "runnel":
            for other in requirement.extras:
                yield from wanted(other)
        else:
            yield requirement


@pytest.mark.parametrize("name", NAMES)
def test_each_locked_version_is_exact_and_has_hashes_and_no_address(name: str) -> None:
    assert "://" not in (ROOT / "locks" / f"{name}.txt").read_text()
    found = entries(name)
    assert found
    for requirement, hashes in found:
        assert [one.operator for one in requirement.specifier] == ["=="], requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip()) for one in hashes), requirement


def test_no_package_is_locked_in_two_files() -> None:
    names = [{requirement.name for requirement, _ in entries(name)} for name in [*NAMES, "torch"]]
    assert sum(map(len, names)) == len(set().union(*names))


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", NAMES)
def test_the_locked_versions_are_in_the_ranges_of_pyproject(extra: str, python: str) -> None:
    environment = {
        "python_full_version": python, "python_version": python.rpartition(".")[0],
        "sys_platform": "linux", "os_name": "posix", "platform_machine": "x86_64", "extra": "",
    }  # fmt: skip
    locked: dict[str, str] = {}
    for name in ["torch", *NAMES[: NAMES.index(extra) + 1]]:
        for requirement, _ in entries(name):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                assert requirement.name not in locked, f"{requirement.name} is locked twice for {python}"
                locked[requirement.name] = next(iter(requirement.specifier)).version
    builds = [Requirement(text) for text in PROJECT["build-system"]["requires"]]
    for requirement in [*wanted(None), *wanted(extra), *builds]:
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not locked: make lock"
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}: make lock"
