"""What tests of recipes share: the command that runs them, and tables, told or on a page."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from measured import BEGIN, END, Passage, Table

RECIPES = Path(__file__).parents[2] / "export" / "recipes"


def command() -> ModuleType:
    """`python export/recipes`: its module is called __main__, as pytest's own is."""
    spec = importlib.util.spec_from_file_location("recipes_command", RECIPES / "__main__.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded(name: str) -> list[Table]:
    """The tables of a recipe's page."""
    page = (RECIPES / name / "README.md").read_text("utf-8")
    _, begun, rest = page.partition(BEGIN)
    measured, ended, _ = rest.partition(END)
    assert begun
    assert ended
    tables = []
    for title, body in re.findall(r"\*\*(.+?)\*\*\n\n((?:\|.*\n)+)", measured):
        header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in body.splitlines()]
        tables.append(Table(title, header, rows))
    return tables


def rows_of(tables: Sequence[Table | Passage], title: str) -> list[list[str]]:
    """Those of the one table whose title begins so."""
    [table] = [t for t in tables if isinstance(t, Table) and t.title.startswith(title)]
    return [list(row) for row in table.rows]


def percent(cell: str) -> float:
    return float(cell.removesuffix("%"))
