"""Who may import whom in the exporter: lift and certify never each other, and nn neither."""

from __future__ import annotations

from pathlib import Path

import pytest

import runnel_export
from tests.imported import offences, read

PACKAGE = Path(runnel_export.__file__).parent
APART = [("lift", "certify"), ("certify", "lift"), ("nn", "lift"), ("nn", "certify")]
SHARED = ("arguments", "call", "describe", "dry_run", "kinds", "pairing", "quantize", "target", "weights")


def modules(folder: str) -> list[tuple[str, Path]]:
    """The modules of a folder, or those at the top of the package, by their full names."""
    paths = sorted((PACKAGE / folder).rglob("*.py")) if folder else sorted(PACKAGE.glob("*.py"))
    names = [path.relative_to(PACKAGE).with_suffix("").parts for path in paths]
    return [(".".join(("runnel_export", *parts)), path) for parts, path in zip(names, paths, strict=True)]


@pytest.mark.parametrize(("folder", "forbidden"), APART)
def test_a_folder_never_imports_the_other(folder: str, forbidden: str) -> None:
    found = modules(folder)
    assert found
    for module, path in found:
        assert not offences(read(path.read_text("utf-8"), module), f"runnel_export.{forbidden}"), path


@pytest.mark.parametrize("forbidden", ["lift", "certify"])
def test_what_both_halves_use_imports_neither(forbidden: str) -> None:
    found = [(module, path) for module, path in modules("") if path.stem in SHARED]
    assert len(found) == len(SHARED)
    for module, path in found:
        assert not offences(read(path.read_text("utf-8"), module), f"runnel_export.{forbidden}"), path


@pytest.mark.parametrize(
    "offender",
    [
        "from ..certify.checks import prove",
        "from ..certify import checks",
        "from .. import certify",
        "from runnel_export.certify.checks import prove",
        "import runnel_export.certify.checks",
        "def f():\n    from ..certify import errors",
    ],
)
def test_an_import_that_breaks_the_rule_is_found(offender: str) -> None:
    assert offences(read(offender, "runnel_export.lift.trace"), "runnel_export.certify")
    assert not offences(read(offender, "runnel_export.lift.trace"), "runnel_export.nn")
