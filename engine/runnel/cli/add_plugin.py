"""`runnel plugins new NAME --package DIR`: add a plugin to an existing package."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..loading.registry import GROUP
from .new_plugin import check_name, filled

_HEADER = re.compile(
    r"""^[ \t]*\[project\.entry-points\.(?:runnel|"runnel"|'runnel')\][ \t]*(?:#.*)?$""", re.M
)
_LINES = re.compile(r"(?:\n[ \t]*[\w\"'.-]+[ \t]*=[^\n]*)*")  # the entries below that header
_WHEEL = "tool.hatch.build.targets.wheel"


@dataclass(frozen=True)
class _Location:
    """Where the new module of a package goes."""

    file: Path
    module: str
    beside: str  # the single module of the project, "" if it is a package


def add(name: str, kind: str, folder: Path) -> str:
    """Write the module and its test, and declare it in pyproject.toml; return a report with the next steps.

    Nothing is overwritten. Raises UsageError, with nothing written, if one of the files exists or if their
    location is not clear.
    """
    project = folder / "pyproject.toml"
    text, document = _read(project)
    entries = _entries(document, project)
    if name in entries:
        raise UsageError(f"{project} declares a plugin {name!r} already: choose another name")
    check_name(name, module=None)
    location = _locate(name, folder, document, entries, project)
    tests = folder / "tests"
    test = (tests if tests.is_dir() else folder) / f"test_{location.file.stem}.py"
    for path in (location.file, test):
        if path.exists():
            raise UsageError(f"{path} is there already, and nothing is overwritten: choose another name")
    declared, advice = _declared(text, document, name, location, project)
    source, its_test, entry = filled(name, kind, location.module)
    try:
        location.file.write_text(source, encoding="utf-8")
        test.write_text(its_test, encoding="utf-8")
        project.write_text(declared, encoding="utf-8")
    except OSError as error:
        for path in (location.file, test):
            path.unlink(missing_ok=True)
        raise UsageError(f"{folder}: cannot write to it: {error.strerror or error}") from None
    return (
        f"wrote {location.file} and {test}\n"
        f"{project} declares it: {name} = {json.dumps(location.module)}\n{advice}\n"
        f"next, where runnel and pytest are installed:\n  cd {folder}\n"
        f"  pip install -e .          # again: its entry points have changed\n"
        f"  python -m pytest\n  runnel plugins {name}\n\n{entry}"
    )


def _read(project: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = project.read_text("utf-8")
        return text, tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(
            f"there is no {project}: --package is the folder of a package; for a new one: --into DIR"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{project}: cannot be read: {error}") from None


def _entries(document: Mapping[str, Any], project: Path) -> dict[str, str]:
    try:
        found = document["project"].get("entry-points", {}).get(GROUP, {})
        return {str(key): str(value) for key, value in found.items()}
    except (KeyError, AttributeError, TypeError):
        raise UsageError(
            f"{project} has no table [project]: its entry points are declared elsewhere"
        ) from None


def _locate(
    name: str, folder: Path, document: Mapping[str, Any], entries: Mapping[str, str], project: Path
) -> _Location:
    """Beside the module of an existing plugin, or else in the package of the project's name."""
    own = str(document["project"].get("name", "")).replace("-", "_")
    for known in (*(value.partition(":")[0].strip() for value in entries.values()), own):
        *parents, last = known.split(".")
        for root in (folder, folder / "src"):
            inside = root.joinpath(*parents)
            if (package := inside / last).joinpath("__init__.py").is_file():
                return _Location(package / f"{name}.py", f"{known}.{name}", "")
            if parents and (inside / f"{last}.py").is_file():
                return _Location(inside / f"{name}.py", ".".join([*parents, name]), "")
            if (root / f"{last}.py").is_file() and not parents:
                return _Location(root / f"runnel_{name}.py", f"runnel_{name}", known)
    raise UsageError(
        f"{project}: no module {own!r} in {folder} or {folder / 'src'}, and none that a plugin is declared "
        "in: where a further one would go cannot be told"
    )


def _declared(
    text: str, document: Mapping[str, Any], name: str, location: _Location, project: Path
) -> tuple[str, str]:
    """pyproject.toml with one more entry point, and advice on what its owner must do by hand."""
    line = f"{name} = {json.dumps(location.module)}"
    header = _HEADER.search(text)
    if header:
        at = header.end() + len(_LINES.match(text[header.end() :])[0])  # type: ignore[index]  # (it may be empty)
        made = f"{text[:at]}\n{line}{text[at:]}"
    else:
        made = f"{text.rstrip()}\n\n[project.entry-points.{GROUP}]\n{line}\n"
    wanted = json.loads(json.dumps(document, default=str))
    wanted["project"].setdefault("entry-points", {}).setdefault(GROUP, {})[name] = location.module
    advice = ""
    if location.beside:
        backend = str(document.get("build-system", {}).get("build-backend", ""))
        wheel = document.get("tool", {}).get("hatch", {}).get("build", {}).get("targets", {}).get("wheel")
        listed = [f"{location.beside}.py", f"{location.module}.py"]
        if backend == "hatchling.build" and wheel is None and "src" not in location.file.parts:
            made = f"{made.rstrip()}\n\n[{_WHEEL}]\nonly-include = {json.dumps(listed)}\n"
            targets = wanted.setdefault("tool", {}).setdefault("hatch", {}).setdefault("build", {})
            targets.setdefault("targets", {})["wheel"] = {"only-include": listed}
        elif listed[0] in (only := (wheel or {}).get("only-include", [])):
            both = [*only, listed[1]]
            made = made.replace(f"only-include = {json.dumps(only)}", f"only-include = {json.dumps(both)}")
            wanted["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"] = both
        else:
            advice = f"The project lists its modules itself: add {location.module}.py to that list.\n"
    try:
        found = json.loads(json.dumps(tomllib.loads(made), default=str))
    except ValueError:
        found = None
    if found != wanted:
        raise UsageError(
            f"{project} declares its plugins in a way that is not changed by this command: add {line} to its "
            f"entry points of the group {GROUP!r}"
        )
    return made, advice
